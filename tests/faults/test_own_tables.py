"""Own tables: every row is read or counted, and what is wrong is named with its line and remedy."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rere.config.data import OwnTables
from rere.data.preprocess import preprocess
from rere.data.readers import text_files
from rere.data.readers.own_tables import read_own_tables
from rere.errors import InputError

EVENTS = "user,item,timestamp\n"
GOOD = [f"u{n % 3},{n % 5},{n}" for n in range(60)]


def write(folder: Path, events: str | bytes, items: str | bytes, kind: str = "csv") -> Path:
    """Write a file of events and one of items into a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in (("events", events), ("items", items)):
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.{kind}").write_bytes(data)
    return folder


def titles_of(folder: Path, items: str | bytes, kind: str = "csv", **options) -> dict:
    """The titles read from a file of items."""
    events = (EVENTS + "u,1,1\n").replace(",", {"csv": ",", "tsv": "\t"}[kind])
    write(folder, events, items, kind)
    made = OwnTables(events=f"events.{kind}", items=f"items.{kind}", **options)
    return dict(read_own_tables(made, folder).titles.rows())


def refusal(folder: Path, **options) -> str:
    """The message of the error that reading gives."""
    with pytest.raises(InputError) as error:
        read_own_tables(OwnTables(**options), folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff"])
def test_ids_lose_blanks_at_both_ends(tmp_path, blank):
    events = EVENTS + "".join(f"{u}{blank},{blank}{i},{t}\n" for u, i, t in map(split, GOOD))
    items = "item,title\n" + "".join(f"{blank}{n}{blank},Title {n}\n" for n in range(5))
    write(tmp_path / "a", events, items)
    write(tmp_path / "b", EVENTS + "\n".join(GOOD), items)
    found, plain = (read_own_tables(OwnTables(), tmp_path / name) for name in "ab")
    assert found.events.equals(plain.events)
    assert found.titles.rows() == [(str(n), f"Title {n}") for n in range(5)]


def split(row: str) -> list[str]:
    return row.split(",")


def test_ids_of_json_and_parquet_lose_blanks_too(tmp_path):
    rows = {"user": ["u "], "item": [" 7"], "timestamp": [1]}
    pl.DataFrame(rows).write_parquet(tmp_path / "events.parquet")
    (tmp_path / "items.jsonl").write_text('{"item": "7\\u00a0", "title": "Seven "}\n')
    raw = read_own_tables(OwnTables(events="events.parquet", items="items.jsonl"), tmp_path)
    assert raw.events.rows() == [("u", "7", 1)]
    assert raw.titles.rows() == [("7", "Seven ")]


def test_events_of_unlisted_items_are_counted_in_the_audit_and_the_log(tmp_path, caplog):
    # Neither `03` nor the wide digit is item 3.
    events = EVENTS + "\n".join([*GOOD, "u1,03,7", "u1,\uff13,8", "u2,03,9"])
    items = "item,title\n" + "".join(f"{n},Title {n}\n" for n in range(5))
    write(tmp_path / "raw", events, items)
    preprocess(OwnTables(), tmp_path / "raw", tmp_path / "data")
    audit = json.loads((tmp_path / "data" / "audit.json").read_text())
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert audit["events_of_unlisted_items"] == 3
    assert stats["interactions_dropped"]["of an item not listed"] == 3
    assert caplog.messages == [
        f"{tmp_path}/raw/events.csv: 3 of 63 events are dropped, of 2 items that items.csv does "
        "not list, such as '03'"
    ]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item", [7.0], "column item holds Float64; cast it to integers or text"),
        ("item", [True], "column item holds Boolean; cast it to integers or text"),
        ("user", pl.Series([1], dtype=pl.Decimal(9, 2)), r"column user holds Decimal.*cast it to"),
        ("user", pl.Series([1]).cast(pl.Date), "column user holds Date; cast it to"),
        ("item", [[7]], r"column item holds List\(Int64\); cast it to"),
        ("timestamp", [True], "column timestamp holds Boolean; cast it to numbers, dates or text"),
        ("timestamp", pl.Series([1]).cast(pl.Time), "column timestamp holds Time; cast it to"),
    ],
)
def test_columns_of_parquet_are_not_rounded(tmp_path, column, values, message):
    columns = {"user": ["u"], "item": ["7"], "timestamp": [1]}
    pl.DataFrame(columns | {column: values}).write_parquet(tmp_path / "events.parquet")
    pl.DataFrame({"item": ["7"], "title": ["Seven"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match=rf"events\.parquet: {message}"):
        read_own_tables(OwnTables(events="events.parquet", items="items.parquet"), tmp_path)


@pytest.mark.parametrize("kind", [pl.UInt8, pl.Int128, pl.UInt64, pl.Categorical, pl.String])
def test_integers_and_text_of_any_kind_are_ids(tmp_path, kind):
    ids = pl.Series(["7", "8"]) if kind in (pl.Categorical, pl.String) else pl.Series([7, 8])
    times = pl.Series([1, 2]).cast(pl.Decimal(10, 0))
    frame = pl.DataFrame({"user": ids.cast(kind), "item": ids.cast(kind), "timestamp": times})
    frame.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "items.csv").write_text("item,title\n7,Seven\n8,Eight\n")
    raw = read_own_tables(OwnTables(events="events.parquet"), tmp_path)
    assert raw.events.rows() == [("7", "7", 1), ("8", "8", 2)]


# --------------------------------------------------------------------------------------- quotes


def test_a_title_that_opens_with_a_quote_swallows_no_rows(tmp_path):
    rows = [f'{n},"Big" title {n}' if n == 3 else f"{n},Title {n}" for n in range(20)]
    rows[5], rows[12] = '5,"24 inch', '12,screen of 24"'
    content = "item,title\n" + "\n".join(rows) + "\n"
    found = titles_of(tmp_path, content, tolerance=0.2)
    assert found == {
        **{str(n): f"Title {n}" for n in range(20) if n not in (3, 5, 12)},
        "12": 'screen of 24"',
    }
    write(tmp_path, EVENTS + "u,1,1\n", content)
    assert refusal(tmp_path) == (
        f"{tmp_path}/items.csv line 5: broken quotes; 2 of 20 lines are unreadable, more than the "
        "tolerated fraction of 0.001; is it the right file? If so, set `quote: none` if quotes are "
        "plain characters or raise `tolerance`"
    )
    found = titles_of(tmp_path, content, quote="none")
    assert found["5"] == '"24 inch' and found["3"] == '"Big" title 3' and len(found) == 20


def test_quotes_enclose_separators_or_line_ends(tmp_path):
    content = (
        'item,title\n1,"a, b"\n2,"two\n\nlines"\r\n3,"say ""hi"", you"\n"4","plain"\n5,24" wide\n'
        '"6",""\n7,"""x"""\n'
    )
    assert titles_of(tmp_path, content) == {
        "1": "a, b",
        "2": "two\nlines",
        "3": 'say "hi", you',
        "4": "plain",
        "5": '24" wide',
        "6": "",
        "7": '"x"',
    }


def test_tsv_may_be_unquoted(tmp_path):
    content = 'item\ttitle\n1\t"a, b\n2\t"b"\n3\tc"\n'
    assert titles_of(tmp_path, content, "tsv", quote="none") == {
        "1": '"a, b',
        "2": '"b"',
        "3": 'c"',
    }
    assert titles_of(tmp_path, content, "tsv", tolerance=0.5) == {"2": "b", "3": 'c"'}


def test_a_quoted_field_may_cross_blocks(tmp_path, monkeypatch):
    content = "item,title\n" + "".join(f'{n},"a{n}\nb\nc"\n{n + 1},d\n' for n in range(0, 40, 2))
    expected = titles_of(tmp_path, content)
    assert expected["38"] == "a38\nb\nc" and len(expected) == 40
    for size in (1, 7, 30):
        monkeypatch.setattr(text_files, "BLOCK", size)
        assert titles_of(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("", "items.csv: is empty"),
        ("\n\n", "items.csv: is empty"),
        ("item,title\n", "items.csv: holds no rows; correct it"),
        ("item,title,item\n1,a,2\n", "items.csv line 1: has two columns item; rename one of them"),
        ('item,"title\n1,a\n', "items.csv line 1: broken quotes in the header; correct it"),
        ("Item,title\n1,a\n", "items.csv: has no column item; did you mean Item?"),
        (b"item,t\xeftle\n1,a\n", "items.csv line 1: not UTF-8; name its `encoding`"),
    ],
)
def test_headers_are_checked(tmp_path, items, message):
    write(tmp_path, EVENTS + "u,1,1\n", items)
    assert refusal(tmp_path).startswith(f"{tmp_path}/{message}")


