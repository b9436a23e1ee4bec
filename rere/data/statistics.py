"""What a preprocessed data set looks like, in numbers."""

from datetime import UTC, datetime
from typing import Any

import polars as pl


def describe(items: pl.DataFrame, splits: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Numbers of a catalogue and its non-empty splits, as JSON."""
    rows, test = pl.concat(splits.values()), splits["test"]
    history, target = pl.col("history"), pl.col("target")
    return {
        "items": len(items),
        "distinct_titles": items["title"].n_unique(),
        "items_sharing_their_title": items["title"].is_duplicated().sum(),
        "mean_title_words": items["title"].str.split(" ").list.len().mean(),
        "mean_history_length": rows["history"].list.len().mean(),
        "share_of_test_targets_in_their_history": test.select(
            history.list.contains(target).mean()
        ).item(),
        "share_of_test_targets_equal_to_their_last_item": test.select(
            (history.list.last() == target).mean()
        ).item(),
        "splits": {split: span(frame) for split, frame in splits.items()},
    }


def span(rows: pl.DataFrame) -> dict[str, Any]:
    """How many rows, and when (UTC) the first and last of their targets happened, if known."""
    first, last = rows["timestamp"].min(), rows["timestamp"].max()
    return {
        "rows": len(rows),
        "first_timestamp": first,
        "last_timestamp": last,
        "first_date": date(first),
        "last_date": date(last),
    }


def date(timestamp: int | None) -> str | None:
    """The day of UTC seconds."""
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).date().isoformat()
