"""Raw files of every source become the expected events, titles and splits."""

import gzip
import json
from collections import Counter, defaultdict
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import CATEGORY, OPTIONS, WRITERS, random_events, write, write_yelp_tar

from rere.config.data import Amazon2018, OwnTables, Yelp
from rere.data.dataset import SPLITS, read_items, read_split
from rere.data.preprocess import preprocess, read_raw
from rere.errors import InputError

sources = pytest.mark.parametrize("source", WRITERS)
JSON_SOURCES = ("amazon-2018", "amazon-2023", "yelp")


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def splits_of(data: Path) -> dict[str, list[tuple]]:
    return {split: read_split(data, split).rows() for split in SPLITS}


def stats_of(data: Path) -> dict:
    return json.loads((data / "stats.json").read_text())


def processed(options, folder: Path) -> Path:
    """The data folder made from the folder's raw files."""
    preprocess(options, folder / "raw", folder / "data")
    return folder / "data"


# -------------------------------------------------------------------------------- random events


@sources
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_every_source_gives_the_same_events_and_titles(source, compress, tmp_path):
    events, titles = random_events(400, 30, 50)
    if source in ("ml-100k", "ml-1m"):  # Latin-1
        titles = {
            item: t and t.encode("latin-1", "replace").decode("latin-1")
            for item, t in titles.items()
        }
    write(source, tmp_path / "raw", events, titles, compress=compress)
    raw = read_raw(OPTIONS[source], tmp_path / "raw")
    assert raw.events.rows() == events
    assert [(i, t or None) for i, t in raw.titles.rows()] == list(titles.items())


@pytest.mark.parametrize("source", JSON_SOURCES)
def test_broken_lines_are_counted_and_dropped(source, tmp_path, caplog):
    events, titles = random_events(3000, 60, 80)
    write(source, tmp_path / "clean" / "raw", events, titles)
    counts = write(source, tmp_path / "raw", events, titles, broken=0.03)
    assert min(counts) > 0
    options = OPTIONS[source].model_copy(update={"tolerance": 0.1})
    broken = processed(options, tmp_path)
    assert splits_of(broken) == splits_of(processed(options, tmp_path / "clean"))
    assert read_items(broken).equals(read_items(tmp_path / "clean" / "data"))
    for lines, given_lines, lost in zip(
        stats_of(broken)["lines"].values(), (events, titles), counts, strict=True
    ):
        assert lines.pop("lines") == len(given_lines) + lost
        assert sum(lines.values()) == lost
    assert 2 <= caplog.text.count(" line ") <= 6  # at most three per file

    # 2.9 % of the lines are more than the tolerated fraction.
    with pytest.raises(InputError) as error:
        read_raw(OPTIONS[source], tmp_path / "raw")
    message = str(error.value)
    assert f"{counts[0]} of {len(events) + counts[0]} lines are unreadable" in message
    assert "line " in message and "\n" not in message and "0.001" in message


def test_one_broken_line_in_a_thousand_is_tolerated_and_two_are_not(tmp_path):
    events, titles = random_events(999, 20, 20)
    write("amazon-2018", tmp_path / "raw", events, titles)
    path = tmp_path / "raw" / f"{CATEGORY}_5.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:500], '{"asin": "B00001"', *lines[500:]]))
    raw = read_raw(OPTIONS["amazon-2018"], tmp_path / "raw")
    assert raw.line_counts[path.name] == {"lines": 1000, "not a JSON object of plain values": 1}
    path.write_text("\n".join([*lines[:500], '{"asin": "B00001"', "{}", *lines[501:]]))
    with pytest.raises(InputError) as error:
        read_raw(OPTIONS["amazon-2018"], tmp_path / "raw")
    assert str(error.value).startswith(
        f"{path} line 501: not a JSON object of plain values; 2 of 1000 lines are unreadable"
    )


# ----------------------------------------------------------------------------- Amazon