# ------------------------------------------------------------------------------------- encoding


def test_latin_1_is_named_with_its_line_and_remedy_and_read_if_told(tmp_path):
    content = "item,title\n1,Alpha\n2,Café\n3,Piñata\n"
    write(tmp_path, EVENTS + "u,1,1\n", content.encode("latin-1"))
    message = refusal(tmp_path)
    assert message.startswith(
        f"{tmp_path}/items.csv line 3: not UTF-8; 2 of 3 lines are unreadable"
    )
    assert message.endswith("If so, name its `encoding` (such as latin-1) or raise `tolerance`")
    assert "fetch" not in message
    expected = {"1": "Alpha", "2": "Café", "3": "Piñata"}
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-8-sig", "utf-16-be"):
        for kind in ("csv", "tsv"):
            text = content.replace(",", "\t") if kind == "tsv" else content
            events = (EVENTS + "u,1,1\n").replace(",", "\t" if kind == "tsv" else ",")
            write(tmp_path, events.encode(encoding), text.encode(encoding), kind)
            options = OwnTables(events=f"events.{kind}", items=f"items.{kind}", encoding=encoding)
            raw = read_own_tables(options, tmp_path)
            assert dict(raw.titles.rows()) == expected, (encoding, kind)
            assert raw.events.rows() == [("u", "1", 1)]


