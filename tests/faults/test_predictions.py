"""Predictions have exactly the rows of the test split, or of its sample, or no metrics."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tiny_models import write_data

from rere.baselines.baseline import baseline
from rere.config.baselines import RepeatLast
from rere.config.evaluation import Evaluation
from rere.config.run import Run
from rere.data.dataset import read_split
from rere.errors import InputError
from rere.evaluation.metrics import metrics
from rere.evaluation.predictions import PREDICT_AGAIN

RUN = Run(dataset="toy", backbone="none", method="repeat_last", seed=0)
TITLES = [f"Title {item}" for item in range(30)]


def write_run(tmp_path: Path, rows: int | None = None) -> Path:
    """Write 40 test rows and predictions, right in the 17 rows that repeat; return their path."""
    test = [([item % 30], item % 30 if item < 17 else (item + 1) % 30) for item in range(40)]
    data = write_data(tmp_path / "toy", TITLES, train=[([29], 29)], test=test)
    path = tmp_path / "run" / "predictions.parquet"
    baseline(RepeatLast(), Evaluation(rows=rows), data, 0, path)
    return path


def measure(path: Path) -> dict:
    output = path.with_name("metrics.json")
    metrics(path, path.parents[1] / "toy", RUN, output)
    return json.loads(output.read_text())


def refusal(path: Path) -> str:
    """The message that the metrics are refused with; nothing is written."""
    with pytest.raises(InputError) as caught:
        measure(path)
    assert {file.name for file in path.parent.iterdir()} == {path.name, "model"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_rows_have_the_right_metrics_in_any_order(tmp_path):
    path = write_run(tmp_path)
    values = measure(path)
    assert (values["rows"], values["HR@1"]) == (40, pytest.approx(17 / 40))
    pl.read_parquet(path).sample(40, shuffle=True, seed=0).write_parquet(path)
    assert measure(path) == values


@pytest.mark.parametrize("rows", [1, 20, 39])
def test_the_sample_of_the_test_split_is_measured(tmp_path, rows):
    path = write_run(tmp_path, rows)
    targets = read_split(tmp_path / "toy", "test", rows)["row_id"]
    values = measure(path)
    # Row ids start after the one training row.
    assert (values["rows"], values["HR@1"]) == (rows, pytest.approx((targets <= 17).mean()))


@pytest.mark.parametrize("kept", [slice(0, 20), slice(20, 40), slice(0, 39), slice(1, 40)])
def test_missing_rows_are_refused(tmp_path, kept):
    path = write_run(tmp_path)
    frame = pl.read_parquet(path)[kept]
    frame.write_parquet(path)
    sample = read_split(tmp_path / "toy", "test", len(frame))["row_id"]
    missing = min(set(sample) - set(frame["row_id"]))
    assert refusal(path) == (
        f"{path}: its {len(frame)} rows are neither all 40 of {tmp_path}/toy/test.parquet nor the "
        f"sample of {len(frame)}, which has row_id {missing}; {PREDICT_AGAIN}"
    )


def test_the_command_fails_with_one_line(tmp_path):
    path = write_run(tmp_path)
    pl.read_parquet(path)[:20].write_parquet(path)
    names = ["--dataset", "toy", "--backbone", "none", "--method", "repeat_last", "--seed", "0"]
    files = ["--predictions", path, "--data", tmp_path / "toy", "--output", tmp_path / "m.json"]
    command = [sys.executable, "-m", "rere", "metrics", *names, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode != 0, done.stdout) == (True, "")
    (line,) = done.stderr.splitlines()
    assert f"{path}: its 20 rows are neither all 40" in line
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("rows", [None, 20])
def test_repeated_rows_are_refused(tmp_path, rows):
    path = write_run(tmp_path, rows)
    frame = pl.read_parquet(path)
    pl.concat([frame, frame[3:5]]).write_parquet(path)
    assert refusal(path) == f"{path}: row_id {frame['row_id'][3]} comes twice; {PREDICT_AGAIN}"
    pl.concat([frame[:-1], frame[:1]]).write_parquet(path)
    assert refusal(path) == f"{path}: row_id {frame['row_id'][0]} comes twice; {PREDICT_AGAIN}"


def test_foreign_rows_are_refused(tmp_path):
    path = write_run(tmp_path)
    frame = pl.read_parquet(path)
    for row in (0, 41, -1):  # row 0 is of train
        foreign = frame[:1].with_columns(row_id=pl.lit(row, pl.Int64))
        for rows in ([frame, foreign], [frame[1:], foreign]):
            pl.concat(rows).write_parquet(path)
            assert refusal(path) == (
                f"{path}: row_id {row} is not in {tmp_path}/toy/test.parquet with this user and "
                f"target; {PREDICT_AGAIN}"
            )


def test_predictions_of_another_split_of_equal_size_are_refused(tmp_path):
    path = write_run(tmp_path)
    test = tmp_path / "toy" / "test.parquet"
    frame = pl.read_parquet(test)
    frame.with_columns(pl.col("target").reverse()).write_parquet(test)
    assert refusal(path) == (
        f"{path}: row_id 1 is not in {test} with this user and target; {PREDICT_AGAIN}"
    )


def test_a_test_split_that_repeats_a_row_is_refused(tmp_path):
    path = write_run(tmp_path)
    test = tmp_path / "toy" / "test.parquet"
    frame = pl.read_parquet(test)
    pl.concat([frame, frame]).write_parquet(test)
    assert refusal(path) == (
        f"{test}: row at position 40 has a row_id that is not above the one before; make it again: "
        "`rere preprocess`"
    )


def test_titles_without_text_are_no_hits(tmp_path):
    path = write_run(tmp_path)
    items = tmp_path / "toy" / "items.parquet"
    pl.read_parquet(items).with_columns(title=pl.lit(None, pl.String)).write_parquet(items)
    assert refusal(path) == (
        f"{items}: row at position 0 has no title; make it again: `rere preprocess`"
    )


@pytest.mark.parametrize("column", ["row_id", "user_id", "target", "items", "scores"])
def test_nulls_are_refused(tmp_path, column):
    path = write_run(tmp_path)
    frame = pl.read_parquet(path)
    null = pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col(column))
    frame.with_columns(null.alias(column)).write_parquet(path)
    row = "row at position 3" if column == "row_id" else "row_id 4"
    assert refusal(path) == f"{path}: {row} has a null; {PREDICT_AGAIN}"


@pytest.mark.parametrize("item", [-1, 30])
def test_items_outside_the_catalogue_are_refused(tmp_path, item):
    path = write_run(tmp_path)
    frame = pl.read_parquet(path)
    items = frame["items"].to_list()
    items[7][-1] = item
    frame.with_columns(items=pl.Series(items, dtype=pl.List(pl.Int32))).write_parquet(path)
    assert refusal(path) == (
        f"{path}: row_id 8 ranks an item not in {tmp_path}/toy/items.parquet; {PREDICT_AGAIN}"
    )
