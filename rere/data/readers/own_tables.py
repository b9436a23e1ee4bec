"""Read a user's tables: CSV, TSV, JSON lines or parquet, with columns by name."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from rere.config.data import OwnTables
from rere.data.dataset import readable_parquet
from rere.data.readers.delimited import BROKEN_QUOTES, check_columns, read_delimited_records
from rere.data.readers.events import UNITS, RawData, read_events, read_titles
from rere.data.readers.json_lines import read_json_records
from rere.data.readers.text_files import LineCounter, find_file, not_text
from rere.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ROWS_PER_BLOCK = 200_000

BLANKS = (
    " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
"""White space and characters without a width, which ids lose at both ends."""


def read_own_tables(options: OwnTables, folder: Path) -> RawData:
    """Return a user's events and titles; raise InputError if files, columns or values are wrong."""

    def remedy(fault: str) -> str:
        if fault.startswith("timestamp"):
            return f"set `time_unit` ({', '.join(UNITS)} or text)"
        return {
            BROKEN_QUOTES: "set `quote: none` if quotes are plain characters",
            not_text(options.encoding): "name its `encoding` (such as latin-1)",
        }.get(fault, "correct it")

    files = find_own_tables(options, folder)
    counters = [LineCounter(path, options.tolerance, remedy) for path in files]
    event_fields = {"user": options.user, "item": options.item, "timestamp": options.timestamp}
    title_fields = {"item": options.item, "title": options.title}
    events = read_table_records(options, files[0], event_fields, counters[0])
    titles = read_table_records(options, files[1], title_fields, counters[1])
    return RawData(
        files=files,
        events=read_events(strip_ids(events, "user", "item"), counters[0], options.time_unit),
        titles=read_titles(strip_ids(titles, "item"), counters[1]),
        line_counts={counter.path.name: counter.check() for counter in counters},
    )


def find_own_tables(options: OwnTables, folder: Path) -> tuple[Path, Path]:
    """Return the files of events and of titles; raise InputError if one is missing."""
    return (
        find_file(folder, options.events, remedy="name the file of `events`"),
        find_file(folder, options.items, remedy="name the file of `items`"),
    )


def strip_ids(records: Iterator[pl.DataFrame], *ids: str) -> Iterator[pl.DataFrame]:
    """Yield records whose ids have no BLANKS at either end, so that `7` is `7 `."""
    return (rows.with_columns(pl.col(ids).str.strip_chars(BLANKS)) for rows in records)


def read_table_records(
    options: OwnTables, path: Path, fields: Mapping[str, str], counter: LineCounter
) -> Iterator[pl.DataFrame]:
    """Yield records of a table, many at a time; `fields` maps their names to columns.

    Columns of dates are converted to the options' unit. Raises InputError if a column is missing
    or the file is not a table.
    """
    kind = next((s for s in reversed(path.suffixes) if s not in (".gz", ".zst")), "")
    if kind in (".json", ".jsonl", ".ndjson"):
        yield from read_json_records(path, fields, counter, encoding=options.encoding)
    elif kind in SEPARATORS:
        has_quotes = options.quote == "double"
        yield from read_delimited_records(
            path, SEPARATORS[kind], fields, counter, has_quotes, options.encoding
        )
    elif kind == ".parquet":
        yield from read_parquet_records(path, fields, counter, options.time_unit)
    else:
        raise InputError(f"{path}: is not .csv, .tsv, .jsonl or .parquet, with or without .gz")


def read_parquet_records(
    path: Path, fields: Mapping[str, str], counter: LineCounter, unit: str
) -> Iterator[pl.DataFrame]:
    """Yield records of a parquet file, whose lines are its rows, as `read_table_records`."""
    text = pl.concat_str(pl.exclude("line"), separator=", ", ignore_nulls=True)
    with readable_parquet(path):
        for rows in scan_parquet(path, fields, unit).collect_batches(chunk_size=ROWS_PER_BLOCK):
            counter.num_lines += len(rows)
            yield rows.with_columns(text=text)


def scan_parquet(path: Path, fields: Mapping[str, str], unit: str) -> pl.LazyFrame:
    """Return the rows of a parquet file: `line` (1-based) and, as text, `fields`.

    Raises InputError if a column is missing or of a type that cannot hold its field.
    """
    rows = pl.scan_parquet(path, row_index_name="line", row_index_offset=1)
    schema = rows.collect_schema()
    check_columns(path, schema.names(), fields)
    values = {}
    for name, column in fields.items():
        kind, value = schema[column], pl.col(column)
        if not is_allowed(name, kind):
            raise InputError(f"{path}: column {column} holds {kind}; cast it to {TYPES[name]}")
        if kind.is_temporal():
            value = value.cast(pl.Datetime("us"))
            value = value.dt.epoch(unit) if unit in UNITS else value
        values[name] = value.cast(pl.String)
    return rows.select("line", **values)


TYPES = {
    **dict.fromkeys(("user", "item"), "integers or text"),
    "timestamp": "numbers, dates or text",
    "title": "text",
}


def is_allowed(field: str, kind: pl.DataType) -> bool:
    """Whether a column of a type may hold the field; a float's id would be `7.0`, not `7`."""
    if kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum):
        return True
    return field == "timestamp" and (kind.is_numeric() or kind in (pl.Date, pl.Datetime))
