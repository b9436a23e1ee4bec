"""Read ready-made splits, check them and assign ids.

    items.parquet               item_id (0 .. n-1), title, and optionally raw_id (text)
    train|valid|test.parquet    user_id (integers or text), history (item ids, oldest first),
                                target, and optionally timestamp (integers in UTC seconds, or
                                Datetime, in UTC if it has no zone)

A column of another type is refused: no number is rounded and no text is parsed, but a Datetime
loses its fraction of a second. Other columns are dropped. Users are numbered anew from 0. Rows keep
their order; row_id counts through all three splits.
"""

from pathlib import Path

import polars as pl

from rere.data.dataset import (
    ITEM_FAULTS,
    RAW_ID_FAULTS,
    SPLIT_SCHEMA,
    SPLITS,
    Faults,
    ProcessedData,
    Schema,
    check_rows,
    readable_parquet,
    row_faults,
)
from rere.data.ids import number_users, sorted_distinct
from rere.data.readers.events import MAX_SECOND
from rere.data.titles import TITLE_FAULTS
from rere.errors import InputError

INTEGERS, INTEGER_LISTS, TEXT, TIMES = "integers", "lists of integers", "text", "Datetime"

Columns = dict[str, tuple[str, ...]]
"""What each column may hold, in the words of `describe_type`."""

ITEM_COLUMNS: Columns = {"item_id": (INTEGERS,), "title": (TEXT,), "raw_id": (TEXT,)}
ROW_COLUMNS: Columns = {
    "user_id": (INTEGERS, TEXT),
    "history": (INTEGER_LISTS,),
    "target": (INTEGERS,),
    "timestamp": (INTEGERS, TIMES),
}
ROW_TYPES: Schema = {name: SPLIT_SCHEMA[name] for name in ROW_COLUMNS} | {"user_id": pl.String}

USER = pl.col("user_id").cast(pl.String)
ROW_FAULTS: Faults = {
    "has no user_id": (USER.str.strip_chars() == "").fill_null(True),
    "has white space around its user_id": USER.str.strip_chars() != USER,
    f"has a timestamp outside 0 .. {MAX_SECOND} seconds": ~pl.col("timestamp").is_between(
        0, MAX_SECOND
    ),
}


def read_ready_made_splits(folder: Path) -> ProcessedData:
    """Return the splits in a folder; raise InputError with the file and row that is wrong."""
    paths = find_split_files(folder)
    items = read_columns(paths["items"], ITEM_COLUMNS, optional="raw_id")
    if items["raw_id"].is_null().all():
        items = items.with_columns(raw_id=pl.col("item_id").cast(pl.String))
    check_rows(paths["items"], items, ITEM_FAULTS | TITLE_FAULTS | RAW_ID_FAULTS, "correct it")
    faults, frames, user_types = row_faults(len(items)) | ROW_FAULTS, [], {}
    for split in SPLITS:
        frame = read_columns(paths[split], ROW_COLUMNS, optional="timestamp")
        check_rows(paths[split], frame, faults, "correct it")
        user_types[paths[split]] = describe_type(frame.schema["user_id"])
        frames.append(frame.cast(ROW_TYPES).with_columns(split=pl.lit(split)))
    rows = pl.concat(frames)
    users = sorted_distinct(rows["user_id"])
    check_users(user_types, users)

    rows = rows.with_columns(
        row_id=pl.int_range(pl.len()),
        user_id=pl.col("user_id").replace_strict(users, range(len(users)), return_dtype=pl.Int64),
    )
    splits = {
        split: rows.filter(split=split).select(*SPLIT_SCHEMA).cast(SPLIT_SCHEMA) for split in SPLITS
    }
    items = items.cast({"item_id": pl.Int32, "title": pl.String, "raw_id": pl.String})
    return ProcessedData(tuple(paths.values()), items, number_users(users), splits, {})


def find_split_files(folder: Path) -> dict[str, Path]:
    """Return the files of items and splits by name; raise InputError if one is missing."""
    paths = {name: folder / f"{name}.parquet" for name in ("items", *SPLITS)}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; ready-made splits need it")
    return paths


def read_columns(path: Path, columns: Columns, optional: str | None = None) -> pl.DataFrame:
    """Return columns of a parquet file: arrays as lists, Datetime as UTC seconds.

    The `optional` column is null if it is missing. Raises InputError if the file is not readable,
    another column is missing, or one holds something else than `columns` says.
    """
    with readable_parquet(path):
        rows = pl.scan_parquet(path, glob=False)
        types = given = rows.collect_schema()
        if optional is not None and isinstance(types.get(optional, pl.Null()), pl.Null):
            empty = pl.String() if columns[optional] == (TEXT,) else pl.Int64()
            rows = rows.with_columns(pl.lit(None, empty).alias(optional))
            types = rows.collect_schema()
        for name, allowed in columns.items():
            if name not in types:
                names = ", ".join(n if n.isprintable() else ascii(n) for n in given)
                raise InputError(f"{path}: has no column {name}; it has {names}")
            if (held := describe_type(types[name])) not in allowed:
                wanted = " or ".join(allowed)
                raise InputError(f"{path}: column {name} holds {held}; cast it to {wanted}")
        return rows.select(plain_values(name, types[name]) for name in columns).collect()


def describe_type(dtype: pl.DataType) -> str:
    """Return what a column of a type holds."""
    match dtype:
        case pl.String() | pl.Categorical() | pl.Enum():
            return TEXT
        case pl.Datetime():
            return TIMES
        case pl.List() | pl.Array():
            return f"lists of {describe_type(dtype.inner)}"
    return INTEGERS if dtype.is_integer() else str(dtype)


def plain_values(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column with arrays as lists and Datetime as whole UTC seconds."""
    match dtype:
        case pl.Array():
            return pl.col(name).arr.to_list()
        case pl.Datetime():
            return pl.col(name).dt.epoch("s")
    return pl.col(name)


def check_users(types: dict[Path, str], users: pl.Series) -> None:
    """Raise InputError if one user may have two user_ids, such as 7, 7.0 and "7".

    `types` says what the user_ids of each file are, `users` has the distinct ones of all as text.
    """
    (first, expected), *others = types.items()
    for path, held in others:
        if held != expected:
            raise InputError(
                f"{path}: column user_id holds {held}, that of {first} {expected}; cast one of them"
            )
    whole = users.str.replace(r"^(-?\d+)\.0+$", "$1")
    if len(twins := users.filter(whole.is_duplicated())):
        raise InputError(
            f"{first.parent}: user_ids {twins[0]} and {twins[1]} are the same number; "
            "write it alike in all splits"
        )
