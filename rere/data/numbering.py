"""Dense ids instead of raw ones, and how often each item is a target."""

import numpy as np
import polars as pl

from rere.data.splits import ITEMS_SCHEMA


def codes(names: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Any whole numbers from 0 for raw ids (str), (events,) u32, and the id of each number."""
    distinct = names.unique().alias("name")
    numbered = distinct.to_frame().with_row_index("code")
    joined = (
        names.alias("name").to_frame().join(numbered, on="name", how="left", maintain_order="left")
    )
    return joined["code"], distinct


def number(
    kept: pl.DataFrame, users: pl.Series, titles: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Codes replaced by dense ids: events (user_id, item_id, timestamp), items (item_id, title).

    `kept` (user, item, timestamp) are the events with codes; `users` has the raw id of each
    user's code, `titles` (item, title) the raw id and the title of each item's.
    """
    user_ids, _ = dense(kept["user"], users)
    item_ids, order = dense(kept["item"], titles["item"])
    events = pl.DataFrame(
        {
            "user_id": user_ids.cast(pl.Int64),
            "item_id": item_ids.cast(pl.Int32),
            "timestamp": kept["timestamp"],
        }
    )
    return events, titles[order].with_row_index("item_id").select("item_id", "title")


def dense(used: pl.Series, names: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Dense ids of the codes that are used, in the order of their names, and the codes in it."""
    distinct = used.unique()
    order = distinct[in_order(names[distinct])]
    ids = np.empty(len(names), dtype=np.int64)
    ids[order.to_numpy()] = np.arange(len(order))
    return pl.Series(ids[used.to_numpy()]), order


def in_order(names: pl.Series) -> pl.Series:
    """The places of distinct raw ids (str) in their order: as numbers if all are, else as text."""
    keys = names.alias("text").to_frame().with_row_index("place")
    numbers = names.cast(pl.Int64, strict=False)
    if not numbers.has_nulls():
        # `1` and `01` are one number; their text tells them apart.
        return keys.with_columns(number=numbers).sort("number", "text")["place"]
    return keys.sort("text")["place"]


def dense_ids(raw: pl.Series) -> pl.Series:
    """The distinct raw ids (str) in the order of their dense ones.

    They are ordered as numbers if all of them are whole numbers, else by code point.
    """
    distinct = raw.unique()
    return distinct[in_order(distinct)]


def with_counts(items: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Items (item_id, title) with how often each is a target of `train`, as the contract has it."""
    counts = train.group_by(item_id="target").agg(count=pl.len())
    items = items.cast({"item_id": pl.Int32})
    items = items.join(counts, on="item_id", how="left", maintain_order="left")
    return items.with_columns(pl.col("count").fill_null(0)).cast(ITEMS_SCHEMA)
