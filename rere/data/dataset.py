"""The files of a preprocessed data set, which `preprocess` writes to results/data/{dataset}.

items.parquet               item_id i32 (0 .. n-1), title str, count i64 (training targets),
                            raw_id str (the item in the raw data)
users.parquet               user_id i64 (0 .. n-1), raw_id str (the user in the raw data)
train|valid|test.parquet    row_id i64, user_id i64, history list<i32> (oldest first),
                            target i32, timestamp i64 (UTC seconds or null)

row_id ascends within a split.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rere.data.titles import TITLE, VISIBLE_PATTERN
from rere.errors import InputError

Schema = dict[str, pl.DataType | type[pl.DataType]]
Faults = dict[str, pl.Expr]
"""What can be wrong with a row, and the expression that finds it, in order of reporting."""

ITEMS_SCHEMA: Schema = {
    "item_id": pl.Int32,
    "title": pl.String,
    "count": pl.Int64,
    "raw_id": pl.String,
}
USERS_SCHEMA: Schema = {"user_id": pl.Int64, "raw_id": pl.String}
SPLIT_SCHEMA: Schema = {
    "row_id": pl.Int64,
    "user_id": pl.Int64,
    "history": pl.List(pl.Int32),
    "target": pl.Int32,
    "timestamp": pl.Int64,
}
SPLITS = ("train", "valid", "test")


def misnumbered(column: str) -> Faults:
    """The fault of rows whose ids do not count from 0 upwards."""
    is_other = pl.col(column).ne_missing(pl.int_range(pl.len()))
    return {f"has another {column}; they count from 0 upwards": is_other}


ITEM_FAULTS: Faults = {
    **misnumbered("item_id"),
    "has no title": ~TITLE.fill_null("").str.contains(VISIBLE_PATTERN),
}
USER_FAULTS = misnumbered("user_id")
RAW_ID_FAULTS: Faults = {
    "has no raw_id": (pl.col("raw_id") == "").fill_null(True),
    "has the raw_id of another row": pl.col("raw_id").is_duplicated(),
}
COUNT_FAULTS: Faults = {
    "has no count": pl.col("count").is_null(),
    "has a count below 0": pl.col("count") < 0,
}
ID_FAULTS: Faults = {
    "has no row_id": pl.col("row_id").is_null(),
    "has no user_id": pl.col("user_id").is_null(),
    "has an id below 0": (pl.col("row_id") < 0) | (pl.col("user_id") < 0),
    # Repeated rows, and an order in which `sample_rows` would choose others.
    "has a row_id that is not above the one before": pl.col("row_id").diff() <= 0,
}
PREPROCESS = "`rere preprocess`"
PREPROCESS_AGAIN = f"make it again: {PREPROCESS}"


class ProcessedData(NamedTuple):
    """A catalogue and its splits, before they are written."""

    source_files: tuple[Path, ...]
    items: pl.DataFrame  # item_id, title, raw_id
    users: pl.DataFrame  # columns of USERS_SCHEMA
    splits: dict[str, pl.DataFrame]  # columns of SPLIT_SCHEMA, perhaps more
    stats: dict[str, Any]  # entries of stats.json about how they were made
    core: int | None = None  # events of each user and item at least, if known
    num_unlisted: int | None = None  # events of items not in the file of titles, if known


def read_items(data: Path, stage: str = PREPROCESS) -> pl.DataFrame:
    """Return a data set's catalogue in order of item_id; raise InputError if malformed.

    `stage` writes it, as a message says.
    """
    path = data / "items.parquet"
    items = read_parquet(path, ITEMS_SCHEMA, stage)
    check_rows(path, items, ITEM_FAULTS | COUNT_FAULTS | RAW_ID_FAULTS, f"make it again: {stage}")
    return items


def read_users(data: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Return a data set's users in order of user_id.

    Raises InputError if users.parquet is malformed, or lacks a user of `rows`.
    """
    path = data / "users.parquet"
    users = read_parquet(path, USERS_SCHEMA, PREPROCESS)
    check_rows(path, users, USER_FAULTS | RAW_ID_FAULTS, PREPROCESS_AGAIN)
    missing = rows.filter(pl.col("user_id") >= len(users))
    if len(missing):
        raise InputError(f"{path}: lacks user_id {missing['user_id'][0]}; {PREPROCESS_AGAIN}")
    return users


