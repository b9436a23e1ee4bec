"""Read a user's tables: CSV, TSV, JSON lines or parquet, with columns by name.

CSV and TSV have a header; a field in double quotes may contain separators and line ends.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from rere.config.data import OwnTables
from rere.data.readers.events import (
    UNITS,
    RawData,
    drop_unreadable,
    first_fault,
    read_events,
    read_titles,
)
from rere.data.readers.json_lines import read_json_records
from rere.data.readers.text_files import LineCounter, find_file
from rere.errors import InputError, hint

SEPARATORS = {".csv": ",", ".tsv": "\t"}
EXTRA = "\0extra"
"""Name of the column for a row's fields beyond the header."""

ROWS_PER_BLOCK = 200_000


def read_own_tables(options: OwnTables, folder: Path) -> RawData:
    """Return a user's events and titles; raise InputError if files, columns or values are wrong."""
    files = find_file(folder, options.events), find_file(folder, options.items)
    counters = [LineCounter(path, options.tolerance) for path in files]
    event_fields = {"user": options.user, "item": options.item, "timestamp": options.timestamp}
    title_fields = {"item": options.item, "title": options.title}
    events = read_table_records(files[0], event_fields, counters[0], options.time_unit)
    titles = read_table_records(files[1], title_fields, counters[1])
    return RawData(
        files=files,
        events=read_events(events, counters[0], options.time_unit),
        titles=read_titles(titles, counters[1]),
        line_counts={counter.path.name: counter.check() for counter in counters},
    )


def read_table_records(
    path: Path, fields: Mapping[str, str], counter: LineCounter, unit: str = "s"
) -> Iterator[pl.DataFrame]:
    """Yield records of a table, many at a time; `fields` maps their names to columns.

    Columns of dates are converted to `unit`. Raises InputError if a column is missing or the file
    is not a table.
    """
    kind = next((s for s in reversed(path.suffixes) if s not in (".gz", ".zst")), "")
    if kind in (".json", ".jsonl", ".ndjson"):
        yield from read_json_records(path, fields, counter)
        return
    if kind not in (*SEPARATORS, ".parquet"):
        raise InputError(f"{path}: is not .csv, .tsv, .jsonl or .parquet, with or without .gz")
    try:
        if kind == ".parquet":
            rows = scan_parquet(path, fields, unit)
        else:
            rows = scan_separated(path, SEPARATORS[kind], fields)
        for block in rows.collect_batches(chunk_size=ROWS_PER_BLOCK):
            yield check_rows(block, counter)
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable {kind[1:]} file ({first})") from None


def scan_separated(path: Path, separator: str, fields: Mapping[str, str]) -> pl.LazyFrame:
    """Return the rows of a CSV or TSV file that are not blank: `line`, EXTRA, `fields` as text."""
    scan = {"separator": separator, "infer_schema": False, "encoding": "utf8-lossy"}
    names = pl.scan_csv(path, **scan).collect_schema().names()
    check_columns(path, names, fields)
    rows = pl.scan_csv(
        path,
        schema=dict.fromkeys([*names, EXTRA], pl.String),
        missing_columns="insert",
        truncate_ragged_lines=True,
        row_index_name="line",
        row_index_offset=2,  # the header is line 1
        **scan,
    )
    is_blank = pl.all_horizontal(pl.col(names).is_null())
    return rows.filter(~is_blank).select("line", EXTRA, **fields)


def scan_parquet(path: Path, fields: Mapping[str, str], unit: str) -> pl.LazyFrame:
    """Return the rows of a parquet file: `line`, counted from 0, EXTRA (null), `fields` as text."""
    rows = pl.scan_parquet(path, row_index_name="line")
    schema = rows.collect_schema()
    check_columns(path, schema.names(), fields)
    values = {}
    for name, column in fields.items():
        kind, value = schema[column], pl.col(column)
        if kind.is_nested() or kind == pl.Binary:
            raise InputError(f"{path}: column {column} holds {kind}, not plain values")
        if kind.is_temporal() and unit in UNITS:
            value = value.cast(pl.Datetime("us")).dt.epoch(unit)
        values[name] = value.cast(pl.String)
    return rows.select("line", pl.lit(None, pl.String).alias(EXTRA), **values)


def check_columns(path: Path, names: list[str], fields: Mapping[str, str]) -> None:
    """Raise InputError if a column of `fields` is not among `names`."""
    for field, column in fields.items():
        if column not in names:
            raise InputError(f"{path}: has no column {column}; {hint(column, names)} ({field})")


def check_rows(rows: pl.DataFrame, counter: LineCounter) -> pl.DataFrame:
    """Return the readable rows of a table as records, and count the others as unreadable."""
    counter.num_lines += len(rows)
    rows = rows.with_columns(
        text=pl.concat_str(pl.exclude("line"), separator=", ", ignore_nulls=True)
    )
    faults = {
        "more columns than the header": pl.col(EXTRA).is_not_null(),
        "not UTF-8": pl.col("text").str.contains("\ufffd", literal=True),
    }
    rows = rows.with_columns(fault=first_fault(faults))
    return drop_unreadable(rows, counter).drop(EXTRA, "fault")
