"""Make samples from events, and splits from samples, by time only."""

import numpy as np
import polars as pl

from rere.data.dataset import SPLIT_SCHEMA, SPLITS


def make_samples(events: pl.DataFrame, max_history: int) -> pl.DataFrame:
    """Return one row per event of a user except the first, in time order.

    A row's target is that event, its history the up to `max_history` events before it, oldest
    first. Rows have the columns of SPLIT_SCHEMA, and `previous`: the timestamp of their history's
    last event.

    `events` (user_id, item_id, timestamp) may come in any order. A user's events are ordered by
    (timestamp, `shuffle_key`). Repeats of an item are kept, in histories and as targets. Rows are
    ordered by (timestamp, user_id, position in the user's sequence), and numbered by row_id.
    """
    keyed = events.with_columns(key=shuffle_key(events["user_id"], events["item_id"]))
    ordered = keyed.sort("user_id", "timestamp", "key")
    ordered = ordered.with_columns(position=pl.int_range(pl.len()).over("user_id"))
    windows = ordered.rolling("position", period=f"{max_history + 1}i", group_by="user_id").agg(
        history=pl.col("item_id").head(pl.len() - 1),
        target=pl.col("item_id").last(),
        timestamp=pl.col("timestamp").last(),
        previous=pl.col("timestamp").slice(pl.len() - 2, 1).first(),
    )
    rows = windows.filter(pl.col("position") > 0).sort("timestamp", "user_id", "position")
    schema = SPLIT_SCHEMA | {"previous": pl.Int64}
    return rows.with_row_index("row_id").select(*schema).cast(schema)


def shuffle_key(users: pl.Series, items: pl.Series) -> np.ndarray:
    """Return a fixed pseudo-random key of each (user, item), (events,) u64, to order ties in time.

    Many logs give several events of a user the same second. An order that all users share, such
    as by item id, would let a model infer the next item (on MovieLens-100K half of the targets
    tie with the item before them). This order differs between users and depends on nothing else.
    The mixing is the finaliser of SplitMix64 (Steele et al. 2014).
    """
    key = users.to_numpy().astype(np.uint64) << np.uint64(32) | items.to_numpy().astype(np.uint64)
    key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return key ^ key >> np.uint64(31)


def chronological_split(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return n ordered rows as train [0, 8n // 10), valid [8n // 10, 9n // 10), test [.., n)."""
    count = len(rows)
    bounds = (0, 8 * count // 10, 9 * count // 10, count)
    return {
        split: rows[start:stop]
        for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
    }


def leave_one_out_split(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return each user's last row as test, the one before it as valid, and all others as train.

    `rows` are in time order, and stay in it.
    """
    num_later = pl.int_range(pl.len() - 1, -1, -1).over("user_id")  # later rows of the same user
    later = rows.select(later=num_later)["later"]
    return {
        "train": rows.filter(later > 1),
        "valid": rows.filter(later == 1),
        "test": rows.filter(later == 0),
    }
