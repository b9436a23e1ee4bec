"""The files of a preprocessed data set, which `preprocess` writes to results/data/{dataset}.

items.parquet               item_id i32 (0 .. n-1), title str, count i64 (training targets)
train|valid|test.parquet    row_id i64, user_id i64, history list<i32> (oldest first),
                            target i32, timestamp i64 (UTC seconds or null)
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rere.errors import InputError

ITEMS_SCHEMA = {"item_id": pl.Int32, "title": pl.String, "count": pl.Int64}
SPLIT_SCHEMA = {
    "row_id": pl.Int64,
    "user_id": pl.Int64,
    "history": pl.List(pl.Int32),
    "target": pl.Int32,
    "timestamp": pl.Int64,
}
SPLITS = ("train", "valid", "test")


class ProcessedData(NamedTuple):
    """A catalogue and its splits, before they are written."""

    source_files: tuple[Path, ...]
    items: pl.DataFrame  # item_id, title
    splits: dict[str, pl.DataFrame]  # columns of SPLIT_SCHEMA, perhaps more
    stats: dict[str, Any]  # entries of stats.json about how they were made
    core: int | None = None  # events of each user and item at least, if known


def read_items(data: Path) -> pl.DataFrame:
    """Return a data set's catalogue in order of item_id; raise InputError if malformed."""
    items = read_parquet(data / "items.parquet", ITEMS_SCHEMA)
    if not items["item_id"].equals(pl.Series("item_id", range(len(items)), dtype=pl.Int32)):
        raise InputError(f"{data / 'items.parquet'}: item_id must count from 0 upwards")
    return items


def read_split(data: Path, split: str, rows: int | None = None) -> pl.DataFrame:
    """Return a split of a data set, or a sample of `rows` of it in the same order.

    The sample depends only on `rows` and the split's length, so every method of a study is scored
    on the same rows.
    """
    frame = read_parquet(data / f"{split}.parquet", SPLIT_SCHEMA)
    if rows is None or rows >= len(frame):
        return frame
    chosen = np.random.default_rng(0).choice(len(frame), size=rows, replace=False)
    return frame[np.sort(chosen)]


def read_parquet(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    """Return a parquet file's rows; raise InputError unless its columns are those of `schema`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `rere preprocess` writes it")
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable parquet file ({first})") from None
    if dict(frame.schema) != schema:
        raise InputError(f"{path}: has columns {dict(frame.schema)}, needs {schema}")
    return frame
