"""Which users and items have enough events."""

import polars as pl


def k_core(events: pl.DataFrame, core: int) -> pl.DataFrame:
    """The largest part of `events` (user, item, ...) with at least `core` events a user and item.

    Filters users and items until nothing changes; a repeated event counts each time. The order
    of the rows stays.
    """
    enough = pl.all_horizontal(pl.len().over(column) >= core for column in ("user", "item"))
    while True:
        kept = events.filter(enough)
        if len(kept) == len(events):
            return kept
        events = kept
