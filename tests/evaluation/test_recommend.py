"""Rankings of test rows against a brute-force ranking of the catalogue."""

from pathlib import Path

import polars as pl
import pytest
import torch
from ranking_data import (
    HEAT_ITEMS,
    ITEM_TITLES,
    SEED,
    TEST_ROWS,
    brute_force_scores,
    build_catalogue,
)
from tiny_models import tokenizer, write_fixed_model

from rere.backbones import load_model
from rere.catalogue import CATALOGUE
from rere.config.evaluation import Recommend
from rere.data.dataset import read_split
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.evaluation import recommend as module
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import recommend
from rere.tokenization import PromptEncoder, choose_instruction, prompt_text


def predict(tmp_path: Path, model: Path, data: Path, seed: int = SEED, **options) -> pl.DataFrame:
    recommend(Recommend(**options), model, data, seed, tmp_path / "predictions.parquet")
    return read_predictions(tmp_path / "predictions.parquet")


def scores_by_item(scoring: str, row_id: int, history: list[int]) -> list[float]:
    titles = [ITEM_TITLES[item] for item in history]
    return brute_force_scores(scoring, choose_instruction(SEED, row_id), titles, ITEM_TITLES)


def assert_same(actual: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Rows and items are equal, and scores up to rounding."""
    assert actual.drop("scores").equals(expected.drop("scores"))
    torch.testing.assert_close(
        actual["scores"].explode().to_torch(),
        expected["scores"].explode().to_torch(),
        atol=1e-3,
        rtol=0,
    )


@pytest.mark.parametrize("scoring", ["catalogue", "vocabulary"])
def test_rankings_equal_brute_force(tmp_path, fixed_model, ranking_data, scoring):
    options = {"rows": None, "num_beams": 30, "scoring": scoring}
    all_rows = predict(tmp_path, fixed_model, ranking_data, **options)
    for row_id, items, scores in all_rows.select("row_id", "items", "scores").iter_rows():
        by_item = scores_by_item(scoring, row_id, TEST_ROWS[row_id][0])
        # Best first; items that share a title share a score and are ordered by id.
        expected = sorted(
            range(len(ITEM_TITLES)),
            key=lambda item: (-by_item[HEAT_ITEMS[0] if item in HEAT_ITEMS else item], item),
        )
        assert items == expected
        assert scores == pytest.approx([by_item[item] for item in items], abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"scoring": "vocabulary", "length_penalty": 1.5}])
def test_rankings_equal_a_search_of_each_row(tmp_path, fixed_model, ranking_data, options):
    written = predict(tmp_path, fixed_model, ranking_data, rows=None, num_beams=7, **options)
    encoder, tree = PromptEncoder(tokenizer("qwen2"), ITEM_TITLES), build_catalogue().tree
    penalty = options.get("length_penalty", 0.0)
    for row_id, items, scores in written.select("row_id", "items", "scores").iter_rows():
        (leaf,), (score,) = beam_search(
            load_model(fixed_model),
            tree,
            encoder.encode_prompts([row_id], [TEST_ROWS[row_id][0]], SEED),
            7,
            options.get("scoring", "catalogue"),
            penalty,
        )
        assert items == [item for n in leaf.tolist() for item in tree.leaf_items[n]]
        assert sorted(set(scores), reverse=True) == pytest.approx(score.tolist(), abs=1e-3)


def test_predictions_have_every_row_in_the_order_of_the_split(all_predictions, ranking_data):
    columns = ["row_id", "user_id", "target"]
    assert all_predictions.select(columns).equals(read_split(ranking_data, "test").select(columns))


def test_items_that_share_a_title_are_adjacent_and_ordered_by_id(all_predictions):
    for items, scores in all_predictions.select("items", "scores").iter_rows():
        first = items.index(HEAT_ITEMS[0])
        assert items[first : first + 3] == HEAT_ITEMS
        assert len(set(scores[first : first + 3])) == 1


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_rankings_do_not_depend_on_the_batch_size(
    tmp_path, fixed_model, ranking_data, all_predictions, batch_size
):
    options = {"rows": None, "num_beams": 30, "batch_size": batch_size}
    again = predict(tmp_path, fixed_model, ranking_data, **options)
    assert_same(again, all_predictions)


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_a_sample_of_rows_has_the_predictions_of_the_whole_split(
    tmp_path, fixed_model, ranking_data, all_predictions, rows
):
    sample = predict(tmp_path, fixed_model, ranking_data, rows=rows, num_beams=30)
    assert sample["row_id"].to_list() == read_split(ranking_data, "test", rows)["row_id"].to_list()
    # A row's prediction does not depend on which others are scored.
    is_in_sample = pl.col("row_id").is_in(sample["row_id"].to_list())
    assert_same(sample, all_predictions.filter(is_in_sample))


def test_more_rows_than_the_split_has_are_all_rows(
    tmp_path, fixed_model, ranking_data, all_predictions
):
    found = predict(tmp_path, fixed_model, ranking_data, rows=99, num_beams=30)
    assert_same(found, all_predictions)


def test_the_list_length_cuts_the_list(tmp_path, fixed_model, ranking_data, all_predictions):
    short = predict(tmp_path, fixed_model, ranking_data, rows=None, num_beams=30, list_length=20)
    expected = all_predictions.with_columns(pl.col("items", "scores").list.head(20))
    assert_same(short, expected)


def test_rankings_have_one_title_per_beam(tmp_path, fixed_model, ranking_data):
    few = predict(tmp_path, fixed_model, ranking_data, rows=None, num_beams=3)
    titles = [len({ITEM_TITLES[item] for item in items}) for items in few["items"]]
    assert titles == [3] * len(TEST_ROWS)


def test_the_seed_chooses_the_prompts(tmp_path, fixed_model, ranking_data, all_predictions):
    other = predict(tmp_path, fixed_model, ranking_data, seed=SEED + 1, rows=None, num_beams=30)
    changed = [
        choose_instruction(SEED, row) != choose_instruction(SEED + 1, row)
        for row in range(len(TEST_ROWS))
    ]
    assert any(changed)
    for row, change in enumerate(changed):
        scores, before = other["scores"][row], all_predictions["scores"][row]
        assert ((scores - before).abs().max() > 1e-2) == change


def test_bfloat16_scores_are_close(tmp_path, fixed_model, ranking_data, all_predictions):
    options = {"rows": None, "num_beams": 30, "dtype": "bfloat16"}
    coarse = predict(tmp_path, fixed_model, ranking_data, **options)
    # A bfloat16 has 8 bits, and scores are sums of some ten log-probabilities.
    best = all_predictions["scores"].list.first().to_list()
    assert coarse["scores"].list.first().to_list() == pytest.approx(best, rel=0.1)


def test_bfloat16_is_the_arithmetic_of_training(tmp_path, fixed_model, ranking_data):
    """Half of the weights are stored in bfloat16 here, all in float32 there."""
    options = {"rows": None, "num_beams": 7, "dtype": "bfloat16", "batch_size": 1}
    written = predict(tmp_path, fixed_model, ranking_data, **options)
    encoder, tree = PromptEncoder(tokenizer("qwen2"), ITEM_TITLES), build_catalogue().tree
    model = load_model(fixed_model)
    for row_id, items, scores in written.select("row_id", "items", "scores").iter_rows():
        prompts = encoder.encode_prompts([row_id], [TEST_ROWS[row_id][0]], SEED)
        with torch.autocast("cpu", torch.bfloat16):
            (leaf,), (score,) = beam_search(model, tree, prompts, 7, "catalogue")
        leaves = [tree.leaf_items[n] for n in leaf.tolist()]
        assert items == [item for each in leaves for item in each]
        per_item = [s for s, each in zip(score.tolist(), leaves, strict=True) for _ in each]
        assert scores == per_item


def test_brute_force_prompts_equal_the_encoders():
    """The brute-force ranking tokenises texts by itself, and must agree with the encoder."""
    encoder = PromptEncoder(tokenizer("qwen2"), ITEM_TITLES)
    (prompt,) = encoder.encode_prompts([0], [TEST_ROWS[0][0]], SEED)
    text = prompt_text(choose_instruction(SEED, 0), [ITEM_TITLES[item] for item in TEST_ROWS[0][0]])
    assert prompt == tokenizer("qwen2")(text).input_ids


# ------------------------------------------------------------------- the catalogue in the folder


def test_the_catalogue_in_the_folder_is_used(
    tmp_path, model_with_catalogue, ranking_data, all_predictions, monkeypatch
):
    monkeypatch.delattr(PromptEncoder, "encode_responses")  # nothing is tokenised again
    found = predict(tmp_path, model_with_catalogue, ranking_data, rows=None, num_beams=30)
    assert found.equals(all_predictions)


def test_a_catalogue_of_other_titles_is_ignored(tmp_path, ranking_data, all_predictions):
    folder = write_fixed_model(tmp_path / "other")
    build_catalogue(ITEM_TITLES[::-1]).save(folder / CATALOGUE)
    found = predict(tmp_path, folder, ranking_data, rows=None, num_beams=30)
    assert found.equals(all_predictions)


def test_a_damaged_catalogue_is_refused(tmp_path, ranking_data):
    folder = write_fixed_model(tmp_path / "damaged")
    (folder / CATALOGUE).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"catalogue.safetensors: not a catalogue; train"):
        predict(tmp_path, folder, ranking_data)


def test_the_batch_size_defaults_to_what_fits_in_memory(
    tmp_path, fixed_model, ranking_data, monkeypatch
):
    sizes = []

    def search(policy, tree, prompts, *rest, **more):
        sizes.append(len(prompts))
        return beam_search(policy, tree, prompts, *rest, **more)

    monkeypatch.setattr(module, "beam_search", search)
    monkeypatch.setattr(module, "max_batch_size", lambda *_: 8)
    predict(tmp_path, fixed_model, ranking_data, rows=None, num_beams=2)
    predict(tmp_path, fixed_model, ranking_data, rows=None, num_beams=2, batch_size=5)
    assert sizes == [8, 4, 5, 5, 2]
