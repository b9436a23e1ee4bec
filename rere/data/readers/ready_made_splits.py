"""Read ready-made splits, check them and assign ids.

    items.parquet               item_id (0 .. n-1), title
    train|valid|test.parquet    user_id (whole number or text), history (item ids, oldest first),
                                target, and optionally timestamp (UTC seconds)

Other columns are ignored. Rows keep their order; row_id counts through all three splits.
"""

from pathlib import Path

import polars as pl

from rere.data.dataset import SPLIT_SCHEMA, SPLITS, ProcessedData
from rere.data.ids import sorted_distinct
from rere.errors import InputError

ITEM_COLUMNS = {"item_id": pl.Int32, "title": pl.String}
ROW_COLUMNS = {"user_id": pl.String, "history": pl.List(pl.Int32), "target": pl.Int32}


def read_ready_made_splits(folder: Path) -> ProcessedData:
    """Return the splits in a folder; raise InputError with the file and row that is wrong."""
    paths = {name: folder / f"{name}.parquet" for name in ("items", *SPLITS)}
    items = read_columns(paths["items"], ITEM_COLUMNS)
    if not items["item_id"].equals(pl.Series("item_id", range(len(items)), dtype=pl.Int32)):
        raise InputError(f"{paths['items']}: item_id must count from 0 upwards")

    known = pl.element().is_between(0, len(items) - 1)
    faults = {
        "has an empty history": pl.col("history").list.len() == 0,
        "has an item that is not in items.parquet": ~pl.col("history").list.eval(known).list.all()
        | ~pl.col("target").is_between(0, len(items) - 1),
    }
    frames = []
    for split in SPLITS:
        frame = read_columns(paths[split], ROW_COLUMNS, {"timestamp": pl.Int64})
        if frame.is_empty():
            raise InputError(f"{paths[split]}: has no rows")
        for fault, is_wrong in faults.items():
            rows = frame.with_row_index().filter(is_wrong)
            if len(rows):
                raise InputError(f"{paths[split]}: row {rows['index'][0]} {fault}; correct it")
        frames.append(frame.with_columns(split=pl.lit(split)))
    rows = pl.concat(frames)
    users = sorted_distinct(rows["user_id"])
    rows = rows.with_columns(
        row_id=pl.int_range(pl.len()),
        user_id=pl.col("user_id").replace_strict(users, range(len(users)), return_dtype=pl.Int64),
    )
    splits = {
        split: rows.filter(split=split).select(*SPLIT_SCHEMA).cast(SPLIT_SCHEMA) for split in SPLITS
    }
    return ProcessedData(tuple(paths.values()), items, splits, {})


def read_columns(path: Path, needed: dict, optional: dict | None = None) -> pl.DataFrame:
    """Return columns of a parquet file, cast to the given types; a missing optional one is null.

    Raises InputError if the file or a needed column is missing, or a needed value is null or of
    another type.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; ready-made splits need it")
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable parquet file ({first})") from None
    for name in (optional or {}).keys() - set(frame.columns):
        frame = frame.with_columns(pl.lit(None).alias(name))
    types = needed | (optional or {})
    if missing := needed.keys() - set(frame.columns):
        raise InputError(f"{path}: has no column {min(missing)}; it has {', '.join(frame.columns)}")
    try:
        frame = frame.select(*types).cast(types)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}; needs {types}") from None
    for name, kind in needed.items():
        empty = pl.col(name).is_null()
        if isinstance(kind, pl.List):
            empty |= pl.col(name).list.eval(pl.element().is_null()).list.any()
        rows = frame.with_row_index().filter(empty)
        if len(rows):
            raise InputError(f"{path}: row {rows['index'][0]} has no {name}; correct it")
    return frame