TITLES = {
    "A": '  Apple\t&amp; "Pear" ',
    "B": '"Ball &quot;X&quot;"',
    "C": '"Cube"',
    "untitled": None,
    "blank": " \n",
    "markup": 'Doll <span id="title">',
    "short": "Z",
    "long": " ".join(["word"] * 21),
    "old": "Old game",
}
WINDOW = {"start": date(2016, 10, 1), "end": date(2018, 11, 1), "min_items": 3}


def amazon_events(day: str) -> list[tuple[str, str, int]]:
    """Two users who review A, B and C in turn from a day on, and events that are dropped."""
    start = seconds(day)
    good = [(u, i, start + 86_400 * n) for n, i in enumerate("ABCABC") for u in ("u1", "u2")]
    others = [("u1", item, start) for item in (*list(TITLES)[3:8], "unlisted")]
    return [*good, *others, ("u3", "A", start)]


def test_amazon_by_hand(tmp_path):
    # The first and last second of the window, and those before and after it.
    edges = [
        ("u1", "A", seconds("2016-09-30 23:59:59")),
        ("u1", "B", seconds("2016-10-01 00:00:00")),
        ("u2", "B", seconds("2018-10-31 23:59:59")),
        ("u2", "A", seconds("2018-11-01 00:00:00")),
    ]
    write("amazon-2018", tmp_path / "raw", [*amazon_events("2017-05-01"), *edges], TITLES)
    options = Amazon2018(category=CATEGORY, core=2, max_history=2).model_copy(update=WINDOW)
    data = processed(options, tmp_path)
    assert read_items(data)["title"].to_list() == ['Apple & "Pear"', 'Ball "X"', "Cube"]
    # u1: B (edge), A B C A B C; u2: A B C A B C, B (edge): 6 samples each. In time: day 1 has
    # u1's A; on each of 5 further days come u1's and u2's; last u2's edge. 12 in all: 9, 1, 2.
    a, b, c = 0, 1, 2
    rows = [
        (0, [b], a),
        *[(0, [b, a], b), (1, [a], b)],
        *[(0, [a, b], c), (1, [a, b], c)],
        *[(0, [b, c], a), (1, [b, c], a)],
        *[(0, [c, a], b), (1, [c, a], b)],
        *[(0, [a, b], c), (1, [a, b], c)],
        (1, [b, c], b),
    ]
    splits = splits_of(data)
    assert [row[1:4] for split in SPLITS for row in splits[split]] == rows
    assert [len(splits[split]) for split in SPLITS] == [9, 1, 2]
    stats = stats_of(data)
    assert stats["window"] == {"start": "2016-10-01", "end": "2018-11-01"}
    assert stats["titles_read"] == 9
    assert stats["titles_dropped"] == {
        "of an item without events": 1,
        "of an item listed again": 0,
        "of an item with a title of more than 20 words": 1,
        "of an item with a title of one character": 1,
        "of an item with markup for a title": 1,
        "of an item without a title": 2,
    }
    assert stats["interactions_read"] == 12 + 6 + 1 + 4
    assert stats["interactions_dropped"] == {
        "of an item not listed": 1,
        "of an item with a title of more than 20 words": 1,
        "of an item with a title of one character": 1,
        "of an item with markup for a title": 1,
        "of an item without a title": 2,
        "outside of the window": 2,
        "repeats of an earlier one": 0,
        "outside of the core": 1,  # u3's only one
    }
    assert stats["interactions_kept"] == 14


def test_the_window_starts_earlier_until_enough_items_are_left(tmp_path):
    older = [(user, "old", seconds(f"2014-01-0{n + 1}")) for n in range(2) for user in ("u1", "u2")]
    write("amazon-2018", tmp_path / "raw", [*amazon_events("2017-05-01"), *older], TITLES)
    options = Amazon2018(category=CATEGORY, core=2).model_copy(update=WINDOW)
    for least, start, items in ((3, "2016-10-01", 3), (4, "2013-10-01", 4), (9, "2013-10-01", 4)):
        data = processed(options.model_copy(update={"min_items": least}), tmp_path)
        assert stats_of(data)["window"]["start"] == start
        assert len(read_items(data)) == items


