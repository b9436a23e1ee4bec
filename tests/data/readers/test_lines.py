import gzip
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rere.data.readers import lines as module
from rere.data.readers.lines import Tally, find, line_blocks, opened, without_blank
from rere.data.readers.records import decode, json_records, parse, read_events, read_titles, seconds
from rere.errors import InputError


def lines_of(path: Path, fallback: str | None = None) -> list[tuple[int, str | None]]:
    with opened(path) as file:
        blocks = [without_blank(lines) for lines in line_blocks(file, path, fallback)]
    return [row for block in blocks for row in block.select("line", "text").rows()]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]))),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([bytes, gzip.compress, zstd.compress]),
    st.integers(1, 40),
)
@example(["é" * 30, "", " ", "last"], "\n", False, gzip.compress, 7)
def test_blocks_have_all_lines_with_their_numbers(texts, end, closed, compress, size):
    content = end.join(texts) + (end if closed and texts else "")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        found = lines_of(written(Path(folder, "a"), compress(content.encode())))
    # To Python U+001C .. U+001F are white space, to Unicode they are not.
    blank = [not t.strip() and not set(t) & set("\x1c\x1d\x1e\x1f") for t in texts]
    assert found == [(n, t) for n, t in enumerate(texts, 1) if not blank[n - 1]]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert lines_of(written(tmp_path / "a", "\ufeffa\nb".encode())) == [(1, "a"), (2, "b")]


def test_lines_that_are_not_utf8(tmp_path):
    path = written(tmp_path / "a", b"a\r\nM\xe9\r\n\xc3\xa9\n")
    assert lines_of(path) == [(1, "a"), (2, None), (3, "é")]
    assert lines_of(path, "latin-1") == [(1, "a"), (2, "Mé"), (3, "é")]


def test_a_compressed_file_that_is_cut_short_or_damaged(tmp_path):
    text = bytes(range(256)) * 9
    whole, other = gzip.compress(text), zstd.compress(text)
    for content in (whole[:99], whole[:30] + b"??" + whole[32:], whole[:-1], other[:99]):
        path = written(tmp_path / "a", content)
        with pytest.raises(InputError) as error:
            lines_of(path)
        assert str(error.value).startswith(f"{path}: cut short or damaged (")
        assert "fetch it again" in str(error.value)


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE", 1 << 20)
    path = written(tmp_path / "a", b"x" * (3 << 20))
    with pytest.raises(InputError, match="a line of more than 1 MB"):
        lines_of(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"holds no a\.json or b\.json, as it is or with \.gz"):
        find(tmp_path, "a.json", "b.json")
    written(tmp_path / "b.json.zst", b"")
    assert find(tmp_path, "a.json", "b.json").name == "b.json.zst"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "b.json.zst", "b.json.zst")
    with (
        pytest.raises(InputError, match=r"a\.tar: holds no b\.json; fetch it again"),
        opened(tmp_path / "a.tar", "b.json"),
    ):
        pass


# ------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('{"a": 1, "b": "x", "c": [1]}', ("1", "x")),
        (' {"a": 1400000000.0} ', ("1400000000", None)),
        ('{"a": null, "b": true}', (None, "true")),
        ("{}", (None, None)),
        ('{"a": "\\u00e9\\n\\"\\\\"}', ('é\n"\\', None)),
        ('{"a": ["q"]}', None),
        ('{"b": {"q": 1}}', None),
        ('{"a": 1', None),
        ('{"a": 1} x', None),
        ('{"a": 1}{"a": 2}', None),
        ('{"a": 1}, {"a": 2}', None),
        ('"b": 2}', None),
        ("[1]", None),
        ("7", None),
        ("null", None),
        ('{"a": NaN}', None),
        ('{"a": "raw\ttab"}', None),
        ("[" * 5000, None),
        ("{'a': 'it\\'s', 'b': 3}", ("it's", "3")),
        ("{'a': None, 'c': [1]}", (None, None)),
        ("{'a': ['q']}", None),
        ("{'a': f(1)}", None),
        ("{'a': " * 5000 + "}", None),
        (None, None),
    ],
)
def test_parse(line, values):
    lines = pl.Series([line, '{"a": "ok"}', line], dtype=pl.String)
    expected = None if values is None else dict(zip("ab", values, strict=True))
    assert parse(lines, ("a", "b")).to_list() == [expected, {"a": "ok", "b": None}, expected]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(['{"a": 1}', '{"a": ', '{"a": 1}, {"a": 2}', "{", "}"]), min_size=1)
)
def test_broken_lines_are_found_wherever_they_are(lines):
    found = decode(pl.Series(lines), pl.Struct({"a": pl.String}))
    assert [record is not None for record in found.to_list()] == [x == '{"a": 1}' for x in lines]


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
def test_seconds(text, unit, value):
    assert pl.DataFrame({"t": [text]}).select(seconds(pl.col("t"), unit)).item() == value


def tally_of(path: Path, tolerance: float, content: str) -> Tally:
    path.write_text(content)
    return Tally(path, tolerance)


EVENT = {"user": "u", "item": "i", "timestamp": "t"}


def events(path: Path, content: str, tolerance: float = 0.5, unit: str = "s") -> list[tuple]:
    tally = tally_of(path, tolerance, content)
    return read_events(json_records(path, EVENT, tally), tally, unit).rows()


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
def test_an_event_that_is_none_is_named(line, fault, tmp_path, capsys):
    good = '{"u": "u", "i": "i", "t": 1}\n'
    path = tmp_path / "a"
    assert events(path, f"{good}\n{line}\n") == [("u", "i", 1)]
    assert capsys.readouterr().err == f"{path} line 3: {fault}: {line!r}\n"
    with pytest.raises(InputError) as error:
        events(path, f"{good}\n{line}\n", tolerance=0.4)
    assert str(error.value).startswith(
        f"{path} line 3: {fault}; 1 of 2 lines are unreadable, which is more than the tolerated "
        "share of 0.4; "
    )


def test_the_wrong_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 100)
    path = tmp_path / "a"
    with pytest.raises(InputError, match=r"a line 1: no user; \d of \d lines are unreadable"):
        events(path, '{"asin": "i", "title": "x"}\n' * 1000)


def test_files_of_titles_without_titles(tmp_path):
    path = tmp_path / "a"
    tally = tally_of(path, 0.0, '{"i": "a", "rating": 5}\n' * 3)
    with pytest.raises(InputError, match=r"a: no line has a title; name the file of titles"):
        read_titles(json_records(path, {"item": "i", "title": "t"}, tally), tally)


def test_an_empty_file(tmp_path):
    for content in ("", "\n\n"):
        with pytest.raises(InputError, match=r"a: holds no rows; fetch it again"):
            events(tmp_path / "a", content)