def read_split(data: Path, split: str, rows: int | None = None) -> pl.DataFrame:
    """Return a split of a data set, or `sample_rows` of it; raise InputError if malformed."""
    path = data / f"{split}.parquet"
    frame = read_parquet(path, SPLIT_SCHEMA, PREPROCESS)
    num_items = read_parquet(
        data / "items.parquet", ITEMS_SCHEMA, PREPROCESS, values=pl.len()
    ).item()
    check_rows(path, frame, ID_FAULTS | row_faults(num_items), PREPROCESS_AGAIN)
    return frame if rows is None else sample_rows(frame, rows)


def sample_rows(split: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Return a sample of `rows` rows of a split in the same order, or all if it has no more.

    The sample depends only on `rows` and the split's length, so every method of a study is scored
    on the same rows.
    """
    if rows >= len(split):
        return split
    chosen = np.random.default_rng(0).choice(len(split), size=rows, replace=False)
    return split[np.sort(chosen)]


def read_parquet(
    path: Path,
    schema: Schema,
    stages: str,
    values: pl.Expr | None = None,
    unread: Sequence[str] = (),
) -> pl.DataFrame:
    """Return a parquet file's rows, or only `values` of them, without its columns `unread`.

    Raises InputError, with the `stages` that write the file, unless its other columns are those of
    `schema`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {stages} writes it")
    remedy = f"make it again: {stages}"
    with readable_parquet(path, remedy):
        frame = pl.scan_parquet(path, glob=False).drop(unread, strict=False)
        found = dict(frame.collect_schema())
        for name in [*schema, *found]:
            if name not in found:
                raise InputError(f"{path}: has no column {name}; {remedy}")
            if name not in schema:
                raise InputError(f"{path}: has a column {name!a} too many; {remedy}")
            if (held := found[name]) != schema[name]:
                raise InputError(
                    f"{path}: column {name} holds {held}, not {schema[name]}; {remedy}"
                )
        return frame.select(pl.all() if values is None else values).collect()


@contextmanager
def readable_parquet(path: Path, remedy: str = "make it again") -> Iterator[None]:
    """Raise InputError with the `remedy` for an error in reading the parquet file at `path`."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable parquet file ({first}); {remedy}") from None


def row_faults(num_items: int) -> Faults:
    """Return what can be wrong with a split's history and target, in order of reporting.

    They have integers of any type. The catalogue has `num_items` items.
    """
    history, target = pl.col("history"), pl.col("target")
    return {
        "has no target": target.is_null(),
        "has no history": history.is_null() | history.list.eval(pl.element().is_null()).list.any(),
        "has an empty history": history.list.len() == 0,
        "has an item that is not in items.parquet": ~target.is_between(0, num_items - 1)
        | (history.list.min() < 0)
        | (history.list.max() >= num_items),
    }


def check_rows(path: Path, rows: pl.DataFrame, faults: Faults, remedy: str) -> None:
    """Raise InputError with the `remedy` if a file has no rows or one of them has a fault.

    The message has the row's position, counted from 0.
    """
    if rows.is_empty():
        raise InputError(f"{path}: has no rows; {remedy}")
    if found := first_fault(rows, faults):
        position, fault = found
        raise InputError(f"{path}: row at position {position} {fault}; {remedy}")


def first_fault(rows: pl.DataFrame, faults: Faults) -> tuple[int, str] | None:
    """Return the position (from 0) of the first row with a fault, and the fault, or None.

    `faults` are tried in order; an expression that is null finds none.
    """
    firsts = rows.select(
        pl.arg_where(found).first().alias(fault) for fault, found in faults.items()
    )
    for fault, position in firsts.row(0, named=True).items():
        if position is not None:
            return position, fault
    return None
