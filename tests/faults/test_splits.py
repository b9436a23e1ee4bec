"""Ready-made splits are checked, not cast, and results of `preprocess` wherever they are read."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import write_data

from rere.baselines.baseline import baseline
from rere.config.baselines import ItemKnn
from rere.config.data import Splits
from rere.config.evaluation import Evaluation
from rere.data.dataset import SPLITS, read_items, read_split
from rere.data.preprocess import preprocess
from rere.errors import InputError

INTEGERS = [
    pl.Int8,
    pl.Int16,
    pl.Int32,
    pl.Int64,
    pl.Int128,
    pl.UInt8,
    pl.UInt16,
    pl.UInt32,
    pl.UInt64,
]


def write_splits(folder: Path, items: Any = None, **columns: Any) -> Path:
    """Write splits of two rows each; `columns` replace some of those of train."""
    folder.mkdir()
    catalogue = {"item_id": [0, 1, 2], "title": ["A", "B", "B"]} | (items or {})
    pl.DataFrame(catalogue).write_parquet(folder / "items.parquet")
    rows = {"user_id": [7, 8], "history": [[0], [1, 2]], "target": [1, 0], "timestamp": [5, 6]}
    for split in SPLITS:
        changed = rows | columns if split == "train" else rows
        pl.DataFrame(changed).write_parquet(folder / f"{split}.parquet")
    return folder


def train_rows(tmp_path: Path, **columns: Any) -> list[tuple]:
    preprocess(Splits(), write_splits(tmp_path / "raw", **columns), tmp_path / "data")
    return read_split(tmp_path / "data", "train").rows()


def refusal(tmp_path: Path, **columns: Any) -> str:
    """The message that the splits are refused with, after the folder; nothing is written."""
    raw = write_splits(tmp_path / "raw", **columns)
    with pytest.raises(InputError) as caught:
        preprocess(Splits(), raw, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{raw}/")


# -------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_any_width_are_taken_as_they_are(tmp_path, dtype):
    columns = {name: pl.Series(values, dtype=dtype) for name, values in
               {"user_id": [7, 8], "target": [1, 0], "timestamp": [5, 6]}.items()}  # fmt: skip
    columns["history"] = pl.Series([[0], [1, 2]], dtype=pl.List(dtype))
    items = {"item_id": pl.Series([0, 1, 2], dtype=dtype)}
    rows = train_rows(tmp_path, items=items, **columns)
    assert rows == [(0, 0, [0], 1, 5), (1, 1, [1, 2], 0, 6)]
    assert read_items(tmp_path / "data").rows() == [
        (0, "A", 1, "0"),
        (1, "B", 1, "1"),
        (2, "B", 0, "2"),
    ]


def test_fixed_length_lists_and_columns_without_times_are_taken(tmp_path):
    history = pl.Series([[0, 1], [1, 2]], dtype=pl.Array(pl.Int64, 2))
    rows = train_rows(tmp_path, history=history, timestamp=[None, None])
    assert rows == [(0, 0, [0, 1], 1, None), (1, 1, [1, 2], 0, None)]


OTHER_TYPES = {
    "Float64": [1.0, 0.0],
    "Float32": pl.Series([1.9, 0.0], dtype=pl.Float32),
    "Boolean": [True, False],
    "Date": [date(1970, 1, 2), date(1970, 1, 1)],
    "Duration(time_unit='us')": [timedelta(1), timedelta(0)],
    "Decimal(precision=3, scale=1)": pl.Series(
        [Decimal("1.0"), Decimal("0.5")], dtype=pl.Decimal(3, 1)
    ),
    "text": ["1", "0"],
}


@pytest.mark.parametrize("held", OTHER_TYPES)
def test_targets_histories_and_item_ids_of_another_type_are_refused(tmp_path, held):
    values = pl.Series(OTHER_TYPES[held])
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert refusal(tmp_path / "a", target=values) == (
        f"train.parquet: column target holds {held}; cast it to integers"
    )
    history = values.reshape((2, 1)).arr.to_list()
    assert refusal(tmp_path / "b", history=history) == (
        f"train.parquet: column history holds lists of {held}; cast it to lists of integers"
    )
    items = {"item_id": values, "title": ["A", "B"]}
    assert refusal(tmp_path / "c", items=items) == (
        f"items.parquet: column item_id holds {held}; cast it to integers"
    )


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["0", "1"])])
def test_categories_are_no_integers(tmp_path, dtype):
    expected = "train.parquet: column target holds text; cast it to integers"
    assert refusal(tmp_path, target=pl.Series(["1", "0"], dtype=dtype)) == expected


def test_a_title_that_is_no_text_is_refused(tmp_path):
    expected = "items.parquet: column title holds integers; cast it to text"
    assert refusal(tmp_path, items={"title": [1917, 300, 12]}) == expected


@pytest.mark.parametrize(("target", "dtype"), [(3, pl.Int8), (-1, pl.Int64), (2**63, pl.UInt64)])
def test_an_integer_that_is_no_item_is_refused(tmp_path, target, dtype):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    expected = (
        "train.parquet: row at position 1 has an item that is not in items.parquet; correct it"
    )
    assert refusal(tmp_path / "a", target=pl.Series([1, target], dtype=dtype)) == expected
    history = pl.Series([[0], [1, target]], dtype=pl.List(dtype))
    assert refusal(tmp_path / "b", history=history) == expected


# ---------------------------------------------------------------------------- catalogue, nulls


@pytest.mark.parametrize(
    ("ids", "row"),
    [([0, 2, 3], 1), ([0, 1, 1], 2), ([1, 2, 3], 0), ([2, 1, 0], 0), ([0, None, 2], 1)],
)
def test_gaps_repeats_and_another_order_of_item_ids_are_refused(tmp_path, ids, row):
    assert refusal(tmp_path, items={"item_id": ids}) == (
        f"items.parquet: row at position {row} has another item_id; they count from 0 "
        "upwards; correct it"
    )


@pytest.mark.parametrize("title", [None, "", " ", "\t\n", "\u200b", "\u3000\ufeff"])
def test_an_item_without_a_visible_title_is_refused(tmp_path, title):
    expected = "items.parquet: row at position 1 has no title; correct it"
    assert refusal(tmp_path, items={"title": ["A", title, "C"]}) == expected


@pytest.mark.parametrize(
    ("title", "fault"),
    [
        ("A\nB", "has a line end, a tab or a control character in its title"),
        ("A\tB", "has a line end, a tab or a control character in its title"),
        ("A" * 1001, "has a title of more than 1000 characters"),
    ],
)
def test_a_title_that_no_prompt_can_hold_is_refused(tmp_path, title, fault):
    expected = f"items.parquet: row at position 2 {fault}; correct it"
    assert refusal(tmp_path, items={"title": ["A", "B", title]}) == expected


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("target", [1, None], "has no target"),
        ("history", [[0], None], "has no history"),
        ("history", [[0], [1, None]], "has no history"),
        ("history", [[0], []], "has an empty history"),
        ("user_id", [7, None], "has no user_id"),
        ("user_id", ["7", " "], "has no user_id"),
        ("user_id", ["7", "7 "], "has white space around its user_id"),
    ],
)
def test_a_row_that_lacks_a_value_is_named(tmp_path, column, values, fault):
    expected = f"train.parquet: row at position 1 {fault}; correct it"
    assert refusal(tmp_path, **{column: values}) == expected


# -------------------------------------------------------------------------------- users, times


@pytest.mark.parametrize("users", [["7", "8"], pl.Series(["7", "8"], dtype=pl.Categorical)])
def test_user_ids_of_two_types_are_refused(tmp_path, users):
    assert refusal(tmp_path, user_id=users) == (
        "valid.parquet: column user_id holds integers, that of "
        f"{tmp_path}/raw/train.parquet text; cast one of them"
    )


def test_fractional_user_ids_are_refused(tmp_path):
    expected = "train.parquet: column user_id holds Float64; cast it to integers or text"
    assert refusal(tmp_path, user_id=[7.0, 8.0]) == expected


def test_user_ids_that_were_written_as_fractions_are_refused(tmp_path):
    raw = write_splits(tmp_path / "raw")
    for split, users in zip(SPLITS, (["7", "8"], ["7.0", "9"], ["7", "8"]), strict=True):
        frame = pl.read_parquet(raw / f"{split}.parquet")
        frame.with_columns(user_id=pl.Series(users)).write_parquet(raw / f"{split}.parquet")
    with pytest.raises(InputError) as caught:
        preprocess(Splits(), raw, tmp_path / "data")
    assert str(caught.value) == (
        f"{raw}: user_ids 7 and 7.0 are the same number; write it alike in all splits"
    )


def test_users_are_the_same_in_splits_of_integers_of_different_widths(tmp_path):
    rows = train_rows(tmp_path, user_id=pl.Series([8, 7], dtype=pl.UInt8))
    assert [user for _, user, *_ in rows] == [1, 0]
    assert read_split(tmp_path / "data", "test")["user_id"].to_list() == [0, 1]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize(("zone", "hours"), [(None, 0), ("UTC", 0), ("Asia/Tokyo", 9)])
def test_a_datetime_is_converted_by_its_unit_and_zone(tmp_path, unit, zone, hours):
    times = pl.Series([datetime(2020, 1, 1, 12, 0, 1, 999_000)] * 2).cast(pl.Datetime(unit))
    seconds = int(datetime(2020, 1, 1, 12, 0, 1, tzinfo=UTC).timestamp()) - 3600 * hours
    rows = train_rows(tmp_path, timestamp=times.dt.replace_time_zone(zone))
    assert [time for *_, time in rows] == [seconds] * 2


@pytest.mark.parametrize("held", OTHER_TYPES)
def test_times_of_another_type_are_refused(tmp_path, held):
    assert refusal(tmp_path, timestamp=pl.Series(OTHER_TYPES[held])) == (
        f"train.parquet: column timestamp holds {held}; cast it to integers or Datetime"
    )


@pytest.mark.parametrize("time", [-1, 1_500_000_000_000, 9 * 10**18, datetime(1969, 1, 1)])
def test_times_that_cannot_be_seconds_are_refused(tmp_path, time):
    assert refusal(tmp_path, timestamp=[None, time]) == (
        "train.parquet: row at position 1 has a timestamp outside 0 .. 253402300799 seconds; "
        "correct it"
    )


def test_a_folder_with_a_pattern_in_its_name_is_read(tmp_path):
    folder = tmp_path / "shop[1]*"
    folder.mkdir()
    assert len(train_rows(folder)) == 2


# ----------------------------------------------------------------------- results of preprocess


def write_results(folder: Path) -> Path:
    rows = [([0], 1), ([1], 2), ([2], 0)]
    return write_data(folder, ["A", "B", "C"], train=rows, valid=rows, test=rows)


@pytest.mark.parametrize(
    ("name", "column", "values", "fault"),
    [
        ("items", "item_id", [0, 2, 1], "1 has another item_id"),
        ("items", "title", ["A", None, "C"], "1 has no title"),
        ("items", "title", ["A", "B", ""], "2 has no title"),
        ("items", "count", [None, 1, 1], "0 has no count"),
        ("items", "count", [1, 1, -1], "2 has a count below 0"),
        ("train", "row_id", [0, None, 2], "1 has no row_id"),
        ("train", "row_id", [0, 1, 1], "2 has a row_id that is not above the one before"),
        ("test", "row_id", [8, 7, 6], "1 has a row_id that is not above the one before"),
        ("train", "row_id", [-1, 1, 2], "0 has an id below 0"),
        ("train", "user_id", [0, None, 2], "1 has no user_id"),
        ("train", "user_id", [0, 1, -1], "2 has an id below 0"),
        ("train", "history", [[0], None, [2]], "1 has no history"),
        ("train", "history", [[0], [1], [2, None]], "2 has no history"),
        ("train", "history", [[], [1], [2]], "0 has an empty history"),
        ("train", "history", [[0], [-1], [2]], "1 has an item that is not in items.parquet"),
        ("test", "history", [[0], [1], [2, 3]], "2 has an item that is not in items.parquet"),
        ("train", "target", [None, 2, 0], "0 has no target"),
        ("train", "target", [1, 2, -1], "2 has an item that is not in items.parquet"),
        ("test", "target", [1, 9999, 0], "1 has an item that is not in items.parquet"),
    ],
)
def test_edited_results_are_refused_with_their_row(tmp_path, name, column, values, fault):
    data = write_results(tmp_path / "data")
    path = data / f"{name}.parquet"
    frame = pl.read_parquet(path)
    edited = pl.Series(values, dtype=frame.schema[column])
    frame.with_columns(edited.alias(column)).write_parquet(path)
    with pytest.raises(InputError) as caught:
        baseline(ItemKnn(), Evaluation(), data, 0, tmp_path / "predictions.parquet")
    message = str(caught.value)
    assert message.startswith(f"{path}: row at position {fault}")
    assert message.endswith("; make it again: `rere preprocess`")
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["items", *SPLITS])
def test_results_without_rows_are_refused(tmp_path, name):
    data = write_results(tmp_path / "data")
    path = data / f"{name}.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(InputError) as caught:
        read_items(data) if name == "items" else read_split(data, name)
    assert str(caught.value) == f"{path}: has no rows; make it again: `rere preprocess`"


def test_splits_of_a_larger_catalogue_are_refused(tmp_path):
    data = write_results(tmp_path / "data")
    path = data / "items.parquet"
    pl.read_parquet(path).head(2).write_parquet(path)
    with pytest.raises(
        InputError, match=r"train\.parquet: row at position 1 has an item that is not in items"
    ):
        read_split(data, "train")


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt32, pl.Float64, pl.String])
def test_results_of_another_type_are_refused(tmp_path, dtype):
    data = write_results(tmp_path / "data")
    path = data / "valid.parquet"
    pl.read_parquet(path).cast({"target": dtype}).write_parquet(path)
    with pytest.raises(
        InputError, match=r"valid\.parquet: column target holds \w+, not Int32; make"
    ):
        read_split(data, "valid")
