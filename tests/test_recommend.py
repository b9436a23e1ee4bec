"""Recommendations against a brute-force ranking of the whole catalogue."""

from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import TITLES, causal_lm, tokenizer, write_data

from rere.config import Recommend
from rere.data.splits import read_split
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import recommend
from rere.prompts import PromptEncoder, choose_instruction, prompt_text, response_text

NAMES = [*TITLES, *(f"Item number {number}" for number in range(12)), "Heat"]
"""25 items; three of them are called Heat."""

HEAT = [item for item, title in enumerate(NAMES) if title == "Heat"]
ROWS = [([item % 25, (3 * item + 1) % 25][: 1 + item % 2], (7 * item) % 25) for item in range(12)]
SEED = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a test split only; nothing else is needed."""
    return write_data(tmp_path_factory.mktemp("data"), NAMES, test=ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scores of any two titles are far apart."""
    folder = tmp_path_factory.mktemp("model")
    causal_lm("qwen2", len(tokenizer("qwen2"))).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> pl.DataFrame:
    """All test rows, with more beams than titles."""
    path = tmp_path_factory.mktemp("all") / "predictions.parquet"
    recommend(Recommend(rows=None, num_beams=30), model, data, SEED, path)
    return read_predictions(path)


def predict(tmp_path: Path, model: Path, data: Path, seed: int = SEED, **options) -> pl.DataFrame:
    recommend(Recommend(**options), model, data, seed, tmp_path / "predictions.parquet")
    return read_predictions(tmp_path / "predictions.parquet")


@torch.no_grad()
def scores_by_item(row_id: int, history: list[int]) -> list[float]:
    """log p(title | prompt) of every item, by one plain pass over the joint text for each."""
    tokens = tokenizer("qwen2")
    model = causal_lm("qwen2", len(tokens))
    prompt = prompt_text(choose_instruction(SEED, row_id), [NAMES[item] for item in history])
    start = len(tokens(prompt).input_ids)
    scores = []
    for title in NAMES:
        ids = [*tokens(prompt + response_text(title)).input_ids, tokens.eos_token_id]
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(log_probs[range(start - 1, len(ids) - 1), ids[start:]].sum().item())
    return scores


def assert_same(actual: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same rows and items, scores but for the rounding that another batch brings."""
    assert actual.drop("scores").equals(expected.drop("scores"))
    torch.testing.assert_close(
        actual["scores"].explode().to_torch(),
        expected["scores"].explode().to_torch(),
        atol=1e-3,
        rtol=0,
    )


def test_equals_a_brute_force_ranking(predictions):
    for row_id, items, scores in predictions.select("row_id", "items", "scores").iter_rows():
        by_item = scores_by_item(row_id, ROWS[row_id][0])
        # Best first; items of one title have one score and follow each other by id.
        expected = sorted(
            range(len(NAMES)), key=lambda item: (-by_item[HEAT[0] if item in HEAT else item], item)
        )
        assert items == expected
        assert scores == pytest.approx([by_item[item] for item in items], abs=1e-3)


def test_every_row_is_there_in_the_order_of_the_split(predictions, data):
    columns = ["row_id", "user_id", "target"]
    assert predictions.select(columns).equals(read_split(data, "test").select(columns))


def test_items_of_one_title_follow_each_other_by_id(predictions):
    for items, scores in predictions.select("items", "scores").iter_rows():
        place = items.index(HEAT[0])
        assert items[place : place + 3] == HEAT
        assert len(set(scores[place : place + 3])) == 1


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(tmp_path, model, data, predictions, batch_size):
    again = predict(tmp_path, model, data, rows=None, num_beams=30, batch_size=batch_size)
    assert_same(again, predictions)


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_the_sampled_rows_are_those_of_the_split(tmp_path, model, data, predictions, rows):
    sample = predict(tmp_path, model, data, rows=rows, num_beams=30)
    assert sample["row_id"].to_list() == read_split(data, "test", rows)["row_id"].to_list()
    # A row's prediction does not depend on which others are scored.
    assert_same(sample, predictions.filter(pl.col("row_id").is_in(sample["row_id"].to_list())))


def test_more_rows_than_there_are(tmp_path, model, data, predictions):
    assert_same(predict(tmp_path, model, data, rows=99, num_beams=30), predictions)


def test_the_list_length_cuts_the_list(tmp_path, model, data, predictions):
    short = predict(tmp_path, model, data, rows=None, num_beams=30, list_length=20)
    expected = predictions.with_columns(pl.col("items", "scores").list.head(20))
    assert_same(short, expected)


def test_few_beams_give_as_many_titles(tmp_path, model, data):
    few = predict(tmp_path, model, data, rows=None, num_beams=3)
    titles = [len({NAMES[item] for item in items}) for items in few["items"]]
    assert titles == [3] * len(ROWS)


def test_the_seed_chooses_the_prompts(tmp_path, model, data, predictions):
    other = predict(tmp_path, model, data, seed=SEED + 1, rows=None, num_beams=30)
    changed = [
        choose_instruction(SEED, row) != choose_instruction(SEED + 1, row)
        for row in range(len(ROWS))
    ]
    assert any(changed)
    for row, change in enumerate(changed):
        scores, before = other["scores"][row], predictions["scores"][row]
        assert ((scores - before).abs().max() > 1e-2) == change


def test_bfloat16_scores_are_close(tmp_path, model, data, predictions):
    coarse = predict(tmp_path, model, data, rows=None, num_beams=30, dtype="bfloat16")
    # A bfloat16 has 8 bits, and scores are sums of some ten log-probabilities.
    best = predictions["scores"].list.first().to_list()
    assert coarse["scores"].list.first().to_list() == pytest.approx(best, rel=0.1)


def test_tokens_agree_with_the_encoder():
    """The oracle above tokenises joint texts on its own; the encoder must agree with it."""
    encoder = PromptEncoder(tokenizer("qwen2"), NAMES)
    (prompt,) = encoder.prompts([0], [ROWS[0][0]], SEED)
    text = prompt_text(choose_instruction(SEED, 0), [NAMES[item] for item in ROWS[0][0]])
    assert prompt == tokenizer("qwen2")(text).input_ids
