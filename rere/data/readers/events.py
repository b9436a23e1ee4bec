"""Check the records of events and titles that readers yield, and gather them.

Records are data frames of `line` (1-based), `text` (the whole line, for the log) and named fields
as text.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.data.readers.text_files import LineCounter
from rere.errors import InputError

MAX_SECOND = 253_402_300_799
"""The end of the year 9999; a larger timestamp is probably in a smaller unit."""

MIN_LAST_SECOND = 100_000_000
"""3 March 1973; a log of milliseconds or less that ends before it is probably in seconds."""


class RawData(NamedTuple):
    """The events and titles in raw files."""

    files: tuple[Path, ...]
    events: pl.DataFrame  # user str, item str, timestamp i64 (UTC seconds)
    titles: pl.DataFrame  # item str, title str or null, perhaps suffix str
    line_counts: dict[str, dict[str, int]]  # lines and unreadable lines by fault, for each file


UNITS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def read_in_parallel(
    events: Callable[[], pl.DataFrame], titles: Callable[[], pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read two files at once: while one thread decompresses, another one parses."""
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(events), threads.submit(titles)
        return reading[0].result(), reading[1].result()


def read_events(records: Iterable[pl.DataFrame], counter: LineCounter, unit: str) -> pl.DataFrame:
    """Return all events: user str, item str, timestamp i64 (UTC seconds).

    `records` have user, item and timestamp. `unit` is that of timestamps since 1970 (in UNITS), or
    `text`. Raises InputError if too many lines are unreadable, or if the last event is too early
    for a unit smaller than seconds.
    """
    is_text, largest = unit == "text", MAX_SECOND * UNITS.get(unit, 1)
    bounds = "the years 1970 .. 9999" if is_text else f"0 .. {largest} {unit} since 1970"
    second = parse_times(pl.col("timestamp"), unit)
    faults = {
        "no user": is_blank("user"),
        "no item": is_blank("item"),
        "no timestamp": is_blank("timestamp"),
        f"timestamp is not {'a date' if is_text else 'a number'}": second.is_null(),
        f"timestamp is not in {bounds}": ~second.is_between(0, MAX_SECOND),
    }
    blocks = [pl.DataFrame(schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64})]
    for rows in records:
        rows = rows.with_columns(second=second, fault=first_fault(faults))
        rows = drop_unreadable(rows, counter)
        blocks.append(pl.DataFrame([rows["user"], rows["item"], rows["second"].alias("timestamp")]))
    counter.check()
    events = pl.concat(blocks)
    last = events["timestamp"].max()
    if unit in ("ms", "us", "ns") and last is not None and last < MIN_LAST_SECOND:
        day = datetime.fromtimestamp(last, UTC).date()
        raise InputError(
            f"{counter.path}: its last event is of {day}, too early for {unit}; "
            f"{counter.remedy('timestamp')}"
        )
    return events


def read_titles(records: Iterable[pl.DataFrame], counter: LineCounter) -> pl.DataFrame:
    """Return all titles: item str, title str or null, perhaps suffix str.

    Raises InputError if too many lines are unreadable, or none has a title.
    """
    blocks = []
    for rows in records:
        rows = rows.with_columns(fault=first_fault({"no item": is_blank("item")}))
        blocks.append(drop_unreadable(rows, counter).drop("line", "text", "fault"))
    counter.check()
    titles = pl.concat(blocks)
    if (titles["title"].fill_null("") == "").all():
        raise InputError(f"{counter.path}: no line has a title; name the file of titles")
    return titles


def drop_unreadable(rows: pl.DataFrame, counter: LineCounter) -> pl.DataFrame:
    """Return the rows without a `fault`, and count the others as unreadable."""
    if rows["fault"].null_count() == len(rows):
        return rows
    counter.add_unreadable(rows.filter(pl.col("fault").is_not_null()))
    return rows.filter(pl.col("fault").is_null())


def is_blank(name: str) -> pl.Expr:
    return (pl.col(name).str.strip_chars() == "").fill_null(True)


def first_fault(faults: Mapping[str, pl.Expr]) -> pl.Expr:
    """The first fault of a row, or null."""
    return pl.coalesce(pl.when(found).then(pl.lit(fault)) for fault, found in faults.items())


def parse_times(times: pl.Expr, unit: str) -> pl.Expr:
    """Times (str) of a unit as whole UTC seconds since 1970, null where they are malformed."""
    if unit != "text":
        times = times.str.strip_chars()
        number = times.cast(pl.Float64, strict=False)
        second = (number / UNITS[unit]).floor().cast(pl.Int64, strict=False)
        # Floats do not hold all nanoseconds of today.
        whole = times.cast(pl.Int64, strict=False)
        return pl.coalesce(whole // UNITS[unit], second) if unit == "ns" else second
    plain = times.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ")
    plain = plain.str.strip_suffix("Z").str.strip_suffix(" UTC")
    formats = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    return pl.coalesce(
        plain.str.to_datetime(layout, strict=False, time_unit="us", time_zone="UTC").dt.epoch("s")
        for layout in formats
    )
