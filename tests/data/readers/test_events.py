"""Records are checked, and unreadable ones counted, up to the tolerance."""

from pathlib import Path

import polars as pl
import pytest

from rere.data.readers import text_files
from rere.data.readers.events import parse_times, read_events, read_titles
from rere.data.readers.json_lines import read_json_records
from rere.data.readers.text_files import LineCounter
from rere.errors import InputError


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1400000000", "s", 1_400_000_000),
        (" 5.9 ", "s", 5),
        ("-0.5", "s", -1),
        ("1e3", "s", 1000),
        ("1400000000999", "ms", 1_400_000_000),
        ("1400000000999999", "us", 1_400_000_000),
        *((text, "s", None) for text in ("", "x", "nan", "inf", "2021-03-04", "9" * 30)),
        ("2021-03-04 05:06:07", "text", 1_614_834_367),
        ("2021-03-04T05:06:07.9Z", "text", 1_614_834_367),
        ("2021-03-04 05:06:07 UTC", "text", 1_614_834_367),
        ("2021-03-04T05:06:07+02:00", "text", 1_614_827_167),
        ("2021-03-04 05:06", "text", 1_614_834_360),
        ("2021-03-04", "text", 1_614_816_000),
        *((text, "text", None) for text in ("", "x", "1614834367", "2021-13-04", "04/03/2021")),
    ],
)
def test_times_become_utc_seconds(text, unit, value):
    assert pl.DataFrame({"t": [text]}).select(parse_times(pl.col("t"), unit)).item() == value


def write(path: Path, content: str, tolerance: float) -> LineCounter:
    path.write_text(content)
    return LineCounter(path, tolerance)


EVENT_FIELDS = {"user": "u", "item": "i", "timestamp": "t"}


def events(path: Path, content: str, tolerance: float = 0.5) -> list[tuple]:
    """The events of a file of JSON lines with `content`."""
    counter = write(path, content, tolerance)
    return read_events(read_json_records(path, EVENT_FIELDS, counter), counter, "s").rows()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"u": " ", "i": "i", "t": 1}', "no user"),
        ('{"u": "u", "t": 1}', "no item"),
        ('{"u": "u", "i": "i"}', "no timestamp"),
        ('{"u": "u", "i": "i", "t": "soon"}', "timestamp is not a number"),
        ('{"u": "u", "i": "i", "t": true}', "timestamp is not a number"),
        ('{"u": "u", "i": "i", "t": -1}', "timestamp is not in 0 .. 253402300799 s since 1970"),
        (
            '{"u": "u", "i": "i", "t": 1400000000000}',
            "timestamp is not in 0 .. 253402300799 s since 1970",
        ),
        ('{"u": "u", "i": ["i"], "t": 1}', "not a JSON object of plain values"),
    ],
)
def test_a_malformed_event_is_counted_and_named(line, fault, tmp_path, caplog):
    good = '{"u": "u", "i": "i", "t": 1}\n'
    path = tmp_path / "a"
    assert events(path, f"{good}\n{line}\n") == [("u", "i", 1)]
    assert caplog.messages == [f"{path} line 3: {fault}: {line!r}"]
    with pytest.raises(InputError) as error:
        events(path, f"{good}\n{line}\n", tolerance=0.4)
    assert str(error.value).startswith(
        f"{path} line 3: {fault}; 1 of 2 lines are unreadable, more than the tolerated fraction "
        "of 0.4; "
    )


def test_reading_a_wrong_file_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 100)
    path = tmp_path / "a"
    with pytest.raises(InputError, match=r"a line 1: no user; \d of \d lines are unreadable"):
        events(path, '{"asin": "i", "title": "x"}\n' * 1000)


def test_a_file_of_titles_without_titles_is_refused(tmp_path):
    path = tmp_path / "a"
    counter = write(path, '{"i": "a", "rating": 5}\n' * 3, 0.0)
    with pytest.raises(InputError, match=r"a: no line has a title; name the file of titles"):
        read_titles(read_json_records(path, {"item": "i", "title": "t"}, counter), counter)


def test_an_empty_file_is_refused(tmp_path):
    for content in ("", "\n\n"):
        with pytest.raises(InputError, match=r"a: holds no rows; fetch it again"):
            events(tmp_path / "a", content)