def test_json_lines_of_another_encoding_are_read(tmp_path):
    write(tmp_path, EVENTS + "u,1,1\n", "")
    line = '{"item": 1, "title": "Café \x85"}\n'
    (tmp_path / "items.jsonl").write_bytes(line.encode("latin-1"))
    raw = read_own_tables(OwnTables(items="items.jsonl", encoding="latin-1"), tmp_path)
    assert raw.titles.rows() == [("1", "Café \x85")]
    assert "line 1: not UTF-8; 1 of 1" in refusal(tmp_path, items="items.jsonl")


def test_bytes_that_are_not_in_the_encoding_are_counted(tmp_path):
    write(tmp_path, EVENTS + "u,1,1\n", b"item,title\n1,a\n2,\x81\n")  # not in cp1252
    message = refusal(tmp_path, encoding="cp1252")
    assert message.startswith(f"{tmp_path}/items.csv line 3: not CP1252; 1 of 2 lines")
    # Its two-byte units have no line ends to name a line by.
    message = refusal(tmp_path, encoding="utf-16")
    assert message.startswith(f"{tmp_path}/events.csv: not utf-16 (")
    assert message.endswith("; name its `encoding`")


@pytest.mark.parametrize("name", ["klingon", "zlib", "base64", "", "undefined", "a\0b"])
def test_unknown_encodings_are_refused(name):
    with pytest.raises(ValueError, match=r"Python knows no encoding|holds a null character"):
        OwnTables(encoding=name)


# ---------------------------------------------------------------------------------------- times

DAY = 1_500_000_000


@pytest.mark.parametrize(
    "time", ["1500000000000", "1500000000000000", "1500000000000000000", "-1", "-1e12", "9e18"]
)
def test_times_of_another_unit_are_refused_with_their_row(tmp_path, time):
    items = "item,title\n1,Alpha\n"
    write(tmp_path, f"{EVENTS}u,1,{DAY}\nu,1,{time}\n", items)
    message = refusal(tmp_path)
    assert message.startswith(
        f"{tmp_path}/events.csv line 3: timestamp is not in 0 .. 253402300799 s since 1970; "
    )
    assert "If so, set `time_unit` (s, ms, us, ns or text) or raise `tolerance`" in message


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_are_read_in_every_unit_and_seconds_are_not_taken_for_one(tmp_path, unit):
    factor = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    items = "item,title\n1,Alpha\n"
    # The last nanosecond of a second would round up as a float.
    write(tmp_path, f"{EVENTS}u,1,{DAY * factor + factor - 1}\nu,1,{DAY}.5e3\n", items)
    raw = read_own_tables(OwnTables(time_unit=unit, tolerance=0.5), tmp_path)
    assert raw.events["timestamp"].to_list() == [DAY, DAY * 1000 // factor]
    write(tmp_path, f"{EVENTS}u,1,{DAY}\n", items)
    assert f", too early for {unit}; set `time_unit` (" in refusal(tmp_path, time_unit=unit)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "text"])
