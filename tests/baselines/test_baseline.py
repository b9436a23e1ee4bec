"""The baseline stage: data set in, predictions out."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from data_frames import items_frame

from rere.baselines.baseline import baseline
from rere.config.baselines import Caser, Gru4rec, ItemKnn, Popularity, RepeatLast, Sasrec
from rere.config.evaluation import Evaluation
from rere.data.factors import FACTORS, TEST_FACTORS, Factors
from rere.errors import InputError
from rere.evaluation.predictions import read_predictions
from rere.training.log_keys import LOG_KEYS

NUM_ITEMS = 30
SIZE = {"hidden_size": 8, "batch_size": 64, "epochs": 3}
SASREC = Sasrec(num_layers=1, **SIZE)
TRAINED = [Gru4rec(**SIZE), Caser(**SIZE), SASREC]
EVALUATION = Evaluation(rows=None, list_length=20)


def run(options, data: Path, output: Path, seed: int = 0, evaluation: Evaluation = EVALUATION):
    baseline(options, evaluation, data, seed, output)
    return read_predictions(output)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_popularity_ranks_every_row(successor_data, tmp_path):
    predictions = run(Popularity(), successor_data, tmp_path / "run" / "predictions.parquet")
    assert predictions["row_id"].to_list() == list(range(90))
    assert predictions["items"].to_list() == [list(range(29, 9, -1))] * 90
    assert predictions["scores"][0].to_list() == list(range(29, 9, -1))
    assert files(tmp_path / "run") == ["model", "predictions.parquet"]


def test_repeat_last_ranks_a_sample_of_rows(successor_data, tmp_path):
    evaluation = Evaluation(rows=7, list_length=20)
    predictions = run(RepeatLast(), successor_data, tmp_path / "p.parquet", evaluation=evaluation)
    assert len(predictions) == 7
    for row_id, ranked in predictions.select("row_id", "items").iter_rows():
        assert ranked[:2] == [(row_id + 1) % NUM_ITEMS, row_id % NUM_ITEMS]
        assert len(ranked) == 20


def test_item_knn_counts_training_rows(successor_data, tmp_path):
    predictions = run(ItemKnn(), successor_data, tmp_path / "run" / "predictions.parquet")
    # The history of row 0 is items 0 and 1. Baskets are three consecutive items, three times each,
    # so neighbours share 2 of 3 baskets, and items at distance two share 1. Items 0, 1, 2 and 29
    # score 2/3, 2/3, 2/3 + 1/3 and 2/3 + 1/3; ties go to the item with more training targets.
    assert predictions["items"][0].to_list()[:4] == [29, 2, 1, 0]
    assert predictions["scores"][0].to_list()[:4] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert files(tmp_path / "run") == ["model", "predictions.parquet"]


@pytest.mark.parametrize("options", TRAINED)
def test_training_does_not_depend_on_the_test_split(successor_data, tmp_path, options):
    before = run(options, successor_data, tmp_path / "a" / "predictions.parquet")
    log = (tmp_path / "a" / "log.jsonl").read_bytes()
    test = pl.read_parquet(successor_data / "test.parquet")
    test.with_columns(target=pl.lit(0, pl.Int32)).write_parquet(successor_data / "test.parquet")
    after = run(options, successor_data, tmp_path / "b" / "predictions.parquet")
    assert (tmp_path / "b" / "log.jsonl").read_bytes() == log
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(line.keys() == LOG_KEYS["baseline"].keys() for line in lines)
    assert after.drop("target").equals(before.drop("target"))


@pytest.mark.parametrize("options", TRAINED)
@pytest.mark.parametrize(("name", "split"), [(FACTORS, "train"), (TEST_FACTORS, "test")])
def test_a_sequential_model_writes_its_factors(successor_data, tmp_path, options, name, split):
    predictions = run(options, successor_data, tmp_path / "predictions.parquet")
    row_ids = pl.read_parquet(successor_data / f"{split}.parquet")["row_id"]
    factors = Factors.load(tmp_path / name, row_ids.to_numpy(), NUM_ITEMS)
    # All splits of the data have the same rows, so both files give the ranking of the test rows.
    logits = factors.states(torch.tensor(predictions["row_id"].to_list())) @ factors.item.T
    for row, ranked, scores in zip(logits, *predictions["items", "scores"], strict=True):
        assert row[ranked.to_list()].tolist() == pytest.approx(scores.to_list(), abs=1e-5)


@pytest.mark.parametrize("options", [Popularity(), ItemKnn(), SASREC])
def test_a_broken_test_split_stops_before_training(successor_data, tmp_path, options):
    (successor_data / "test.parquet").write_text("not a parquet file")
    with pytest.raises(InputError, match=r"test\.parquet: not a readable parquet file"):
        run(options, successor_data, tmp_path / "run" / "predictions.parquet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [Popularity(), ItemKnn(), SASREC])
def test_a_failure_leaves_nothing(successor_data, tmp_path, monkeypatch, options):
    def fail(*_):
        raise InputError("no predictions")

    monkeypatch.setattr("rere.baselines.baseline.write_predictions", fail)
    with pytest.raises(InputError, match="no predictions"):
        run(options, successor_data, tmp_path / "run" / "predictions.parquet")
    assert files(tmp_path / "run") == []


def test_a_model_of_another_method_is_kept(successor_data, tmp_path):
    other = tmp_path / "model" / "model.safetensors"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(InputError, match=r"model\.safetensors: would be lost; remove it or choose"):
        run(Popularity(), successor_data, tmp_path / "predictions.parquet")
    assert other.exists() and not (tmp_path / "predictions.parquet").exists()


@pytest.mark.parametrize("options", [*TRAINED, ItemKnn()])
def test_rankings_include_the_items_of_the_history(successor_data, tmp_path, options):
    evaluation = Evaluation(rows=None, list_length=NUM_ITEMS)
    predictions = run(options, successor_data, tmp_path / "p.parquet", evaluation=evaluation)
    assert all(sorted(ranked) == list(range(NUM_ITEMS)) for ranked in predictions["items"])


@pytest.mark.parametrize("options", [Popularity(), RepeatLast(), ItemKnn(), *TRAINED])
@pytest.mark.parametrize(
    ("count", "fault"), [(0, "has no rows"), (1, "has 1 items and a ranking needs two")]
)
def test_a_catalogue_of_fewer_than_two_items_is_refused(
    successor_data, tmp_path, options, count, fault
):
    items_frame(["Item"] * count).write_parquet(successor_data / "items.parquet")
    with pytest.raises(InputError, match=fault):
        run(options, successor_data, tmp_path / "predictions.parquet")
    assert not (tmp_path / "predictions.parquet").exists()


@pytest.mark.parametrize("model", ["Popularity", "RepeatLast", "ItemKnn"])
def test_untrained_baselines_do_not_import_torch(successor_data, tmp_path, model):
    code = (
        "import sys; from pathlib import Path; from rere.config.evaluation import Evaluation\n"
        f"from rere.config.baselines import {model}\n"
        "from rere.baselines.baseline import baseline\n"
        f"data, output = Path({str(successor_data)!r}), Path({str(tmp_path / 'p.parquet')!r})\n"
        f"baseline({model}(), Evaluation(), data, 0, output)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "p.parquet").exists()
