"""Ready-made splits are checked, numbered and otherwise unchanged."""

import json
from pathlib import Path

import polars as pl
import pytest

from rere.config.data import Splits
from rere.data.dataset import SPLITS, read_items, read_split
from rere.data.preprocess import preprocess
from rere.errors import InputError

INDUSTRIAL = Path(__file__).parents[4] / "shared" / "data" / "industrial"

ROWS = {
    "train": [("u7", [0], 1), ("u7", [0, 1], 2), ("a", [2], 1)],
    "valid": [("a", [2, 1], 0)],
    "test": [("new", [1], 1)],
}
ROW_SCHEMA = {"user_id": pl.String, "history": pl.List(pl.Int64), "target": pl.Int64}


def write(folder: Path, **changes: pl.DataFrame | None) -> Path:
    """Write ready-made splits to a folder; `changes` replace some files, or leave them out."""
    folder.mkdir()
    frames = {"items": pl.DataFrame({"item_id": [0, 1, 2], "title": ["A", "B", "B"], "more": 1})}
    frames |= {s: pl.DataFrame(rows, ROW_SCHEMA, orient="row") for s, rows in ROWS.items()}
    for name, frame in (frames | changes).items():
        if frame is not None:
            frame.write_parquet(folder / f"{name}.parquet")
    return folder


def train(*rows: tuple) -> pl.DataFrame:
    return pl.DataFrame(rows, ROW_SCHEMA, orient="row", strict=False)


def test_rows_are_numbered_and_otherwise_unchanged(tmp_path):
    preprocess(Splits(), write(tmp_path / "raw"), tmp_path / "data")
    # Counts are of training targets: item 1 twice, item 2 once.
    assert read_items(tmp_path / "data").rows() == [
        (0, "A", 0, "0"),
        (1, "B", 2, "1"),
        (2, "B", 1, "2"),
    ]
    users = pl.read_parquet(tmp_path / "data" / "users.parquet")
    assert users.rows() == [(0, "a"), (1, "new"), (2, "u7")]
    # Users in the order of their ids: a, new, u7. Rows are numbered through all splits.
    assert [read_split(tmp_path / "data", split).rows() for split in SPLITS] == [
        [(0, 2, [0], 1, None), (1, 2, [0, 1], 2, None), (2, 0, [2], 1, None)],
        [(3, 0, [2, 1], 0, None)],
        [(4, 1, [1], 1, None)],
    ]
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert stats["options"] == {"source": "splits"}
    assert (stats["users"], stats["items"], stats["distinct_titles"]) == (3, 3, 2)
    assert stats["splits"]["test"] == {
        "rows": 1,
        **dict.fromkeys(
            ("first_timestamp", "last_timestamp", "first_date", "last_date"),
        ),
    }
    assert set(stats["raw_sha256"]) == {f"{name}.parquet" for name in ("items", *SPLITS)}


def test_user_ids_may_be_numbers_and_timestamps_given(tmp_path):
    frames = {
        split: pl.DataFrame(
            {"user_id": [10, 9], "history": [[0], [1]], "target": [1, 2], "timestamp": [5, 6]}
        )
        for split in SPLITS
    }
    preprocess(Splits(), write(tmp_path / "raw", **frames), tmp_path / "data")
    assert read_split(tmp_path / "data", "valid").rows() == [(2, 1, [0], 1, 5), (3, 0, [1], 2, 6)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": None}, "valid.parquet: no such file; ready-made splits need it"),
        (
            {"items": pl.DataFrame({"item_id": [1, 2], "title": ["A", "B"]})},
            "items.parquet: row at position 0 has another item_id; they count from 0 "
            "upwards; correct it",
        ),
        (
            {"items": pl.DataFrame({"item_id": [0, 1], "name": ["A", "B"]})},
            "items.parquet: has no column title; it has item_id, name",
        ),
        ({"train": train()}, "train.parquet: has no rows; correct it"),
        (
            {"train": train(("u", [0], 1), ("u", [], 1))},
            "train.parquet: row at position 1 has an empty history; correct it",
        ),
        (
            {"train": train(("u", [0, 3], 1))},
            "train.parquet: row at position 0 has an item that is not in items.parquet; correct it",
        ),
        (
            {"train": train(("u", [0], -1))},
            "train.parquet: row at position 0 has an item that is not in items.parquet; correct it",
        ),
        (
            {"train": train(("u", [0], None))},
            "train.parquet: row at position 0 has no target; correct it",
        ),
        (
            {"train": train(("u", [0, None], 1))},
            "train.parquet: row at position 0 has no history; correct it",
        ),
    ],
)
def test_malformed_splits_are_named_by_file_and_row(tmp_path, changes, message):
    raw = write(tmp_path / "raw", **changes)
    with pytest.raises(InputError) as caught:
        preprocess(Splits(), raw, tmp_path / "data")
    assert str(caught.value) == f"{raw}/{message}"
    assert not (tmp_path / "data").exists()


def test_a_column_of_another_type_is_refused(tmp_path):
    raw = write(tmp_path / "raw", train=train(("u", [0], 1)).with_columns(history=pl.lit("0 1")))
    with pytest.raises(InputError, match=r"column history holds text; cast it to lists of int"):
        preprocess(Splits(), raw, tmp_path / "data")


def test_a_file_other_than_parquet_is_refused(tmp_path):
    raw = write(tmp_path / "raw", test=None)
    (raw / "test.parquet").write_text("user_id,history")
    with pytest.raises(InputError, match=r"test\.parquet: not a readable parquet file"):
        preprocess(Splits(), raw, tmp_path / "data")


@pytest.mark.skipif(not INDUSTRIAL.is_dir(), reason=f"{INDUSTRIAL} is not there")
def test_the_splits_of_industrial(tmp_path):
    preprocess(Splits(), INDUSTRIAL, tmp_path / "data")
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert (stats["items"], stats["distinct_titles"]) == (3686, 3646)
    assert [stats["splits"][split]["rows"] for split in SPLITS] == [36_259, 4532, 4533]
    assert stats["users"] == 7694


def test_raw_ids_of_items_are_kept_and_checked(tmp_path):
    items = pl.DataFrame({"item_id": [0, 1, 2], "title": ["A", "B", "B"]})
    named = items.with_columns(raw_id=pl.Series(["SKU-1", "SKU-2", "SKU-3"]))
    preprocess(Splits(), write(tmp_path / "raw", items=named), tmp_path / "data")
    assert read_items(tmp_path / "data")["raw_id"].to_list() == ["SKU-1", "SKU-2", "SKU-3"]
    for number, (ids, fault) in enumerate(
        [
            (["a", "b", "a"], "has the raw_id of another row"),
            (["a", None, "b"], "has no raw_id"),
            ([1, 2, 3], "column raw_id holds integers; cast it to text"),
        ]
    ):
        broken = items.with_columns(raw_id=pl.Series(ids))
        raw = write(tmp_path / f"raw{number}", items=broken)
        with pytest.raises(InputError, match=fault):
            preprocess(Splits(), raw, tmp_path / "broken")
