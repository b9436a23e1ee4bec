"""Records of named fields, read from JSON lines or from tables; what is unreadable is counted.

Readers yield records as data frames: `line` (1-based), `text` (the whole line, for the log) and
the fields as text. `read_events` and `read_titles` check them and gather them.
"""

import ast
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.data.readers.lines import Tally, line_blocks, opened, without_blank
from rere.errors import InputError

LAST_SECOND = 253_402_300_799
"""The end of the year 9999; a larger timestamp counts milliseconds."""


EARLIEST_LAST = 100_000_000
"""A day of 1973: logs that end before it, by a count of less than seconds, count seconds."""


class Raw(NamedTuple):
    """What a reader finds in raw files."""

    files: tuple[Path, ...]
    events: pl.DataFrame  # user str, item str, timestamp i64 (UTC seconds)
    titles: pl.DataFrame  # item str, title str or null, perhaps suffix str
    unreadable: dict[str, dict[str, int]]  # of each file: its lines, and those lost by fault


UNITS = {"s": 1, "ms": 1000, "us": 1_000_000}


def side_by_side(
    events: Callable[[], pl.DataFrame], titles: Callable[[], pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read two files at a time: while one thread decompresses, another one parses."""
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(events), threads.submit(titles)
        return reading[0].result(), reading[1].result()


def json_records(
    path: Path, fields: Mapping[str, str], tally: Tally, member: str | None = None
) -> Iterator[pl.DataFrame]:
    """Records of a file of JSON lines, many at a time: `line`, `text` and, as text, `fields`.

    `fields` names the columns and the keys that they come from; a number becomes its digits, an
    absent key null. Lines that hold no JSON object, or a list or an object under one of the keys,
    go into the tally. A line that opens with `{'` is a Python dictionary, as Amazon's metadata of
    2014 has them; it is read as a literal, never run.
    """
    keys = tuple(fields.values())
    with opened(path, member) as file:
        for lines in line_blocks(file, path):
            records = plainly_decoded(lines["text"], keys)
            if records is None:
                lines = without_blank(lines)
                records = parse(lines["text"], keys)
            tally.lines += len(lines)
            if records.null_count():
                fault = pl.when(pl.col("text").is_null()).then(pl.lit("not UTF-8"))
                fault = fault.otherwise(pl.lit("not a JSON object of plain values"))
                tally.lose(lines.filter(records.is_null()).with_columns(fault=fault))
                lines, records = lines.filter(records.is_not_null()), records.drop_nulls()
            values = records.struct.unnest()
            yield lines.hstack([values[key].alias(name) for name, key in fields.items()])


def plainly_decoded(texts: pl.Series, keys: tuple[str, ...]) -> pl.Series | None:
    """The values of `keys` in lines that all hold one JSON object; None where one may not."""
    try:
        records = texts.str.json_decode(pl.Struct(dict.fromkeys(keys, pl.String)))
    except pl.exceptions.ComputeError:
        return None
    return records if len(records) == len(texts) and not records.null_count() else None


def parse(texts: pl.Series, keys: tuple[str, ...]) -> pl.Series:
    """The values of `keys` in JSON objects, as structs of text, null where a text is broken."""
    shape = pl.Struct(dict.fromkeys(keys, pl.String))
    ends = texts.str.strip_chars()
    whole = ends.str.starts_with("{") & ends.str.ends_with("}")
    literal = (whole & ends.str.starts_with("{'")).fill_null(False)
    records = decode(texts.set(~whole | literal, None), shape)
    if not literal.any():
        return records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a backslash that escapes nothing
        found = [
            literal_record(line, keys) if is_literal else record
            for line, is_literal, record in zip(texts, literal, records, strict=True)
        ]
    return pl.Series(found, dtype=shape)


def decode(texts: pl.Series, shape: pl.Struct) -> pl.Series:
    """JSON objects as structs, null where one is broken; it fails all, and is found by halving."""
    try:
        records = texts.str.json_decode(shape)
        # Polars reads the texts as one array, in which `{}, {}` would be two.
        if len(records) == len(texts):
            return records
    except pl.exceptions.ComputeError:
        pass
    if len(texts) == 1:
        return pl.Series([None], dtype=shape)
    middle = len(texts) // 2
    return pl.concat([decode(texts[:middle], shape), decode(texts[middle:], shape)])


def literal_record(line: str, keys: tuple[str, ...]) -> dict[str, str | None] | None:
    """The values of `keys` in a Python dictionary of literals, as text; None if it is broken."""
    try:
        record = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    values = {key: record.get(key) for key in keys} if isinstance(record, dict) else None
    if values is None or any(isinstance(value, list | dict | tuple) for value in values.values()):
        return None
    return {key: None if value is None else str(value) for key, value in values.items()}


def read_events(records: Iterable[pl.DataFrame], tally: Tally, unit: str) -> pl.DataFrame:
    """All events among records of user, item and timestamp: user str, item str, timestamp i64.

    `unit` says what timestamps count since 1970 (of UNITS), or that they are `text`; they become
    UTC seconds. Raises InputError where too many lines are unreadable.
    """
    largest = LAST_SECOND * UNITS.get(unit, 1)
    when = seconds(pl.col("timestamp"), unit)
    faults = {
        "no user": blank("user"),
        "no item": blank("item"),
        "no timestamp": blank("timestamp"),
        f"timestamp is not {'a date' if unit == 'text' else 'a number'}": when.is_null(),
        f"timestamp is not in 0 .. {largest} {unit} since 1970": ~when.is_between(0, LAST_SECOND),
    }
    parts = [pl.DataFrame(schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64})]
    for rows in records:
        rows = rows.with_columns(when=when, fault=first_fault(faults))
        rows = whole(rows, tally)
        parts.append(pl.DataFrame([rows["user"], rows["item"], rows["when"].alias("timestamp")]))
    tally.settle()
    events = pl.concat(parts)
    last = events["timestamp"].max()
    if unit in ("ms", "us") and last is not None and last < EARLIEST_LAST:
        day = datetime.fromtimestamp(last, UTC).date()
        raise InputError(f"{tally.path}: its last event is of {day}; do its times count {unit}?")
    return events


def read_titles(records: Iterable[pl.DataFrame], tally: Tally) -> pl.DataFrame:
    """All titles among records of item, title and perhaps suffix (str, null where there is none).

    Raises InputError where too many lines are unreadable, or none has a title.
    """
    parts = []
    for rows in records:
        rows = whole(rows.with_columns(fault=first_fault({"no item": blank("item")})), tally)
        parts.append(rows.drop("line", "text", "fault"))
    tally.settle()
    titles = pl.concat(parts)
    if titles["title"].null_count() == len(titles):
        raise InputError(f"{tally.path}: no line has a title; name the file of titles")
    return titles


def whole(rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """The rows without a `fault`; the others go into the tally."""
    if rows["fault"].null_count() == len(rows):
        return rows
    tally.lose(rows.filter(pl.col("fault").is_not_null()))
    return rows.filter(pl.col("fault").is_null())


def blank(name: str) -> pl.Expr:
    return (pl.col(name).str.strip_chars() == "").fill_null(True)


def first_fault(faults: Mapping[str, pl.Expr]) -> pl.Expr:
    """The first of the faults that a row has, null for none."""
    return pl.coalesce(pl.when(found).then(pl.lit(fault)) for fault, found in faults.items())


def seconds(times: pl.Expr, unit: str) -> pl.Expr:
    """Text as whole UTC seconds since 1970, null where it is no time of that unit."""
    if unit != "text":
        number = times.str.strip_chars().cast(pl.Float64, strict=False)
        return (number / UNITS[unit]).floor().cast(pl.Int64, strict=False)
    plain = times.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ")
    plain = plain.str.strip_suffix("Z").str.strip_suffix(" UTC")
    formats = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    return pl.coalesce(
        plain.str.to_datetime(layout, strict=False, time_unit="us", time_zone="UTC").dt.epoch("s")
        for layout in formats
    )
