"""Dense ids instead of raw ones, and how often each item is a target."""

import polars as pl

from rere.data.splits import ITEMS_SCHEMA


def number(kept: pl.DataFrame, titles: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Raw ids replaced by dense ones: events (user_id, item_id, timestamp), items (item_id, title).

    `kept` (user, item, timestamp) are the events, `titles` (item, title) at least their items.
    """
    users = dense_ids(kept["user"])
    items = dense_ids(kept["item"])
    events = kept.select(
        user_id=pl.col("user").replace_strict(users, range(len(users)), return_dtype=pl.Int64),
        item_id=pl.col("item").replace_strict(items, range(len(items)), return_dtype=pl.Int32),
        timestamp="timestamp",
    )
    catalogue = items.to_frame().join(titles, on="item", how="left", maintain_order="left")
    return events, catalogue.with_row_index("item_id").select("item_id", "title")


def dense_ids(raw: pl.Series) -> pl.Series:
    """The distinct raw ids (str) in the order of their dense ones.

    They are ordered as numbers if all of them are whole numbers, else by code point.
    """
    ids = raw.unique().sort()
    numbers = ids.cast(pl.Int64, strict=False)
    if numbers.has_nulls():
        return ids
    # Stable, so that `1` and `01` keep the order of their text.
    return ids.to_frame().sort(pl.col(raw.name).cast(pl.Int64), maintain_order=True).to_series()


def with_counts(items: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Items (item_id, title) with how often each is a target of `train`, as the contract has it."""
    counts = train.group_by(item_id="target").agg(count=pl.len())
    items = items.cast({"item_id": pl.Int32})
    items = items.join(counts, on="item_id", how="left", maintain_order="left")
    return items.with_columns(pl.col("count").fill_null(0)).cast(ITEMS_SCHEMA)
