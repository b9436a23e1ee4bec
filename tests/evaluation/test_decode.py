"""Beam search against `recommend`; BIGRec and D3 against plain rankings, item by item."""

from pathlib import Path

import polars as pl
import pytest
import torch
from ranking_data import HEAT_ITEMS, ITEM_TITLES, SEED, TEST_ROWS
from tiny_models import tokenizer

from rere.config.decoding import D3, Beam, Bigrec
from rere.config.evaluation import Decoding, Recommend
from rere.data.factors import Factors
from rere.engine.search.unconstrained import generate_greedy
from rere.errors import InputError
from rere.evaluation import decode as module
from rere.evaluation.decode import decode, embed
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import recommend
from rere.prefix_tree import PrefixTree
from rere.tokenization import choose_instruction, prompt_text, response_text

TOKENS = tokenizer("qwen2")


def predict(tmp_path: Path, options, model, data, factors=None, **evaluation) -> pl.DataFrame:
    path = tmp_path / "predictions.parquet"
    decode(options, Decoding(**evaluation), model, data, SEED, path, factors)
    return read_predictions(path)


def prompt_ids(row_id: int) -> list[int]:
    history = [ITEM_TITLES[item] for item in TEST_ROWS[row_id][0]]
    return TOKENS(prompt_text(choose_instruction(SEED, row_id), history)).input_ids


SEQUENCES = [
    [*TOKENS(response_text(title)).input_ids, TOKENS.eos_token_id] for title in ITEM_TITLES
]
# (No token of this tokenizer spans the end of the prompt.)


@pytest.mark.parametrize("scoring", ["catalogue", "vocabulary"])
def test_a_backbone_is_searched_as_a_trained_model(tmp_path, fixed_model, ranking_data, scoring):
    found = predict(tmp_path, Beam(num_beams=4, scoring=scoring), fixed_model, ranking_data)
    options, path = Recommend(num_beams=4, scoring=scoring), tmp_path / "recommended.parquet"
    recommend(options, fixed_model, ranking_data, SEED, path)
    assert found.equals(read_predictions(path))


# ------------------------------------------------------------------------------------------- D3


@torch.no_grad()
def decision_scores(model, row_id: int) -> list[float]:
    """Each item's log-probability, without the tokens that the catalogue forces."""
    prompt, scores = prompt_ids(row_id), []
    for ids in SEQUENCES:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        score = 0.0
        for position, token in enumerate(ids):
            allowed = {s[position] for s in SEQUENCES if s[:position] == ids[:position]}
            if len(allowed) > 1:
                score += logits[len(prompt) + position - 1, token].item()
        scores.append(score)
    return scores


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_d3_equals_a_plain_ranking(
    tmp_path, fixed_model, ranking_data, plain_model, random_factors, alpha
):
    options = D3(alpha=alpha, num_beams=30)
    given = random_factors if alpha < 1 else None
    found = predict(tmp_path, options, fixed_model, ranking_data, given)
    loaded = Factors.load(random_factors, found["row_id"].to_numpy(), len(ITEM_TITLES))
    for row_id, items, scores in found.select("row_id", "items", "scores").iter_rows():
        probability = (loaded.item @ loaded.state[row_id]).softmax(-1)
        # Items that share a title share a path, which has the sum of their probabilities.
        by_path = probability.clone()
        by_path[HEAT_ITEMS] = probability[HEAT_ITEMS].sum()
        expected = [
            alpha * own + (1 - alpha) * other
            for own, other in zip(
                decision_scores(plain_model, row_id), by_path.log().tolist(), strict=True
            )
        ]
        assert scores == pytest.approx([expected[item] for item in items], abs=1e-3)
        assert sorted(items) == list(range(len(ITEM_TITLES)))
        assert scores == sorted(scores, reverse=True)


def test_rankings_do_not_depend_on_the_batch_size(
    tmp_path, fixed_model, ranking_data, random_factors
):
    for options, given in ((D3(alpha=0.5, num_beams=30), random_factors), (Bigrec(), None)):
        one = predict(tmp_path, options, fixed_model, ranking_data, given, batch_size=5)
        other = predict(tmp_path, options, fixed_model, ranking_data, given, batch_size=12)
        assert one["items"].equals(other["items"])


def test_factors_of_other_rows_are_refused(tmp_path, fixed_model, ranking_data, random_factors):
    with pytest.raises(InputError, match="made from another data set or split"):
        predict(tmp_path, D3(alpha=0.5), fixed_model, ranking_data, random_factors, rows=4)


# --------------------------------------------------------------------------------------- BIGRec


@torch.no_grad()
def write_greedily(model, prompt: list[int], longest: int) -> list[int]:
    """Greedy decoding, recomputing the whole sequence for every token."""
    ids: list[int] = []
    while len(ids) < longest and TOKENS.eos_token_id not in ids:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids


@torch.no_grad()
def embedding(model, title: str) -> torch.Tensor:
    ids = TOKENS(title).input_ids or [TOKENS.eos_token_id]
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def test_bigrec_equals_a_plain_ranking(tmp_path, fixed_model, ranking_data, plain_model):
    longest = max(map(len, SEQUENCES))
    vectors = torch.stack([embedding(plain_model, title) for title in ITEM_TITLES])
    found = predict(tmp_path, Bigrec(), fixed_model, ranking_data)
    for row_id, items, scores in found.select("row_id", "items", "scores").iter_rows():
        ids = write_greedily(plain_model, prompt_ids(row_id), longest)
        text = TOKENS.decode([i for i in ids if i != TOKENS.eos_token_id])
        text = text.removesuffix("\n").removeprefix('"').removesuffix('"')
        distance = (vectors - embedding(plain_model, text)).norm(dim=-1).tolist()
        assert sorted(items) == list(range(len(ITEM_TITLES)))
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([-distance[item] for item in items], abs=1e-3)


def test_bigrec_ranks_a_title_that_the_model_writes_first(
    tmp_path, fixed_model, ranking_data, monkeypatch
):
    """All items of that title come first, ordered by item id."""
    item = HEAT_ITEMS[1]

    def write(model, tree, prompts):
        return torch.tensor([SEQUENCES[item]] * len(prompts))

    monkeypatch.setattr(module, "generate_greedy", write)
    found = predict(tmp_path, Bigrec(), fixed_model, ranking_data, list_length=20)
    for items, scores in found.select("items", "scores").iter_rows():
        assert items[: len(HEAT_ITEMS)] == HEAT_ITEMS
        assert scores[: len(HEAT_ITEMS)] == pytest.approx([0] * len(HEAT_ITEMS), abs=1e-4)
        assert scores[len(HEAT_ITEMS)] < -1e-3
        assert len(items) == 20


def test_an_embedding_depends_only_on_its_own_sequence(plain_model):
    sequences = [[5, 6, 7, 8, 9], [7], [3, 4]] * 3
    together = embed(plain_model, sequences)
    alone = torch.cat([embed(plain_model, [ids]) for ids in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_greedy_decoding_refuses_prompts_beyond_the_models_positions(plain_model):
    with pytest.raises(InputError, match="exceed the model's 256 positions"):
        generate_greedy(plain_model, PrefixTree.build(SEQUENCES), [[3] * 256])