def test_only_the_first_of_repeated_events_may_be_kept(tmp_path):
    # Each user ends with A again.
    events = [
        (u, i, 100 * n + k) for k, u in enumerate(("u", "v")) for n, i in enumerate("ABCDEFA")
    ]
    titles = {item: f"Title {item}" for item in "ABCDEF"}
    write("table", tmp_path / "raw", events, titles)
    kept = processed(OwnTables(core=2), tmp_path)
    assert sum(map(len, splits_of(kept).values())) == 12
    first = processed(OwnTables(core=2, repeats="first"), tmp_path)
    rows = [row for rows in splits_of(first).values() for row in rows]
    assert [row[3] for row in rows if row[1] == 0] == [1, 2, 3, 4, 5]
    assert stats_of(first)["interactions_dropped"]["repeats of an earlier one"] == 2


@pytest.mark.parametrize("compress", [False, True], ids=["json", "gz"])
def test_metadata_of_2014_in_single_quotes_is_read(tmp_path, compress):
    events, titles = random_events(300, 20, 30)
    titles["B00001"] = 'It\'s "quoted" \\ and é'
    write("amazon-2018", tmp_path / "raw", events, titles, python=True, compress=compress)
    raw = read_raw(OPTIONS["amazon-2018"], tmp_path / "raw")
    assert raw.titles.rows() == list(titles.items())


def test_python_in_metadata_is_not_run(tmp_path):
    events, titles = random_events(300, 20, 30)
    write("amazon-2018", tmp_path / "raw", events, titles, python=True)
    path = tmp_path / "raw" / f"meta_{CATEGORY}.json"
    evil = tmp_path / "evil"
    calls = f"{{'asin': 'x', 'title': open({str(evil)!r}, 'w')}}\n" + "{'a': " * 5000 + "\n"
    path.write_text(path.read_text() + calls)
    options = OPTIONS["amazon-2018"].model_copy(update={"tolerance": 0.1})
    raw = read_raw(options, tmp_path / "raw")
    assert raw.line_counts[path.name] == {"lines": 32, "not a JSON object of plain values": 2}
    assert not evil.exists()


# ------------------------------------------------------------------------------- Yelp

BUSINESSES = {"x": "Café &amp; Bar", "y": '"Bo\'s"', "z": "Z"}
PLACES = {"x": ("1 Main  St", "Reno", "NV"), "y": ("", "Reno", " ")}
VISITS = [(u, i, seconds("2021-06-01") + 60 * n) for n, i in enumerate("xyxyxy") for u in "uvw"]


@pytest.mark.parametrize(
    ("title", "titles"),
    [
        ("address", ["Café & Bar (1 Main St, Reno, NV)", "Bo's (Reno)"]),
        ("name", ["Café & Bar", "Bo's"]),
    ],
)
def test_yelp_by_hand(title, titles, tmp_path):
    outside = [("u", "x", seconds("2020-12-31 23:59:59")), ("u", "x", seconds("2022-01-01"))]
    rejected = [("u", "z", seconds("2021-06-01"))]  # a name of one character
    write("yelp", tmp_path / "raw", [*VISITS, *outside, *rejected], BUSINESSES, places=PLACES)
    data = processed(Yelp(core=2, title=title), tmp_path)
    assert read_items(data)["title"].to_list() == titles
    # Three users with 6 events each at the same minutes: 15 samples, split 12, 1, 2.
    rows = [row for rows in splits_of(data).values() for row in rows]
    assert [row[1] for row in rows] == [0, 1, 2] * 5
    assert [row[2:4] for row in rows[::3]] == [
        ([0], 1),
        ([0, 1], 0),
        ([0, 1, 0], 1),
        ([0, 1, 0, 1], 0),
        ([0, 1, 0, 1, 0], 1),
    ]
    assert [len(rows) for rows in splits_of(data).values()] == [12, 1, 2]
    dropped = stats_of(data)["interactions_dropped"]
    assert dropped["outside of the window"] == 2
    assert dropped["of an item with a title of one character"] == 1


