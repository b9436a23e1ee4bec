"""Tables of a user's own: CSV, TSV, JSON lines or parquet, columns by name.

CSV and TSV have a header; a field in double quotes may hold separators and line ends.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from rere.config.data import OwnTables
from rere.data.readers.lines import Tally, find
from rere.data.readers.records import (
    UNITS,
    Raw,
    first_fault,
    json_records,
    read_events,
    read_titles,
    whole,
)
from rere.errors import InputError, hint

SEPARATORS = {".csv": ",", ".tsv": "\t"}
EXTRA = "\0extra"
"""The column of what a row has beyond its header."""

CHUNK = 200_000
"""Rows at a time."""


def read_tables(options: OwnTables, folder: Path) -> Raw:
    """A user's events and titles; raises InputError where files, columns or values are wrong."""
    files = find(folder, options.events), find(folder, options.items)
    of_events, of_titles = (Tally(path, options.tolerance) for path in files)
    event = {"user": options.user, "item": options.item, "timestamp": options.timestamp}
    title = {"item": options.item, "title": options.title}
    return Raw(
        files=files,
        events=read_events(
            table_records(files[0], event, of_events, options.time_unit),
            of_events,
            options.time_unit,
        ),
        titles=read_titles(table_records(files[1], title, of_titles), of_titles),
        unreadable={tally.path.name: tally.settle() for tally in (of_events, of_titles)},
    )


def table_records(
    path: Path, fields: Mapping[str, str], tally: Tally, unit: str = "s"
) -> Iterator[pl.DataFrame]:
    """Records of a table, many at a time; `fields` names the columns they come from.

    Columns of dates become what `unit` says. Raises InputError where a column is missing or the
    file is no table.
    """
    kind = next((s for s in reversed(path.suffixes) if s not in (".gz", ".zst")), "")
    if kind in (".json", ".jsonl", ".ndjson"):
        yield from json_records(path, fields, tally)
        return
    if kind not in (*SEPARATORS, ".parquet"):
        raise InputError(f"{path}: is not .csv, .tsv, .jsonl or .parquet, with or without .gz")
    try:
        if kind == ".parquet":
            rows = columns_as_text(path, pl.scan_parquet(path, row_index_name="line"), fields, unit)
        else:
            rows = separated(path, SEPARATORS[kind], fields)
        for part in rows.collect_batches(chunk_size=CHUNK):
            yield keep_readable(part, tally)
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable {kind[1:]} file ({first})") from None


def separated(path: Path, separator: str, fields: Mapping[str, str]) -> pl.LazyFrame:
    """A CSV or TSV file's rows: `line`, `fields` as text, EXTRA, and whether a row is `blank`."""
    scan = {"separator": separator, "infer_schema": False, "encoding": "utf8-lossy"}
    names = pl.scan_csv(path, **scan).collect_schema().names()
    columns_exist(path, names, fields)
    rows = pl.scan_csv(
        path,
        schema=dict.fromkeys([*names, EXTRA], pl.String),
        missing_columns="insert",
        truncate_ragged_lines=True,
        row_index_name="line",
        row_index_offset=2,  # the header is the first
        **scan,
    )
    blank = pl.all_horizontal(pl.col(names).is_null())
    return rows.filter(~blank).select("line", EXTRA, **fields)


def columns_as_text(
    path: Path, rows: pl.LazyFrame, fields: Mapping[str, str], unit: str
) -> pl.LazyFrame:
    """A parquet file's rows: `line`, counted from 0, and `fields` as text."""
    schema = rows.collect_schema()
    columns_exist(path, schema.names(), fields)
    values = {}
    for name, column in fields.items():
        kind, value = schema[column], pl.col(column)
        if kind.is_nested() or kind == pl.Binary:
            raise InputError(f"{path}: column {column} holds {kind}, not plain values")
        if kind.is_temporal() and unit in UNITS:
            value = value.cast(pl.Datetime("us")).dt.epoch(unit)
        values[name] = value.cast(pl.String)
    return rows.select("line", pl.lit(None, pl.String).alias(EXTRA), **values)


def columns_exist(path: Path, names: list[str], fields: Mapping[str, str]) -> None:
    for field, column in fields.items():
        if column not in names:
            raise InputError(f"{path}: has no column {column}; {hint(column, names)} ({field})")


def keep_readable(rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """The records among a table's rows that are whole; the others go into the tally."""
    tally.lines += len(rows)
    rows = rows.with_columns(
        text=pl.concat_str(pl.exclude("line"), separator=", ", ignore_nulls=True)
    )
    faults = {
        "more columns than the header": pl.col(EXTRA).is_not_null(),
        "not UTF-8": pl.col("text").str.contains("\ufffd", literal=True),
    }
    return whole(rows.with_columns(fault=first_fault(faults)), tally).drop(EXTRA, "fault")
