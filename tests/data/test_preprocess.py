"""Preprocessing: hand-made cases, properties, and MovieLens against plain loops."""

import hashlib
import html
import json
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.config.data import MovieLens
from rere.data.dataset import SPLITS, read_items, read_split
from rere.data.filtering import k_core
from rere.data.ids import sorted_distinct
from rere.data.preprocess import preprocess
from rere.data.splitting import chronological_split, make_samples
from rere.errors import InputError

OPTIONS = MovieLens()


def write_raw(folder: Path, events: list[tuple], titles: dict | None = None) -> Path:
    """Write events (user, item, timestamp) as RecBole does; a title is `Film` and the item."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = titles or {item: f"Film {item}" for _, item, _ in sorted(events, key=str)}
    inter = [f"{user}\t{item}\t3\t{timestamp}" for user, item, timestamp in events]
    item = [f"{item}\t{title}\t1995\tDrama" for item, title in titles.items()]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml-100k.inter").write_text("\n".join([head, *inter, ""]))
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (folder / "ml-100k.item").write_text("\n".join([head, *item, ""]))
    return folder


def frame(events: list[tuple], names=("user", "item", "timestamp")) -> pl.DataFrame:
    schema = dict.fromkeys(names, pl.Int64)
    return pl.DataFrame(events, schema=schema, orient="row")


# ------------------------------------------------------------------------------ hand-made cases


def test_k_core_repeats_until_nothing_changes():
    # Item 9 has one event; without it user 3 has one; without user 3 item 8 has one; without
    # item 8 user 2 still has two. Two events of one user and item count as two.
    events = [(1, 7, 0), (1, 7, 0), (2, 7, 1), (2, 8, 2), (2, 7, 3), (3, 8, 4), (3, 9, 5)]
    assert k_core(frame(events), 2).rows() == [(1, 7, 0), (1, 7, 0), (2, 7, 1), (2, 7, 3)]
    assert k_core(frame(events), 1).rows() == events
    assert k_core(frame(events), 3).rows() == []


def test_samples_by_hand():
    names = ("user_id", "item_id", "timestamp")
    # User 0: item 5, then 3 and 4 in the same second, then 5 again at 30.
    # User 1: items 3 and 4 in the same second, so 4 is the only target.
    events = [(0, 4, 20), (1, 4, 20), (0, 5, 30), (0, 5, 10), (1, 3, 20), (0, 3, 20)]
    rows = make_samples(frame(events, names), max_history=2)
    assert rows.rows() == [
        # row_id, user_id, history, target, timestamp, previous
        (0, 0, [5], 3, 20, 10),
        (1, 0, [5, 3], 4, 20, 20),
        (2, 1, [3], 4, 20, 20),
        (3, 0, [3, 4], 5, 30, 20),  # a history of two does not reach back to 5
    ]
    assert make_samples(frame(events, names), max_history=9)["history"].to_list()[-1] == [5, 3, 4]


@pytest.mark.parametrize(
    ("count", "sizes"),
    # floor(.8 n), then up to floor(.9 n), then the rest
    [(10, (8, 1, 1)), (11, (8, 1, 2)), (19, (15, 2, 2)), (98_344, (78_675, 9_834, 9_835))],
)
def test_split_sizes_are_rounded_down(count, sizes):
    splits = chronological_split(pl.DataFrame({"row_id": range(count)}))
    assert tuple(len(splits[split]) for split in SPLITS) == sizes
    assert pl.concat(splits.values())["row_id"].to_list() == list(range(count))


@pytest.mark.parametrize(
    ("raw", "order"),
    [
        (["10", "9", "100", "9"], ["9", "10", "100"]),
        (["10", "9", "100", "b"], ["10", "100", "9", "b"]),
        (["2", "1", "01", "10"], ["01", "1", "2", "10"]),
        (["é", "z", "Z"], ["Z", "z", "é"]),
    ],
)
def test_raw_ids_are_sorted_as_numbers_if_all_are(raw, order):
    assert sorted_distinct(pl.Series("user", raw)).to_list() == order


def test_small_data_set_by_hand(tmp_path):
    # Users 2 and 10 see items 30, 4 in turn at 100 (user 2) and 101 (user 10), 110, ..., 160 and
    # 161: 7 events and 6 samples each. The 2-core drops user 5, who has one event.
    items = ["30", "4", "30", "4", "30", "4", "4"]
    events = [("2", item, 100 + 10 * i) for i, item in enumerate(items)]
    events += [("10", item, 101 + 10 * i) for i, item in enumerate(items)]
    raw = write_raw(tmp_path / "raw", [*events, ("5", "4", 7)], {"30": "Up", "4": "Up", "6": "No"})
    preprocess(OPTIONS.model_copy(update={"core": 2, "max_history": 3}), raw, tmp_path / "data")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw"]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        *("items.parquet", "users.parquet"),
        *("train.parquet", "valid.parquet", "test.parquet"),
        *("stats.json", "audit.json"),
    }
    # 12 samples: floor(9.6) = 9 train, floor(10.8) = 10, so 1 valid and 2 test. Targets in time
    # order: 4 4, 30 30, 4 4, 30 30, 4 | 4 | 4 4. Item 4 is 0, item 30 is 1.
    assert read_items(tmp_path / "data").rows() == [
        (0, "Up (1995)", 5, "4"),
        (1, "Up (1995)", 4, "30"),
    ]
    users = pl.read_parquet(tmp_path / "data" / "users.parquet")
    assert users.rows() == [(0, "2"), (1, "10")]
    train, valid, test = (read_split(tmp_path / "data", split) for split in SPLITS)
    assert train.rows()[:3] == [
        (0, 0, [1], 0, 110),
        (1, 1, [1], 0, 111),
        (2, 0, [1, 0], 1, 120),
    ]
    assert valid.rows() == [(9, 1, [1, 0, 1], 0, 151)]
    assert test.rows() == [(10, 0, [0, 1, 0], 0, 160), (11, 1, [0, 1, 0], 0, 161)]

    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    checksums = stats.pop("raw_sha256")
    assert [(name, len(value)) for name, value in checksums.items()] == [
        ("ml-100k.inter", 64),
        ("ml-100k.item", 64),
    ]
    day = {"first_date": "1970-01-01", "last_date": "1970-01-01"}
    assert stats.pop("options") == MovieLens(core=2, max_history=3).model_dump()
    assert stats == {
        "lines": {"ml-100k.inter": {"lines": 15}, "ml-100k.item": {"lines": 3}},
        "window": {"start": None, "end": None},
        "titles_read": 3,
        "titles_dropped": {"of an item without events": 1, "of an item listed again": 0},
        "interactions_read": 15,
        "interactions_dropped": {
            "outside of the window": 0,
            "repeats of an earlier one": 0,
            "outside of the core": 1,
        },
        "interactions_kept": 14,
        "users": 2,
        "items": 2,
        "distinct_titles": 1,
        "items_sharing_their_title": 2,
        "mean_title_words": 2.0,  # Up, (1995)
        "mean_history_length": 2.5,  # 1, 2, 3, 3, 3, 3
        "splits": {
            "train": {"rows": 9, "first_timestamp": 110, "last_timestamp": 150, **day},
            "valid": {"rows": 1, "first_timestamp": 151, "last_timestamp": 151, **day},
            "test": {"rows": 2, "first_timestamp": 160, "last_timestamp": 161, **day},
        },
    }


# ----------------------------------------------------------------------------------- properties

ids = st.integers(0, 6)
event_lists = st.lists(st.tuples(ids, ids, st.integers(0, 12)), min_size=1, max_size=80)


def naive_core(events: list[tuple], core: int) -> list[tuple]:
    """The k-core, by dropping one user or item at a time."""
    while True:
        users = Counter(event[0] for event in events)
        items = Counter(event[1] for event in events)
        few = [(0, user) for user in users if users[user] < core]
        few += [(1, item) for item in items if items[item] < core]
        if not few:
            return events
        column, value = few[-1]
        events = [event for event in events if event[column] != value]


@settings(deadline=None)
@given(event_lists, st.integers(1, 5))
def test_k_core_is_the_largest_one(events, core):
    assert k_core(frame(events), core).rows() == naive_core(events, core)


@settings(deadline=None)
@given(event_lists, st.integers(1, 4))
def test_histories_have_earlier_events_only(events, max_history):
    rows = make_samples(frame(events, ("user_id", "item_id", "timestamp")), max_history)
    assert rows["row_id"].to_list() == list(range(len(rows)))
    assert rows["timestamp"].is_sorted()
    assert len(rows) == len(events) - len({user for user, _, _ in events})
    for _, user, history, target, timestamp, _ in rows.rows():
        assert 1 <= len(history) <= max_history
        now = [item for u, item, t in events if u == user and t == timestamp]
        past = [item for u, item, t in events if u == user and t < timestamp]
        assert target in now
        # A history may also have events of the same second.
        assert Counter(history) - Counter(past) <= Counter(now) - Counter([target])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_raw_rows_does_not_matter(data):
    events = data.draw(st.lists(st.tuples(ids, ids, st.integers(0, 3)), min_size=20, max_size=40))
    shuffled = data.draw(st.permutations(events))
    options = OPTIONS.model_copy(update={"core": 1, "max_history": 3})
    with TemporaryDirectory() as folder:
        outputs = []
        for name, rows in (("a", events), ("b", shuffled)):
            raw = write_raw(Path(folder, name, "raw"), rows)
            preprocess(options, raw, Path(folder, name, "data"))
            outputs.append(contents(Path(folder, name, "data")))
    assert outputs[0] == outputs[1]


def contents(folder: Path) -> dict:
    """Bytes of all parquet files, and the stats without the checksums of the raw files."""
    stats = json.loads((folder / "stats.json").read_text())
    parquet = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    return parquet | {key: value for key, value in stats.items() if key != "raw_sha256"}


# --------------------------------------------------------------------- environment and failures


def test_the_time_zone_does_not_matter(tmp_path, monkeypatch):
    events = [(user, item, 82_800 + item) for user in range(3) for item in range(6)]
    raw = write_raw(tmp_path / "raw", events)
    options = OPTIONS.model_copy(update={"core": 1})
    outputs = []
    for zone in ("UTC", "EAST-14", "WEST+12"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        preprocess(options, raw, tmp_path / "data")
        outputs.append(contents(tmp_path / "data"))
    monkeypatch.undo()
    time.tzset()
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0]["splits"]["test"]["last_date"] == "1970-01-01"


def test_an_earlier_output_is_replaced_or_kept_as_a_whole(tmp_path):
    output = tmp_path / "data"
    output.mkdir()
    (output / "items.parquet").touch()
    raw = write_raw(tmp_path / "raw", [(0, 0, 0)])
    with pytest.raises(InputError):
        preprocess(OPTIONS, raw, output)
    assert (output / "items.parquet").stat().st_size == 0
    write_raw(raw, [(0, item, item) for item in range(11)])
    preprocess(OPTIONS.model_copy(update={"core": 1}), raw, output)
    assert (output / "items.parquet").stat().st_size > 0


def test_too_few_samples_are_an_error_that_names_the_option(tmp_path):
    # 10 events of one user make 9 samples; with core 2 no item is left.
    raw = write_raw(tmp_path / "raw", [(0, item, item) for item in range(10)])
    for core, left in ((1, 9), (2, 0)):
        with pytest.raises(InputError) as error:
            preprocess(OPTIONS.model_copy(update={"core": core}), raw, tmp_path / "data")
        assert str(error.value).startswith(f"core: {core} leaves {left} samples of 10 events")
        assert "choose a smaller core" in str(error.value)
        assert f"(dropped: {(10 if core == 2 else 0) or 'none'}" in str(error.value)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == [raw]


def test_malformed_raw_files_leave_no_output(tmp_path):
    raw = write_raw(tmp_path / "raw", [(0, 0, "soon")])
    with pytest.raises(InputError, match=r"ml-100k\.inter line 2: timestamp is not a number"):
        preprocess(OPTIONS, raw, tmp_path / "data")
    assert list(tmp_path.iterdir()) == [raw]


def test_raw_files_are_not_overwritten(tmp_path):
    raw = write_raw(tmp_path / "raw", [(0, item, item) for item in range(11)])
    for output in (raw, tmp_path):
        with pytest.raises(InputError, match="would replace the raw files"):
            preprocess(OPTIONS.model_copy(update={"core": 1}), raw, output)
    assert len(list(raw.iterdir())) == 2


def test_the_data_stages_do_not_import_torch():
    code = "import rere.data.preprocess, rere.data.fetch, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ----------------------------------------------------------------------- the real MovieLens


def split_mix(key: int) -> int:
    """The finaliser of SplitMix64 on plain integers."""
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    return key ^ key >> 31


def preprocess_plainly(
    raw: Path, core: int, max_history: int
) -> tuple[list[tuple], list[list[tuple]]]:
    """Items (item_id, title, count) and the rows of the three splits, by plain loops."""
    [inter], [item_file] = raw.glob("*.inter"), raw.glob("*.item")
    sort_key = int if inter.name == "ml-100k.inter" else str
    events, titles = [], {}
    for line in inter.read_text(encoding="utf-8").splitlines()[1:]:
        user, item, _, timestamp = line.split("\t")
        events.append((user, item, int(timestamp)))
    for line in item_file.read_text(encoding="utf-8").splitlines()[1:]:
        item, title, year, _ = line.split("\t")
        titles[item] = "unknown" if title == "unkonwn" else f"{title} ({year})"
        titles[item] = " ".join(html.unescape(titles[item]).split())
    while True:
        of_user = Counter(user for user, _, _ in events)
        of_item = Counter(item for _, item, _ in events)
        kept = [e for e in events if of_user[e[0]] >= core and of_item[e[1]] >= core]
        if len(kept) == len(events):
            break
        events = kept
    user_ids = {user: number for number, user in enumerate(sorted(of_user, key=sort_key))}
    item_ids = {item: number for number, item in enumerate(sorted(of_item, key=sort_key))}
    sequences = defaultdict(list)
    for user, item, timestamp in events:
        user, item = user_ids[user], item_ids[item]
        sequences[user].append((timestamp, split_mix(user << 32 | item), item))
    rows = []
    for user, sequence in sequences.items():
        sequence.sort()
        for position in range(1, len(sequence)):
            past = sequence[max(0, position - max_history) : position]
            timestamp, _, target = sequence[position]
            rows.append((timestamp, user, position, [item for _, _, item in past], target))
    rows.sort(key=lambda row: row[:3])
    rows = [(i, user, past, item, when) for i, (when, user, _, past, item) in enumerate(rows)]
    train, valid = len(rows) * 8 // 10, len(rows) * 9 // 10
    splits = [rows[:train], rows[train:valid], rows[valid:]]
    counts = Counter(row[3] for row in splits[0])
    items = [(number, titles[item], counts[number], str(item)) for item, number in item_ids.items()]
    return items, splits


def assert_equals_plain_loops(options: MovieLens, raw: Path, data: Path) -> None:
    preprocess(options, raw, data)
    catalogue, splits = preprocess_plainly(raw, core=5, max_history=10)
    assert read_items(data).rows() == catalogue
    for split, rows in zip(SPLITS, splits, strict=True):
        assert read_split(data, split).rows() == rows


def sizes(data: Path) -> list[int]:
    """The number of items, and of rows of each split."""
    return [len(read_items(data)), *(len(read_split(data, split)) for split in SPLITS)]


def test_ml_100k_equals_plain_loops_row_by_row(ml_100k_raw, tmp_path):
    assert_equals_plain_loops(MovieLens(), ml_100k_raw, tmp_path)
    assert sizes(tmp_path) == [1_349, 78_675, 9_834, 9_835]


@pytest.mark.slow
def test_every_tenth_user_of_ml_1m_equals_plain_loops_row_by_row(ml_1m_raw, tmp_path):
    options = MovieLens(source="ml-1m")
    preprocess(options, ml_1m_raw, tmp_path / "all")
    assert sizes(tmp_path / "all") == [3_416, 794_856, 99_357, 99_358]
    shutil.copytree(ml_1m_raw, tmp_path / "raw")
    [events] = (tmp_path / "raw").glob("*.inter")
    head, *lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [line for line in lines if line.partition("\t")[0].endswith("0")]
    events.write_text("".join([head, *lines]), encoding="utf-8")
    assert_equals_plain_loops(options, tmp_path / "raw", tmp_path / "tenth")
    assert sum(sizes(tmp_path / "tenth")[1:]) > 90_000


def test_ml_100k_has_the_rows_of_earlier_versions(ml_100k_raw, tmp_path):
    """Results of earlier versions stay comparable."""
    preprocess(OPTIONS, ml_100k_raw, tmp_path / "data")
    rows = [row for split in SPLITS for row in read_split(tmp_path / "data", split).rows()]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert digest == "852d472b0a14e26df9ba73f2100522790227fb74cc19db59a49f378999e5dfc7"