@pytest.mark.parametrize("compress", [False, True], ids=["tar", "gz"])
def test_yelp_is_read_from_its_tar(tmp_path, compress):
    events, titles = random_events(500, 20, 30)
    write("yelp", tmp_path / "raw", events, titles)
    path = write_yelp_tar(tmp_path / "tar" / "raw", events, titles, compress)
    options = OPTIONS["yelp"]
    assert splits_of(processed(options, tmp_path / "tar")) == splits_of(
        processed(options, tmp_path)
    )
    assert list(stats_of(tmp_path / "tar" / "data")["raw_sha256"]) == [path.name]


# --------------------------------------------------------------------------------- own tables


def test_own_tables_are_read_in_every_format_and_unit(tmp_path):
    events, titles = random_events(300, 20, 30)
    columns = {"who": [e[0] for e in events], "sku": [e[1] for e in events]}
    times = [e[2] for e in events]
    frame = pl.DataFrame(columns | {"when": times})
    names = pl.DataFrame({"sku": list(titles), "name": list(titles.values())})
    raw = tmp_path / "raw"
    raw.mkdir()
    names.write_ndjson(raw / "names.jsonl")
    (raw / "names.jsonl.zst").write_bytes(zstd.compress((raw / "names.jsonl").read_bytes()))
    dates = pl.from_epoch("when")
    text = dates.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    frame.write_csv(raw / "s.csv")
    frame.with_columns(pl.col("when") * 1000).write_csv(raw / "ms.tsv", separator="\t")
    (raw / "ms.tsv.gz").write_bytes(gzip.compress((raw / "ms.tsv").read_bytes()))
    (raw / "ms.tsv").unlink()
    frame.with_columns(when=text).write_ndjson(raw / "text.jsonl")
    frame.with_columns(when=dates).write_parquet(raw / "dates.parquet")
    frame.with_columns(pl.col("when") * 1_000_000).write_parquet(raw / "us.parquet")
    files = [
        *(("s.csv", "s"), ("ms.tsv", "ms"), ("ms.tsv.gz", "ms"), ("text.jsonl", "text")),
        *(("dates.parquet", "s"), ("dates.parquet", "text"), ("us.parquet", "us")),
    ]
    for name, unit in files:
        for items in ("names.jsonl", "names.jsonl.zst"):
            options = OwnTables(
                **{"events": name, "items": items, "user": "who", "item": "sku"},
                **{"timestamp": "when", "title": "name", "time_unit": unit},
            )
            found = read_raw(options, raw)
            assert found.events.rows() == events, name
            assert found.titles.rows() == list(titles.items())


def test_malformed_rows_of_own_tables_are_counted(tmp_path):
    (tmp_path / "events.csv").write_bytes(
        b"user,item,timestamp\nu,i,1\n,i,2\nu,,3\nu,i,soon\nu,i,-1\nu,i,5,6\nu,\xff,7\n"
        b'\n"u\t""1""","i\nj",8\nu,i\n'
    )
    (tmp_path / "items.csv").write_text("item,title\ni,A\n")
    raw = read_raw(OwnTables(tolerance=0.99), tmp_path)
    assert raw.events.rows() == [("u", "i", 1), ('u\t"1"', "i\nj", 8)]
    assert raw.line_counts["events.csv"] == {
        "lines": 9,
        "more columns than the header": 1,
        "no item": 1,
        "no timestamp": 1,
        "no user": 1,
        "not UTF-8": 1,
        "timestamp is not a number": 1,
        "timestamp is not in 0 .. 253402300799 s since 1970": 1,
    }


# ---------------------------------------------------------------------------------- properties

