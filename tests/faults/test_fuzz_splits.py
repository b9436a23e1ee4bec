"""Any splits and any catalogue are refused with one line, or read as they are."""

from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import polars as pl
import pytest
from data_frames import items_frame
from hypothesis import given
from hypothesis import strategies as st

from rere.data.dataset import ITEMS_SCHEMA, SPLITS, read_items
from rere.data.readers.ready_made_splits import read_ready_made_splits
from rere.errors import InputError


class Fault(NamedTuple):
    """Values that replace a column of a file, perhaps by others that are right, too."""

    file: str
    column: str
    values: list[Any]
    dtype: Any


def integer_types() -> st.SearchStrategy[Any]:
    return st.sampled_from([pl.Int8, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt64])


def other_types() -> st.SearchStrategy[Any]:
    return st.sampled_from([pl.Float64, pl.Boolean, pl.String, pl.Decimal(5, 1), pl.Date])


def faults(*columns: tuple[str, str]) -> st.SearchStrategy[Fault]:
    numbers = st.sampled_from([0, 1, 2, None, -1, 3, 2**62])
    texts = st.sampled_from(["A", "7", "7.0", " 7", "", "\t", "\u200b", None])

    def fault(values: st.SearchStrategy, types: st.SearchStrategy) -> st.SearchStrategy[Fault]:
        where = st.sampled_from(columns)
        return st.builds(
            lambda at, *rest: Fault(*at, *rest),
            where,
            st.lists(values, min_size=1, max_size=3),
            types,
        )

    text_types = st.sampled_from([pl.String, pl.Categorical])
    return fault(numbers, integer_types() | other_types()) | fault(texts, text_types)


def replace(frame: pl.DataFrame, fault: Fault) -> pl.DataFrame:
    """A frame with a fault's values; those that its type cannot hold are null."""
    values = pl.Series(list(islice(cycle(fault.values), len(frame)))).cast(
        fault.dtype, strict=False
    )
    if fault.column == "history":
        values = values.reshape((-1, 1)).arr.to_list()
    return frame.with_columns(values.alias(fault.column))


def rows() -> st.SearchStrategy[list[tuple]]:
    """Rows of user, history, target and timestamp, of a catalogue of three items."""
    item = st.integers(0, 2)
    row = st.tuples(item, st.lists(item, min_size=1, max_size=3), item, st.sampled_from([None, 5]))
    return st.lists(row, min_size=1, max_size=3)


def check_refusal(error: InputError, folder: Path) -> None:
    assert str(error).startswith(f"{folder}")
    assert len(str(error).splitlines()) == 1
    assert "; " in str(error)  # the remedy


@pytest.mark.fuzz
@given(
    splits=st.tuples(*[rows()] * 3),
    users=st.sampled_from([[7, 8, 9], ["7", "8", "x"]]),
    dtype=integer_types(),
    fault=st.none()
    | faults(
        *(("items", name) for name in ("item_id", "title")),
        *((s, name) for s in SPLITS for name in ("user_id", "history", "target", "timestamp")),
    ),
)
def test_splits_are_refused_or_read_as_they_are(splits, users, dtype, fault):
    frames = {"items": pl.DataFrame({"item_id": [0, 1, 2], "title": ["A", "B", "A"]})}
    schema = {"history": pl.List(dtype), "target": dtype, "timestamp": dtype}
    for split, given_rows in zip(SPLITS, splits, strict=True):
        columns = zip(("user_id", *schema), zip(*given_rows, strict=True), strict=True)
        frame = pl.DataFrame(dict(columns), schema_overrides=schema)
        frames[split] = frame.with_columns(user_id=pl.Series([users[u] for u in frame["user_id"]]))
    if fault is not None:
        frames[fault.file] = replace(frames[fault.file], fault)

    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, frame in frames.items():
            frame.write_parquet(folder / f"{file}.parquet")
        try:
            read = read_ready_made_splits(folder)
        except InputError as error:
            check_refusal(error, folder)
            return
    assert read.items.select("item_id", "title").rows() == frames["items"].rows()
    for split in SPLITS:
        for column in ("history", "target", "timestamp"):
            written = frames[split][column]
            assert written.explode().dtype.is_integer() or written.null_count() == len(written)
            assert read.splits[split][column].to_list() == written.to_list()
    # Rows are numbered; equal users have equal ids, and no others.
    all_rows = pl.concat([read.splits[split] for split in SPLITS])
    assert all_rows["row_id"].to_list() == list(range(len(all_rows)))
    names = [user for split in SPLITS for user in frames[split]["user_id"]]
    assert {type(user) for user in names} in ({int}, {str})
    pairs = set(zip(names, all_rows["user_id"], strict=True))
    assert len(pairs) == len(set(names)) == all_rows["user_id"].n_unique()


@pytest.mark.fuzz
@given(fault=st.none() | faults(*(("items", name) for name in ITEMS_SCHEMA)))
def test_a_catalogue_is_refused_or_read_as_it_is(fault):
    frame = items_frame(["A", "B", "A"], [4, 0, 1])
    if fault is not None:
        frame = replace(frame, fault)
    with TemporaryDirectory() as name:
        folder = Path(name)
        frame.write_parquet(folder / "items.parquet")
        try:
            read = read_items(folder)
        except InputError as error:
            check_refusal(error, folder)
            return
    assert read.rows() == frame.rows()
    assert read["item_id"].to_list() == [0, 1, 2]
    assert all(title.strip() and count >= 0 for _, title, count, _ in read.rows())
    assert read["raw_id"].n_unique() == len(read)
