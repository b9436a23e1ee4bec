"""All layouts of MovieLens give the same events and titles."""

import re
from pathlib import Path

import polars as pl
import pytest

from rere.config.data import MovieLens
from rere.data.readers.movielens import read_movielens
from rere.errors import InputError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
GENRES = "|0" * 19

EVENTS = [("196", "242", 881250949), ("186", "7", 891717742), ("196", "7", 0)]
TITLES = [
    ("7", 'Say "Misérables", Les (1995)'),
    ("242", "Land Before Time III (1995) (V)"),
    ("267", "unknown"),
]
RECBOLE = {
    "ml-100k.inter": INTER + "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in EVENTS),
    "ml-100k.item": ITEM
    + '7\tSay "Misérables", Les\t1995\tDrama\n'
    + "242\tLand Before Time III (1995)\tV\tAnimation Children's\n"
    + "267\tunkonwn\tunkonwn\tunknown\n",
}
GROUPLENS = {
    "u.data": "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in EVENTS),
    "u.item": "".join(f"{i}|{title}|01-Jan-1995||http://x{GENRES}\n" for i, title in TITLES),
}
GROUPLENS_1M = {
    "ratings.dat": "".join(f"{u}::{i}::3::{t}\n" for u, i, t in EVENTS),
    "movies.dat": "".join(f"{i}::{title}::Drama|War\n" for i, title in TITLES),
}
GROUPLENS_20M = {
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    + "".join(f"{u},{i},3.5,{t}\n" for u, i, t in EVENTS),
    "movies.csv": "movieId,title,genres\n"
    + '7,"Say ""Misérables"", Les (1995)",Drama\n'
    + "242,Land Before Time III (1995) (V),Animation\n267,unknown,\n",
}
LAYOUTS = {
    "recbole": RECBOLE,
    "recbole-1m": {name.replace("100k", "1m"): text for name, text in RECBOLE.items()},
    "grouplens": GROUPLENS,
    "grouplens-1m": GROUPLENS_1M,
    "grouplens-20m": GROUPLENS_20M,
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    raw = read_movielens(MovieLens(), folder)
    return raw.events, raw.titles


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        encoding = "latin-1" if name in ("u.item", "movies.dat") else "utf-8"
        bytes_ = content if isinstance(content, bytes) else content.encode(encoding)
        (folder / name).write_bytes(bytes_)
    return folder


@layouts
def test_all_layouts_give_the_same_events_and_titles(tmp_path, layout):
    events, titles = read(write(tmp_path / "raw", layout))
    assert events.rows() == EVENTS
    assert events.schema == {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
    assert titles.rows() == TITLES
    assert titles.schema == {"item": pl.String, "title": pl.String}


@layouts
def test_line_ends_blank_lines_and_utf8_of_editors_are_read(tmp_path, layout):
    edited = {
        name: ("\ufeff" + text.replace("\n", "\r\n") + "\r\n").encode()
        for name, text in layout.items()
    }
    events, titles = read(write(tmp_path / "raw", edited))
    assert (events.rows(), titles.rows()) == (EVENTS, TITLES)


def test_columns_may_be_in_any_order(tmp_path):
    swapped = {
        "ml-100k.inter": "timestamp:float\titem_id:token\tuser_id:token\n5\t7\t196\n",
        "ml-100k.item": "release_year:token\tmovie_title:token\titem_id:token\n1995\tA  b \t7\n",
    }
    events, titles = read(write(tmp_path / "raw", swapped))
    assert events.rows() == [("196", "7", 5)]
    assert titles.rows() == [("7", "A  b  (1995)")]  # cleaned later, like all titles


def test_ml_100k_is_equal_in_both_layouts(tmp_path, ml_100k_raw):
    events, titles = read(ml_100k_raw)
    assert (len(events), len(titles)) == (100_000, 1_682)
    by_id = dict(titles.rows())
    assert by_id["12"] == "Usual Suspects, The (1995)"
    assert by_id["267"] == "unknown"
    assert by_id["1412"] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert not [t for t in by_id.values() if not re.search(r" \((\d{4}|V)\)$", t)][1:]

    lines = (ml_100k_raw / "ml-100k.inter").read_text().splitlines()[1:]
    grouplens = {
        "u.data": "\n".join(lines) + "\n",
        "u.item": "".join(f"{i}|{t}|01-Jan-1995||http://x{GENRES}\n" for i, t in titles.rows()),
    }
    same_events, same_titles = read(write(tmp_path / "raw", grouplens))
    assert same_events.equals(events)
    assert same_titles.equals(titles)


def changed(layout, name, old, new):
    assert old in layout[name]
    return {**layout, name: layout[name].replace(old, new, 1)}


def without(layout, name):
    return {key: text for key, text in layout.items() if key != name}


BAD = {
    "empty folder": ({}, "", "holds none of ml-100k.inter and ml-100k.item"),
    "no events file": (without(RECBOLE, "ml-100k.inter"), "ml-100k.inter", "no such file"),
    "no titles file": (without(GROUPLENS, "u.item"), "u.item", "no such file"),
    "empty file": ({**GROUPLENS, "u.data": ""}, "u.data", "holds no rows"),
    "header alone": ({**RECBOLE, "ml-100k.inter": INTER}, "ml-100k.inter", "holds no rows"),
    "no header": (
        changed(RECBOLE, "ml-100k.inter", INTER, ""),
        "ml-100k.inter line 1",
        "the header has no column user_id",
    ),
    "truncated events": (
        {**RECBOLE, "ml-100k.inter": RECBOLE["ml-100k.inter"] + "186\t7\t"},
        "ml-100k.inter line 5",
        "3 columns, not 4",
    ),
    "truncated titles": (
        {**GROUPLENS, "u.item": GROUPLENS["u.item"] + "9|Heat"},
        "u.item line 4",
        "2 columns, not 24",
    ),
    "tab in a title": (
        changed(RECBOLE, "ml-100k.item", "Misérables", "Mis\térables"),
        "ml-100k.item line 2",
        "5 columns, not 4",
    ),
    "no user": (
        changed(GROUPLENS, "u.data", "186\t", "\t"),
        "u.data line 2",
        "no user",
    ),
    "not a number": (
        changed(GROUPLENS, "u.data", "891717742", "8917x"),
        "u.data line 2",
        "timestamp is not a number",
    ),
    "negative timestamp": (
        changed(RECBOLE, "ml-100k.inter", "891717742", "-1"),
        "ml-100k.inter line 3",
        "timestamp is not in 0 .. 253402300799 s since 1970",
    ),
    "milliseconds": (
        changed(RECBOLE, "ml-100k.inter", "891717742", "891717742000"),
        "ml-100k.inter line 3",
        "timestamp is not in 0 .. 253402300799 s since 1970",
    ),
    "not UTF-8": (
        {**RECBOLE, "ml-100k.item": RECBOLE["ml-100k.item"].encode("latin-1")},
        "ml-100k.item line 2",
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_give_one_line_with_file_row_and_remedy(tmp_path, case):
    files, location, problem = BAD[case]
    folder = write(tmp_path / "raw", files)
    with pytest.raises(InputError) as error:
        read(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / location}: {problem}")
    assert "\n" not in message
    assert "fetch" in message.split(";")[-1]
