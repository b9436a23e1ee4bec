"""The format of predictions, which every method writes for the test rows.

predictions.parquet    row_id i64, user_id i64, target i32,
                       items list<i32> (ranked ids, best first, distinct, at least one),
                       scores list<f32> (one per item: finite, never increasing)
                       raw_user_id str, raw_target str, raw_items list<str>
                       (ids of the raw data; nothing reads them, older files lack them)
"""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.data.dataset import (
    Faults,
    Schema,
    first_fault,
    read_parquet,
    read_users,
)
from rere.errors import InputError
from rere.files import replacing

PREDICTIONS_SCHEMA: Schema = {
    "row_id": pl.Int64,
    "user_id": pl.Int64,
    "target": pl.Int32,
    "items": pl.List(pl.Int32),
    "scores": pl.List(pl.Float32),
}

RAW_COLUMNS = ("raw_user_id", "raw_target", "raw_items")

STAGES = "`rere recommend`, `rere decode` or `rere baseline`"
"""The stages that write predictions."""
PREDICT_AGAIN = f"make it again: {STAGES}"

ITEMS, SCORES = pl.col("items"), pl.col("scores")
FAULTS: Faults = {
    "has a null": pl.any_horizontal(pl.col(*PREDICTIONS_SCHEMA).is_null())
    | ITEMS.list.eval(pl.element().is_null()).list.any()
    | SCORES.list.eval(pl.element().is_null()).list.any(),
    "comes twice": pl.col("row_id").is_duplicated(),
    "has no items": ITEMS.list.len() == 0,
    "ranks an item twice": ITEMS.list.n_unique() != ITEMS.list.len(),
    "has a different number of scores and items": SCORES.list.len() != ITEMS.list.len(),
    "has a score that is not finite": ~SCORES.list.eval(pl.element().is_finite()).list.all(),
    "has a score above the one before": SCORES.list.diff(null_behavior="drop").list.max() > 0,
}


class RawIds(NamedTuple):
    """The ids that users and items have in the raw data, by user_id and item_id."""

    users: pl.Series  # of strings
    items: pl.Series  # of strings


def read_raw_ids(data: Path, rows: pl.DataFrame, items: pl.DataFrame) -> RawIds:
    """The raw ids of a data set with these `items`.

    Raises InputError if users.parquet is malformed, or lacks a user of `rows`.

    Stages call it before they rank, which takes long.
    """
    return RawIds(read_users(data, rows)["raw_id"], items["raw_id"])


def write_predictions(
    path: Path,
    rows: pl.DataFrame,
    items: list[list[int]],
    scores: list[list[float]],
    raw_ids: RawIds | None = None,
) -> None:
    """Write the ranked `items` and their `scores` for the `rows` of a split.

    With `raw_ids` also RAW_COLUMNS. Raises AssertionError for a list that breaks the format, which
    is a bug of the method.
    """
    assert len(rows) == len(items) == len(scores), (len(rows), len(items), len(scores))
    frame = rows.select("row_id", "user_id", "target").with_columns(
        pl.Series("items", items, PREDICTIONS_SCHEMA["items"]),
        pl.Series("scores", scores, PREDICTIONS_SCHEMA["scores"]),
    )
    assert dict(frame.schema) == PREDICTIONS_SCHEMA, frame.schema
    fault = describe_fault(frame)
    assert fault is None, fault
    if raw_ids is not None:
        frame = frame.with_columns(
            raw_ids.users.gather(frame["user_id"]).alias("raw_user_id"),
            raw_ids.items.gather(frame["target"]).alias("raw_target"),
            gather_lists(raw_ids.items, frame["items"]).alias("raw_items"),
        )
    with replacing(path) as temporary:
        frame.write_parquet(temporary)


def gather_lists(values: pl.Series, positions: pl.Series) -> pl.Series:
    """Lists of the `values` at lists of positions, none of them empty.

    They are categorical, since polars writes a dictionary of strings in lists for no other type.
    """
    frame = positions.alias("position").to_frame().with_row_index("row").explode("position")
    gathered = values.cast(pl.Categorical).gather(frame["position"])
    lists = frame.select("row", gathered.alias("values")).group_by("row", maintain_order=True).all()
    return lists["values"]


def read_predictions(path: Path) -> pl.DataFrame:
    """Predictions with PREDICTIONS_SCHEMA; raises InputError if the file is missing or malformed.

    `rere.evaluation.metrics` checks that they are of the data set's rows and items.
    """
    frame = read_parquet(path, PREDICTIONS_SCHEMA, STAGES, unread=RAW_COLUMNS)
    if frame.is_empty():
        raise InputError(f"{path}: has no rows; {PREDICT_AGAIN}")
    if fault := describe_fault(frame):
        raise InputError(f"{path}: {fault}; {PREDICT_AGAIN}")
    return frame


def describe_fault(frame: pl.DataFrame) -> str | None:
    """What is wrong with the first row that breaks the format, or None."""
    if found := first_fault(frame, FAULTS):
        position, fault = found
        row_id = frame["row_id"][position]
        return (
            f"row at position {position} {fault}" if row_id is None else f"row_id {row_id} {fault}"
        )
    return None
