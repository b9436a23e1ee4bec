"""The folder of a fitted baseline: what is saved is loaded unchanged, anything else refused."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rere.baselines.model_folder import ARRAYS, ITEMS, OPTIONS, hash_folder, load_baseline
from rere.baselines.ranking import rank_top
from rere.config.run import BASELINE_FILES
from rere.data.dataset import read_items, read_split
from rere.errors import InputError
from rere.evaluation.predictions import read_predictions

NETWORKS = ["gru4rec", "caser", "sasrec"]
REFUSED = "not the model of a baseline; make it again: `rere baseline`"


def write_arrays(folder, arrays):
    """Store arrays with the hash that goes with them, as if the stage had written them."""
    save_file(arrays, folder / ARRAYS, {"sha256": hash_folder(folder, arrays)})


def test_a_loaded_model_ranks_as_the_fitted_one(baseline_run, successor_data):
    folder, rows = baseline_run / "model", read_split(successor_data, "test")
    assert sorted(path.name for path in folder.iterdir()) == sorted(BASELINE_FILES)
    fitted = load_baseline(folder)
    assert fitted.options.model == baseline_run.name
    assert fitted.items.equals(read_items(successor_data))
    is_network = baseline_run.name in NETWORKS
    assert fitted.model.max_history == (2 if is_network else None)
    ranked, scores = rank_top(fitted.model, rows["history"], 30)
    predictions = read_predictions(baseline_run / "predictions.parquet")
    assert predictions["items"].to_list() == ranked.tolist()
    assert predictions["scores"].to_list() == scores.astype(np.float32).tolist()


def test_the_options_are_those_of_the_model_only(run_of):
    mapping = json.loads((run_of("item_knn") / "model" / OPTIONS).read_text())
    options = {"model": "item_knn", "neighbours": 3}
    assert mapping == {"options": options, "max_history": None}


@pytest.mark.parametrize("name", BASELINE_FILES)
def test_a_missing_file_is_named(run_of, name):
    folder = run_of("item_knn") / "model"
    (folder / name).unlink()
    message = f"^{re.escape(str(folder / name))}: no such file; `rere baseline` writes it$"
    with pytest.raises(InputError, match=message):
        load_baseline(folder)


@pytest.mark.parametrize("model", ["popularity", "item_knn", "sasrec"])
@pytest.mark.parametrize("name", BASELINE_FILES)
def test_a_damaged_file_is_refused(run_of, name, model):
    folder = run_of(model) / "model"
    path = folder / name
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [content[:-1], content[: len(content) // 2], b"", content + b"x"]
    for position in generator.integers(len(content), size=60):
        flipped = bytearray(content)
        flipped[position] ^= 1 << generator.integers(8)
        damaged.append(bytes(flipped))
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(InputError) as caught:
            load_baseline(folder)
        assert str(caught.value) == f"{folder}: {REFUSED}"


@pytest.mark.parametrize("name", [OPTIONS, ITEMS])
def test_a_file_of_another_model_is_refused(run_of, name):
    folder, other = (run_of(model) / "model" for model in ("popularity", "repeat_last"))
    if name == ITEMS:  # they are those of one data set
        items = pl.read_parquet(other / ITEMS)
        items.with_columns(title=pl.lit("Other")).write_parquet(other / ITEMS)
    shutil.copy(other / name, folder / name)
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


def with_last(array, value):
    """A copy of an array with another last value."""
    array = array.copy()
    array.flat[-1] = value
    return array


SIMILARITIES = {
    "another name": lambda a: {**a, "more": a["edge"]},
    "a missing one": lambda a: {"value": a["value"], "edge": a["edge"]},
    "another type": lambda a: {**a, "value": a["value"].astype(np.float32)},
    "another type of ids": lambda a: {**a, "column": a["column"].astype(np.int64)},
    "a matrix": lambda a: {**a, "value": a["value"][None]},
    "too few values": lambda a: {**a, "value": a["value"][:-1]},
    "an id too high": lambda a: {**a, "column": with_last(a["column"], 30)},
    "an id below 0": lambda a: {**a, "column": with_last(a["column"], -1)},
    "an id twice": lambda a: {**a, "column": with_last(a["column"], a["column"][-2])},
    "a NaN": lambda a: {**a, "value": with_last(a["value"], np.nan)},
    "infinity": lambda a: {**a, "value": with_last(a["value"], np.inf)},
    "a value below 0": lambda a: {**a, "value": with_last(a["value"], -1)},
    "rows that end early": lambda a: {**a, "edge": with_last(a["edge"], 3)},
    "rows that end late": lambda a: {**a, "edge": with_last(a["edge"], 10**12)},
    "rows that begin late": lambda a: {**a, "edge": np.maximum(a["edge"], 1)},
    "a falling edge": lambda a: {**a, "edge": a["edge"][[0, 2, 1, *range(3, 31)]]},
    "a row too few": lambda a: {**a, "edge": np.delete(a["edge"], 1)},
    "no rows": lambda a: {**a, "edge": a["edge"][:0]},
}


@pytest.mark.parametrize("damage", SIMILARITIES.values(), ids=SIMILARITIES)
def test_arrays_that_are_no_similarities_are_refused(run_of, damage):
    folder = run_of("item_knn") / "model"
    arrays = load_file(folder / ARRAYS)
    write_arrays(folder, arrays)
    load_baseline(folder)
    write_arrays(folder, damage(arrays))
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


WEIGHTS = {
    "another name": lambda a: {**a, "more": a["items.weight"]},
    "a missing one": lambda a: {name: a[name] for name in [*a][1:]},
    "another shape": lambda a: {**a, "items.weight": a["items.weight"][1:]},
    "another type": lambda a: {**a, "items.weight": a["items.weight"].astype(np.float64)},
    "an unknown type": lambda a: {**a, "items.weight": a["items.weight"].astype(np.complex64)},
    "a NaN": lambda a: {**a, "items.weight": with_last(a["items.weight"], np.nan)},
    "none": lambda a: {},
}


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_arrays_that_are_no_weights_are_refused(run_of, damage, model):
    folder = run_of(model) / "model"
    write_arrays(folder, damage(load_file(folder / ARRAYS)))
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


@pytest.mark.parametrize(
    ("model", "edited"),
    [
        ("popularity", {"max_history": 3}),
        ("popularity", {"options": {"model": "item_knn"}}),
        ("popularity", {"options": {"model": "popularity", "neighbours": 3}}),
        ("popularity", {"options": {"model": "popularitee"}}),
        ("popularity", {"options": {"model": ["popularity"]}}),
        ("popularity", {"options": "popularity"}),
        ("popularity", {"options": None}),
        ("item_knn", {"options": {"model": "popularity"}}),
        ("item_knn", {"options": {"model": "item_knn", "neighbours": "3"}}),
        ("item_knn", {"max_history": 3}),
        ("sasrec", {"max_history": None}),
        ("sasrec", {"max_history": 3}),
        ("gru4rec", {"max_history": 0}),
        ("gru4rec", {"max_history": 2.0}),
        ("gru4rec", {"max_history": True}),
    ],
)
def test_other_options_are_refused_even_with_their_hash(run_of, model, edited):
    folder = run_of(model) / "model"
    arrays = load_file(folder / ARRAYS)
    mapping = json.loads((folder / OPTIONS).read_text())
    (folder / OPTIONS).write_text(json.dumps(mapping | edited))
    write_arrays(folder, arrays)
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


@pytest.mark.parametrize(
    "edited",
    [
        pl.lit(-1, pl.Int64).alias("count"),
        pl.lit("raw0").alias("raw_id"),
        pl.lit(" ").alias("title"),
        pl.col("item_id").reverse(),
        pl.col("count").cast(pl.Int32),
    ],
)
def test_items_with_a_fault_are_refused_even_with_their_hash(run_of, edited):
    folder = run_of("item_knn") / "model"
    arrays = load_file(folder / ARRAYS)
    pl.read_parquet(folder / ITEMS).with_columns(edited).write_parquet(folder / ITEMS)
    write_arrays(folder, arrays)
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


def test_fewer_items_than_weights_are_refused(run_of):
    folder = run_of("sasrec") / "model"
    arrays = load_file(folder / ARRAYS)
    pl.read_parquet(folder / ITEMS)[:-1].write_parquet(folder / ITEMS)
    write_arrays(folder, arrays)
    with pytest.raises(InputError, match=REFUSED):
        load_baseline(folder)


def test_the_hash_is_the_only_metadata(run_of):
    with safe_open(run_of("popularity") / "model" / ARRAYS, framework="np") as file:
        assert list(file.metadata()) == ["sha256"] and not list(file.keys())