event_lists = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg"), st.integers(0, 9)),
    min_size=30,
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_raw_rows_does_not_matter(data):
    events = data.draw(event_lists)
    # Items `a` and `b` are listed twice, `b` once without a title.
    titles = [*((i, f"Title {i}") for i in "abcdefg"), ("a", "An other"), ("b", None)]
    options = OwnTables(core=1, max_history=3)
    with TemporaryDirectory() as folder:
        outputs = []
        for name in "12":
            raw = Path(folder, name, "raw")
            raw.mkdir(parents=True)
            order = data.draw(st.permutations(events)), data.draw(st.permutations(titles))
            for file, rows, columns in zip(
                ("events", "items"),
                order,
                (["user", "item", "timestamp"], ["item", "title"]),
                strict=True,
            ):
                frame = pl.DataFrame(rows, schema=columns, orient="row")
                frame.write_csv(raw / f"{file}.csv")
            out = processed(options, raw.parent)
            stats = {k: v for k, v in stats_of(out).items() if k != "raw_sha256"}
            files = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
            outputs.append((stats, files, (out / "audit.json").read_bytes()))
    assert outputs[0] == outputs[1]


@settings(max_examples=40, deadline=None)
@given(
    event_lists,
    st.integers(1, 3),
    st.sampled_from(["chronological", "leave_one_out"]),
    st.sampled_from(["keep", "first"]),
)
def test_histories_are_earlier_events_and_every_event_is_counted(events, core, split, repeats):
    titles = {item: f"Title {item}" for item in "abcdef"}  # g is not listed
    options = OwnTables(core=core, max_history=3, split=split, repeats=repeats)
    with TemporaryDirectory() as folder:
        write("table", Path(folder, "raw"), events, titles)
        try:
            data = processed(options, Path(folder))
        except InputError as error:
            assert "choose a smaller core" in str(error)
            return
        stats, splits = stats_of(data), splits_of(data)
        names = read_items(data)["title"].str.slice(6).to_list()
    dropped = sum(stats["interactions_dropped"].values())
    assert stats["interactions_read"] == len(events) == stats["interactions_kept"] + dropped

    rows = [row for name in SPLITS for row in splits[name]]
    assert sorted(row[0] for row in rows) == list(range(len(rows)))
    users, items = Counter(), Counter()
    for user in {row[1] for row in rows}:
        own = sorted(row for row in rows if row[1] == user)
        sequence = [own[0][2][0], *(row[3] for row in own)]
        users[user] = len(sequence)
        items.update(sequence)
        for n, (_, _, history, _, timestamp) in enumerate(own):
            assert history == sequence[max(0, n - 2) : n + 1]
            assert n == 0 or own[n - 1][4] <= timestamp
    # All events of the core are in the samples, except those of users with one event.
    alone = stats["interactions_kept"] - sum(users.values())
    assert core == 1 or alone == 0
    assert min(users.values()) >= core
    if core > 1:
        assert min(items.values()) >= core
        assert len(items) == len(names)
    if split == "chronological":
        ends = [[row[4] for row in splits[name]] for name in SPLITS]
        assert max(ends[0]) <= min(ends[1]) and max(ends[1]) <= min(ends[2])
    else:
        later = defaultdict(list)
        for name in SPLITS:
            for row in splits[name]:
                later[row[1]].append(name)
        for places in later.values():
            assert places[-2:] == ["train", "valid", "test"][1:][-len(places) :]


# ------------------------------------------------------------------------------------ bad input