@pytest.mark.parametrize("kind", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_dates_of_parquet_need_no_unit(tmp_path, unit, kind, zone):
    when = pl.Series([DAY * 10**6]).cast(pl.Datetime("us")).cast(pl.Datetime(kind))
    when = when if zone is None else when.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    frame = pl.DataFrame({"user": ["u"], "item": [1], "timestamp": when})
    frame.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "items.csv").write_text("item,title\n1,Alpha\n")
    options = OwnTables(events="events.parquet", time_unit=unit)
    assert read_own_tables(options, tmp_path).events["timestamp"].to_list() == [DAY]


def test_lines_of_parquet_count_from_1(tmp_path, caplog):
    frame = pl.DataFrame({"user": ["u", " ", "v"], "item": [1, 1, 1], "timestamp": [DAY] * 3})
    frame.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "items.csv").write_text("item,title\n1,Alpha\n")
    read_own_tables(OwnTables(events="events.parquet", tolerance=0.5), tmp_path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{tmp_path}/events.parquet line 2: no user")


def test_a_panic_of_polars_is_one_line(tmp_path, monkeypatch):
    def panic(*_):
        raise pl.exceptions.PanicException("out of bounds")

    write(tmp_path, EVENTS, "item,title\n1,Alpha\n")
    (tmp_path / "events.parquet").touch()
    monkeypatch.setattr("rere.data.readers.own_tables.scan_parquet", panic)
    assert refusal(tmp_path, events="events.parquet") == (
        f"{tmp_path}/events.parquet: not a readable parquet file (out of bounds); make it again"
    )


# ----------------------------------------------------------------------------------------- fuzz

BYTES = [b"u", b"1", b'"', b'""', b",", b"\t", b"\n", b"\r\n", b"\xff", "é".encode(), b" ", b"\x00"]


@pytest.mark.fuzz
@given(
    st.lists(st.lists(st.sampled_from(BYTES), max_size=6).map(b"".join), max_size=12),
    st.sampled_from(["csv", "tsv"]),
    st.sampled_from(["double", "none"]),
    st.sampled_from(["utf-8", "latin-1"]),
    st.integers(1, 30),
)
@example([b'u,"', b'",u', b'u,"u'], "csv", "double", "utf-8", 3)
def test_any_rows_are_read_or_counted_and_good_ones_never_vanish(rows, kind, quote, encoding, size):
    separator = b"\t" if kind == "tsv" else b","
    content = separator.join([b"user", b"item", b"timestamp"]) + b"\n"
    for n, row in enumerate(rows):
        content += row + b"\n" + separator.join([b"good", b"%d" % n, b"7"]) + b"\n"
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", size)
        items = separator.join([b"item", b"title"]) + b"\n" + separator.join([b"1", b"One"])
        folder = write(Path(name), content, items, kind)
        options = OwnTables(
            **{"events": f"events.{kind}", "items": f"items.{kind}", "quote": quote},
            **{"encoding": encoding, "tolerance": 0.99},
        )
        try:
            raw = read_own_tables(options, folder)
        except InputError as error:
            assert "events." in str(error) and "\n" not in str(error)
            return
    good = [event for event in raw.events.rows() if event[0] == "good"]
    assert [item for _, item, _ in good if item.isdecimal()] == [str(n) for n in range(len(rows))]
    counts = dict(raw.line_counts[f"events.{kind}"])
    assert counts.pop("lines") == len(raw.events) + sum(counts.values())
