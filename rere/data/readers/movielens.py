"""MovieLens from any of the layouts that it is found in.

    RecBole          ml-100k.inter, ml-100k.item; ml-1m likewise    a typed header names columns
    GroupLens 100K   u.data, u.item                                 tab- and pipe-separated
    GroupLens 1M     ratings.dat, movies.dat                        separated by `::`
    GroupLens 20M+   ratings.csv, movies.csv                        CSV

Only the last one is CSV: in the others a quote is a character like any other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.config.data import MovieLens
from rere.data.readers.lines import Tally, line_blocks, opened, variant, without_blank
from rere.data.readers.own_tables import table_records
from rere.data.readers.records import Raw, read_events, read_titles, whole
from rere.errors import InputError


class Layout(NamedTuple):
    """Two files, how their fields are separated, and their columns where no header names them."""

    files: tuple[str, str]
    separators: tuple[str, str]
    events: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()


RATING = ("user_id", "item_id", "rating", "timestamp")
U_ITEM = ("item_id", "title", "released", "video", "url", *(f"genre{i}" for i in range(19)))
RECBOLE_TITLE = ("movie_title", "release_year")
LAYOUTS = (
    Layout(("ml-100k.inter", "ml-100k.item"), ("\t", "\t")),
    Layout(("ml-1m.inter", "ml-1m.item"), ("\t", "\t")),
    Layout(("u.data", "u.item"), ("\t", "|"), RATING, U_ITEM),
    Layout(("ratings.dat", "movies.dat"), ("::", "::"), RATING, ("item_id", "title", "genres")),
    Layout(("ratings.csv", "movies.csv"), (",", ",")),
)


def read_movielens(options: MovieLens, folder: Path) -> Raw:
    """The ratings in a folder as events, in whichever layout; their stars are ignored.

    Titles have the year as in `Usual Suspects, The (1995)`; all layouts of a data set give the
    same ones. Raises InputError where files are missing or malformed.
    """
    layout, paths = find_layout(folder)
    of_events, of_titles = (Tally(path, options.tolerance) for path in paths)
    if layout.separators == (",", ","):
        event = {"user": "userId", "item": "movieId", "timestamp": "timestamp"}
        events = table_records(paths[0], event, of_events)
        titles = table_records(paths[1], {"item": "movieId", "title": "title"}, of_titles)
    else:
        events = (
            rows.select("line", "text", "timestamp", user="user_id", item="item_id")
            for rows in separated_records(paths[0], layout.separators[0], layout.events, of_events)
        )
        titles = (
            rows.select("line", "text", item="item_id", title=full_title(rows))
            for rows in separated_records(paths[1], layout.separators[1], layout.titles, of_titles)
        )
    return Raw(
        files=paths,
        events=read_events(events, of_events, "s"),
        titles=read_titles(titles, of_titles),
        unreadable={tally.path.name: tally.settle() for tally in (of_events, of_titles)},
    )


def find_layout(folder: Path) -> tuple[Layout, tuple[Path, Path]]:
    """The first layout in `folder` and its two files; raises InputError if one is missing."""
    for layout in LAYOUTS:
        paths = [variant(folder / name) for name in layout.files]
        if None not in paths:
            return layout, (paths[0], paths[1])
        if paths != [None, None]:
            missing = folder / layout.files[paths.index(None)]
            raise InputError(f"{missing}: no such file, the other half is there; fetch it again")
    pairs = "; ".join(" and ".join(layout.files) for layout in LAYOUTS)
    raise InputError(f"{folder}: holds no two of {pairs}; `rere fetch` downloads them")


def separated_records(
    path: Path, separator: str, names: tuple[str, ...], tally: Tally
) -> Iterator[pl.DataFrame]:
    """Records of a file of separated fields without quoting: `line`, `text` and its columns.

    Without `names` the first line holds them as RecBole writes them, `user_id:token`. GroupLens's
    own files have no header and are Latin-1, UTF-8 once an editor has saved them.
    """
    with opened(path) as file:
        for lines in line_blocks(file, path, fallback="latin-1" if names else None):
            lines = without_blank(lines)
            if not names and len(lines):
                names, lines = header(path, lines["text"][0], separator), lines[1:]
            tally.lines += len(lines)
            columns = pl.col("text").str.count_matches(separator, literal=True) + 1
            fault = (
                pl.when(pl.col("text").is_null())
                .then(pl.lit("not UTF-8 text"))
                .when(columns != len(names))
                .then(pl.format("{} columns, not {}", columns, len(names)))
            )
            lines = whole(lines.with_columns(fault=fault), tally)
            fields = pl.col("text").str.split_exact(separator, len(names) - 1)
            fields = fields.struct.rename_fields(names).alias("fields")
            yield lines.select("line", "text", fields).unnest("fields")


def header(path: Path, line: str, separator: str) -> tuple[str, ...]:
    """The columns that RecBole's header names; raises InputError if one that is needed lacks."""
    names = tuple(field.partition(":")[0] for field in line.split(separator))
    events = path.suffix == ".inter"
    needed = ("user_id", "item_id", "timestamp") if events else ("item_id", *RECBOLE_TITLE)
    for name in needed:
        if name not in names:
            raise InputError(f"{path} line 1: the header has no column {name}; fetch it again")
    return names


def full_title(rows: pl.DataFrame) -> pl.Expr:
    """GroupLens's title, from RecBole's two columns where it has been split into them.

    RecBole cuts the last parenthesis off as the year, be it `(1995)` or the `(V)` of a video, and
    writes `unkonwn` for the title `unknown` and for a year that is not there.
    """
    if "title" in rows.columns:
        return pl.col("title")
    title, year = map(pl.col, RECBOLE_TITLE)
    title = title.replace("unkonwn", "unknown")
    return pl.when(year.is_in(["unkonwn", ""])).then(title).otherwise(title + " (" + year + ")")