BAD = {
    "no reviews": (
        "amazon-2018",
        {f"{CATEGORY}_5.json": None},
        rf"raw: holds no {CATEGORY}_5\.json or",
    ),
    "no metadata": (
        "amazon-2023",
        {f"meta_{CATEGORY}.jsonl": None},
        r"raw: holds no meta_.*; `rere fetch`",
    ),
    "no events": (
        "table",
        {"events.csv": None},
        r"raw: holds no events\.csv.*; name the file of `events`",
    ),
    "an empty file": (
        "yelp",
        {"yelp_academic_dataset_review.json": b""},
        r"review\.json: holds no rows; fetch it again",
    ),
    "no businesses": (
        "yelp",
        {"yelp_academic_dataset_business.json": None},
        r"business\.json, plain or with .*; `rere fetch --source yelp` says where it can be found",
    ),
    "an empty table": ("table", {"items.csv": b""}, r"items\.csv: is empty; correct it"),
    "a header alone": ("table", {"items.csv": b"item,title\n"}, r"items\.csv: holds no rows"),
    "other columns": (
        "table",
        {"events.csv": b"user_id,item,timestamp\nu,i,1\n"},
        r"events\.csv: has no column user; did you mean user_id\?",
    ),
    "reviews that rename the user": (
        "amazon-2018",
        {f"{CATEGORY}_5.json": b'{"user_id": "u", "asin": "B00001", "unixReviewTime": 1}\n'},
        r"_5\.json line 1: no user; 1 of 1 lines are unreadable, .*; is it the right file\?",
    ),
    "milliseconds for seconds": (
        "amazon-2018",
        {f"{CATEGORY}_5.json": b'{"reviewerID": "u", "asin": "B", "unixReviewTime": 1e12}\n'},
        r"line 1: timestamp is not in 0 \.\. 253402300799 s since 1970; 1 of 1",
    ),
    "seconds for milliseconds": (
        "amazon-2023",
        {
            f"{CATEGORY}.jsonl": b'{"user_id": "u", "parent_asin": "B", "timestamp": 1400000000}\n'
            * 9
        },
        r"\.jsonl: its last event is of 1970-01-17, too early for ms; fetch it again",
    ),
    "reviews for metadata": (
        "amazon-2018",
        {f"meta_{CATEGORY}.json": b'{"reviewerID": "u", "asin": "B00001", "unixReviewTime": 1}\n'},
        r"meta_.*: no line has a title; name the file of titles",
    ),
    "metadata for reviews": (
        "amazon-2023",
        {f"{CATEGORY}.jsonl": b'{"parent_asin": "B00001", "title": "x"}\n'},
        r"\.jsonl line 1: no user; 1 of 1",
    ),
    "metadata of another category": (
        "amazon-2018",
        {f"meta_{CATEGORY}.json": b'{"asin": "X", "title": "x"}\n'},
        r"meta_.*: has a title for none of the 300 events of .*; is it of the same items\?",
    ),
    "a damaged gzip file": (
        "amazon-2018",
        {f"{CATEGORY}_5.json": b"\x1f\x8bnot gzip"},
        r"_5\.json: cut short or damaged",
    ),
    "a damaged parquet file": (
        "table",
        {"events.csv": None, "events.parquet": b"PAR1"},
        r"events\.parquet: not a readable parquet file",
    ),
    "an unclosed quote": (
        "table",
        {"items.csv": b'item,title\nB00001,"x\nB00002,y\n'},
        r"items\.csv line 2: broken quotes; 1 of 2 lines are unreadable",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_give_one_line_and_no_output(case, tmp_path):
    source, changes, message = BAD[case]
    events, titles = random_events(300, 20, 30)
    write(source, tmp_path / "raw", events, titles)
    for name, content in changes.items():
        if content is None:
            (tmp_path / "raw" / name).unlink()
        else:
            (tmp_path / "raw" / name).write_bytes(content)
    options = OPTIONS[source]
    if "events.parquet" in changes:
        options = options.model_copy(update={"events": "events.parquet"})
    with pytest.raises(InputError, match=message) as error:
        processed(options, tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_unusual_values_are_kept(tmp_path):
    unusual = ["u\tv", 'u"v', "u\\v", " u ", "ü" * 300, "\x00", "-1"]
    titles = {
        "newline": "two\nlines",
        "control": "be\x07ll",
        "escaped": "R&amp;B",
        "no letters": "!?",
        "10 k": "x" * 10_000,
        "words": "word " * 10_000,
    }
    events = [(user, item, n) for n, user in enumerate(unusual) for item in titles]
    write("amazon-2023", tmp_path / "raw", events, titles)
    options = OPTIONS["amazon-2023"].model_copy(update={"core": 1})
    with pytest.raises(InputError, match="its last event is of 1970-01-01"):
        processed(options, tmp_path)
    events = [(user, item, 1_500_000_000 + n) for user, item, n in events]
    write("amazon-2023", tmp_path / "raw", events, titles)
    data = processed(options, tmp_path)
    assert set(read_items(data)["title"]) == {"two lines", "be ll", "R&B", "!?"}
    assert stats_of(data)["users"] == len(unusual)
