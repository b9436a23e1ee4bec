"""Events to samples, samples to splits, by time alone."""

import numpy as np
import polars as pl

from rere.data.splits import SPLIT_SCHEMA, SPLITS


def samples(events: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """One row for each event of a user but the first, in the order of time.

    Rows have the split schema, and `previous`: the timestamp of their history's last event.

    `events` (user_id, item_id, timestamp) may come in any order. A user's events are ordered by
    (timestamp, `shuffle_key`); a sample's target is an event, its history the `max_history`
    events before it at most, oldest first. Repeats of an item stay, in histories and as targets.
    Samples are ordered by (timestamp, user_id, place in the user's sequence), which row_id counts.
    """
    keyed = events.with_columns(key=shuffle_key(events["user_id"], events["item_id"]))
    in_order = keyed.sort("user_id", "timestamp", "key")
    in_order = in_order.with_columns(position=pl.int_range(pl.len()).over("user_id"))
    windows = in_order.rolling("position", period=f"{max_history + 1}i", group_by="user_id").agg(
        history=pl.col("item_id").head(pl.len() - 1),
        target=pl.col("item_id").last(),
        timestamp=pl.col("timestamp").last(),
        previous=pl.col("timestamp").slice(pl.len() - 2, 1).first(),
    )
    rows = windows.filter(pl.col("position") > 0).sort("timestamp", "user_id", "position")
    schema = SPLIT_SCHEMA | {"previous": pl.Int64}
    return rows.with_row_index("row_id").select(*schema).cast(schema)


def shuffle_key(users: pl.Series, items: pl.Series) -> np.ndarray:
    """A fixed pseudo-random number for each (user, item), (events,) u64: it orders ties in time.

    Many logs stamp several events of a user with one second. Any order that all users share, such
    as by item id, would tell a model which item comes next (on MovieLens-100K half of the targets
    tie with the item before them); this one differs from user to user and from nothing else.
    The mixing is the finaliser of SplitMix64 (Steele et al. 2014).
    """
    key = users.to_numpy().astype(np.uint64) << np.uint64(32) | items.to_numpy().astype(np.uint64)
    key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return key ^ key >> np.uint64(31)


def chronological_split(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """n ordered rows as train [0, 8n // 10), valid [8n // 10, 9n // 10) and test [9n // 10, n)."""
    count = len(rows)
    bounds = (0, 8 * count // 10, 9 * count // 10, count)
    return {
        split: rows[start:stop]
        for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
    }


def leave_one_out(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Each user's last row for test, the one before it for valid, all earlier ones for train.

    `rows` are in the order of time, and stay so.
    """
    after = pl.int_range(pl.len() - 1, -1, -1).over("user_id")  # later rows of the same user
    place = rows.select(after.alias("after"))["after"]
    return {
        "train": rows.filter(place > 1),
        "valid": rows.filter(place == 1),
        "test": rows.filter(place == 0),
    }
