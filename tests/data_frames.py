"""Frames of a data set's items and users, and of the rows of a split."""

from collections.abc import Sequence

import polars as pl

from rere.data.dataset import ITEMS_SCHEMA, SPLIT_SCHEMA, USERS_SCHEMA


def items_frame(titles: Sequence[str], counts: Sequence[int] | None = None) -> pl.DataFrame:
    """Items with these titles and numbers of training targets, by default 1."""
    counts = [1] * len(titles) if counts is None else counts
    ids = range(len(titles))
    columns = {"item_id": ids, "title": titles, "count": counts, "raw_id": [f"raw{i}" for i in ids]}
    return pl.DataFrame(columns, schema=ITEMS_SCHEMA)


def users_frame(num_users: int) -> pl.DataFrame:
    """So many users; the raw id of user 0 is u0."""
    ids = range(num_users)
    return pl.DataFrame({"user_id": ids, "raw_id": [f"u{i}" for i in ids]}, schema=USERS_SCHEMA)


def split_frame(
    histories: Sequence[Sequence[int]],
    targets: Sequence[int],
    users: Sequence[int] | None = None,
    first_row: int = 0,
) -> pl.DataFrame:
    """Rows without timestamps, each of another user by default."""
    columns = {
        "row_id": range(first_row, first_row + len(targets)),
        "user_id": range(len(targets)) if users is None else users,
        "history": histories,
        "target": targets,
        "timestamp": [None] * len(targets),
    }
    return pl.DataFrame(columns, schema=SPLIT_SCHEMA)
