"""Statistics of a preprocessed data set."""

from datetime import UTC, datetime
from typing import Any

import polars as pl


def dataset_statistics(items: pl.DataFrame, splits: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Return statistics of a catalogue and its non-empty splits, as JSON values."""
    rows = pl.concat(splits.values())
    return {
        "items": len(items),
        "distinct_titles": items["title"].n_unique(),
        "items_sharing_their_title": items["title"].is_duplicated().sum(),
        "mean_title_words": items["title"].str.split(" ").list.len().mean(),
        "mean_history_length": rows["history"].list.len().mean(),
        "splits": {split: split_statistics(frame) for split, frame in splits.items()},
    }


def split_statistics(rows: pl.DataFrame) -> dict[str, Any]:
    """Return the number of rows, and the times (UTC) of the first and last target, if known."""
    first, last = rows["timestamp"].min(), rows["timestamp"].max()
    return {
        "rows": len(rows),
        "first_timestamp": first,
        "last_timestamp": last,
        "first_date": utc_day(first),
        "last_date": utc_day(last),
    }


def utc_day(timestamp: int | None) -> str | None:
    """Return the UTC day of a timestamp in seconds, as YYYY-MM-DD."""
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).date().isoformat()
