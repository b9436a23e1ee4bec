"""Which events count: a window of time, users and items with enough of them."""

from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from rere.config.data import Rules
from rere.data.numbering import codes


class Chosen(NamedTuple):
    """What the rules keep, and what went."""

    events: pl.DataFrame  # user, item (whole numbers from 0), timestamp
    users: pl.Series  # the raw id (str) of each user's number
    start: date | None  # the day that the window came to start on
    gone: dict[str, int]  # events by why they went


def choose(events: pl.DataFrame, rules: Rules) -> Chosen:
    """The events that the rules keep, of events (user str, item a whole number from 0, timestamp).

    While fewer than `min_items` items are left and there are earlier events, the window starts
    a year earlier.
    """
    first, start = events["timestamp"].min(), rules.start
    while True:
        inside = events.filter(in_window(start, rules.end))
        numbers, users = codes(inside["user"])  # few users of a log are in a window of it
        apart = inside.with_columns(user=numbers)
        if rules.repeats == "first":
            apart = merge_repeats(apart)
        kept = k_core(apart, rules.core)
        enough = rules.min_items is None or kept["item"].n_unique() >= rules.min_items
        if enough or start is None or first is None or seconds(start) <= first:
            break
        start = year_before(start)
    gone = {
        "outside of the window": len(events) - len(inside),
        "repeats of an earlier one": len(inside) - len(apart),
        "outside of the core": len(apart) - len(kept),
    }
    return Chosen(kept, users, start, gone)


def in_window(start: date | None, end: date | None) -> pl.Expr:
    """Whether an event's timestamp lies in [start, end), whole days of UTC."""
    inside = pl.lit(True)
    if start is not None:
        inside &= pl.col("timestamp") >= seconds(start)
    if end is not None:
        inside &= pl.col("timestamp") < seconds(end)
    return inside


def seconds(day: date) -> int:
    """The first second of a day, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def year_before(day: date) -> date:
    """The same day a year earlier; of 29 February, the 28th."""
    try:
        return day.replace(year=day.year - 1)
    except ValueError:
        return day.replace(year=day.year - 1, day=28)


def merge_repeats(events: pl.DataFrame) -> pl.DataFrame:
    """The first event of each user with each item."""
    return events.group_by("user", "item", maintain_order=True).agg(pl.col("timestamp").min())


def k_core(events: pl.DataFrame, core: int) -> pl.DataFrame:
    """The largest part of `events` (user, item, ...) with at least `core` events a user and item.

    Users and items are whole numbers from 0. Filters both until nothing changes; a repeated
    event counts each time. The order of the rows stays.
    """
    rows = np.arange(len(events))
    users, items = events["user"].to_numpy(), events["item"].to_numpy()
    while True:
        enough = (np.bincount(users) >= core)[users] & (np.bincount(items) >= core)[items]
        if enough.all():
            return events[rows]
        rows, users, items = rows[enough], users[enough], items[enough]
