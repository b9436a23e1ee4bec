"""Read MovieLens in any of its layouts.

    RecBole          ml-100k.inter, ml-100k.item; ml-1m likewise    header with names and types
    GroupLens 100K   u.data, u.item                                 tab- and pipe-separated
    GroupLens 1M     ratings.dat, movies.dat                        separated by `::`
    GroupLens 20M+   ratings.csv, movies.csv                        CSV

Only the last one is CSV: in the others quotes have no meaning.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.config.data import MovieLens
from rere.data.readers.delimited import read_delimited_records
from rere.data.readers.events import RawData, drop_unreadable, read_events, read_titles
from rere.data.readers.text_files import (
    UTF8,
    LineCounter,
    drop_blank,
    find_plain_or_compressed,
    not_text,
    open_decompressed,
    read_lines,
)
from rere.errors import InputError


class Layout(NamedTuple):
    """Files of events and titles, their separators, and their columns if they have no header."""

    files: tuple[str, str]
    separators: tuple[str, str]
    events: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()


RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
U_ITEM_COLUMNS = ("item_id", "title", "released", "video", "url", *(f"genre{i}" for i in range(19)))
RECBOLE_TITLE_COLUMNS = ("movie_title", "release_year")
LAYOUTS = (
    Layout(("ml-100k.inter", "ml-100k.item"), ("\t", "\t")),
    Layout(("ml-1m.inter", "ml-1m.item"), ("\t", "\t")),
    Layout(("u.data", "u.item"), ("\t", "|"), RATING_COLUMNS, U_ITEM_COLUMNS),
    Layout(
        ("ratings.dat", "movies.dat"),
        ("::", "::"),
        RATING_COLUMNS,
        ("item_id", "title", "genres"),
    ),
    Layout(("ratings.csv", "movies.csv"), (",", ",")),
)


def read_movielens(options: MovieLens, folder: Path) -> RawData:
    """Return the ratings in a folder, without stars, as events.

    Titles have the year as in `Usual Suspects, The (1995)`, in all layouts of a data set. Raises
    InputError if files are missing or malformed.
    """
    layout, paths = find_layout(folder)
    counters = [LineCounter(path, options.tolerance) for path in paths]
    if layout.separators == (",", ","):
        event_fields = {"user": "userId", "item": "movieId", "timestamp": "timestamp"}
        title_fields = {"item": "movieId", "title": "title"}
        events = read_delimited_records(paths[0], ",", event_fields, counters[0])
        titles = read_delimited_records(paths[1], ",", title_fields, counters[1])
    else:
        events = (
            rows.select("line", "text", "timestamp", user="user_id", item="item_id")
            for rows in read_separated_records(
                paths[0], layout.separators[0], layout.events, counters[0]
            )
        )
        titles = (
            rows.select("line", "text", item="item_id", title=full_title(rows))
            for rows in read_separated_records(
                paths[1], layout.separators[1], layout.titles, counters[1]
            )
        )
    return RawData(
        files=paths,
        events=read_events(events, counters[0], "s"),
        titles=read_titles(titles, counters[1]),
        line_counts={counter.path.name: counter.check() for counter in counters},
    )


def find_layout(folder: Path) -> tuple[Layout, tuple[Path, Path]]:
    """Return the first layout in `folder` and its files; raise InputError if one is missing."""
    for layout in LAYOUTS:
        paths = [find_plain_or_compressed(folder / name) for name in layout.files]
        if None not in paths:
            return layout, (paths[0], paths[1])
        if paths != [None, None]:
            missing = folder / layout.files[paths.index(None)]
            raise InputError(
                f"{missing}: no such file, but the other file is there; fetch it again"
            )
    pairs = "; ".join(" and ".join(layout.files) for layout in LAYOUTS)
    raise InputError(f"{folder}: holds none of {pairs}; `rere fetch` downloads them")


def read_separated_records(
    path: Path, separator: str, names: tuple[str, ...], counter: LineCounter
) -> Iterator[pl.DataFrame]:
    """Yield records of a file of separated fields without quoting: `line`, `text` and its columns.

    Without `names`, the first line has them as RecBole writes them, `user_id:token`. GroupLens's
    files have no header and are Latin-1, or UTF-8 if an editor saved them.
    """
    with open_decompressed(path) as file:
        for lines in read_lines(file, path, fallback="latin-1" if names else None):
            lines = drop_blank(lines)
            if not names and len(lines):
                names, lines = parse_header(path, lines["text"][0], separator), lines[1:]
            counter.num_lines += len(lines)
            num_fields = pl.col("text").str.count_matches(separator, literal=True) + 1
            fault = (
                pl.when(pl.col("text").is_null())
                .then(pl.lit(not_text(UTF8)))
                .when(num_fields != len(names))
                .then(pl.format("{} columns, not {}", num_fields, len(names)))
            )
            lines = drop_unreadable(lines.with_columns(fault=fault), counter)
            fields = pl.col("text").str.split_exact(separator, len(names) - 1)
            fields = fields.struct.rename_fields(names).alias("fields")
            yield lines.select("line", "text", fields).unnest("fields")


def parse_header(path: Path, line: str, separator: str) -> tuple[str, ...]:
    """Return the column names in RecBole's header; raise InputError if a needed one is missing."""
    names = tuple(field.partition(":")[0] for field in line.split(separator))
    has_events = path.suffix == ".inter"
    needed = (
        ("user_id", "item_id", "timestamp") if has_events else ("item_id", *RECBOLE_TITLE_COLUMNS)
    )
    for name in needed:
        if name not in names:
            raise InputError(f"{path} line 1: the header has no column {name}; fetch it again")
    return names


def full_title(rows: pl.DataFrame) -> pl.Expr:
    """GroupLens's title, put together from RecBole's two columns if need be.

    RecBole takes the last parenthesis for the year, be it `(1995)` or the `(V)` of a video. It
    writes `unkonwn` for the title `unknown` and for a missing year.
    """
    if "title" in rows.columns:
        return pl.col("title")
    title, year = map(pl.col, RECBOLE_TITLE_COLUMNS)
    title = title.replace("unkonwn", "unknown")
    return pl.when(year.is_in(["unkonwn", ""])).then(title).otherwise(title + " (" + year + ")")
