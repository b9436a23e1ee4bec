"""Keep the events in a window of time, of users and items with enough of them."""

from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from rere.config.data import Rules
from rere.data.ids import assign_codes


class FilteredEvents(NamedTuple):
    """The events that the rules keep, and counts of the others."""

    events: pl.DataFrame  # user and item (codes), timestamp
    users: pl.Series  # the raw id (str) of each user code
    start: date | None  # first day of the window, after it was moved
    dropped: dict[str, int]  # number of dropped events by reason


def filter_events(events: pl.DataFrame, rules: Rules) -> FilteredEvents:
    """Return the events that the rules keep, of events (user str, item code, timestamp).

    While fewer than `min_items` items are left and there are earlier events, the window starts
    a year earlier.
    """
    first, start = events["timestamp"].min(), rules.start
    while True:
        inside = events.filter(is_in_window(start, rules.end))
        codes, users = assign_codes(inside["user"])  # a window has few of a log's users
        distinct = inside.with_columns(user=codes)
        if rules.repeats == "first":
            distinct = keep_first(distinct)
        kept = k_core(distinct, rules.core)
        has_enough = rules.min_items is None or kept["item"].n_unique() >= rules.min_items
        if has_enough or start is None or first is None or start_of_day(start) <= first:
            break
        start = year_before(start)
    dropped = {
        "outside of the window": len(events) - len(inside),
        "repeats of an earlier one": len(inside) - len(distinct),
        "outside of the core": len(distinct) - len(kept),
    }
    return FilteredEvents(kept, users, start, dropped)


def is_in_window(start: date | None, end: date | None) -> pl.Expr:
    """Whether an event's timestamp is in [start, end), both whole UTC days."""
    inside = pl.lit(True)
    if start is not None:
        inside &= pl.col("timestamp") >= start_of_day(start)
    if end is not None:
        inside &= pl.col("timestamp") < start_of_day(end)
    return inside


def start_of_day(day: date) -> int:
    """Return the first second of a UTC day, in seconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def year_before(day: date) -> date:
    """Return the same day a year earlier; for 29 February, the 28th."""
    try:
        return day.replace(year=day.year - 1)
    except ValueError:
        return day.replace(year=day.year - 1, day=28)


def keep_first(events: pl.DataFrame) -> pl.DataFrame:
    """Return the first event of each user with each item."""
    return events.group_by("user", "item", maintain_order=True).agg(pl.col("timestamp").min())


def k_core(events: pl.DataFrame, core: int) -> pl.DataFrame:
    """Return the largest subset of `events` with at least `core` of them per user and per item.

    Users and items are codes. Filters both until nothing changes, and keeps the order of the rows.
    Each repeat of an event counts.
    """
    rows = np.arange(len(events))
    users, items = events["user"].to_numpy(), events["item"].to_numpy()
    while True:
        keep = (np.bincount(users) >= core)[users] & (np.bincount(items) >= core)[items]
        if keep.all():
            return events[rows]
        rows, users, items = rows[keep], users[keep], items[keep]
