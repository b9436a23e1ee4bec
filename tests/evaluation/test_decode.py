"""BIGRec and D3 against plain rankings of a small catalogue, a row and an item at a time."""

from pathlib import Path

import polars as pl
import pytest
import torch
from evaluation.test_recommend import HEAT, NAMES, ROWS, SEED
from tiny_models import causal_lm, tokenizer, write_data, write_fixed_model

from rere.catalogue import PrefixTree
from rere.config.decoding import D3, Bigrec
from rere.config.evaluation import Decoding
from rere.data.factors import Factors
from rere.engine.search.unconstrained import generate_greedy
from rere.errors import InputError
from rere.evaluation import decode as module
from rere.evaluation.decode import decode, embed
from rere.evaluation.predictions import read_predictions
from rere.tokenization import choose_instruction, prompt_text, response_text

TOKENS = tokenizer("qwen2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), NAMES, test=ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixed_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sequential model that likes some items more than others by far."""
    generator = torch.Generator().manual_seed(0)
    made = Factors(
        row_id=torch.arange(len(ROWS)),
        state=torch.randn(len(ROWS), 4, generator=generator),
        item=3 * torch.randn(len(NAMES), 4, generator=generator),
    )
    path = tmp_path_factory.mktemp("factors") / "factors.test.safetensors"
    made.save(path)
    return path


def predicted(tmp_path: Path, options, model, data, factors=None, **evaluation) -> pl.DataFrame:
    path = tmp_path / "predictions.parquet"
    decode(options, Decoding(**evaluation), model, data, SEED, path, factors)
    return read_predictions(path)


def prompt_ids(row_id: int) -> list[int]:
    history = [NAMES[item] for item in ROWS[row_id][0]]
    return TOKENS(prompt_text(choose_instruction(SEED, row_id), history)).input_ids


SEQUENCES = [[*TOKENS(response_text(title)).input_ids, TOKENS.eos_token_id] for title in NAMES]
# (No token of this tokenizer spans the prompt's end.)


@pytest.fixture(scope="module")
def plain():
    return causal_lm("qwen2", len(TOKENS))


# ------------------------------------------------------------------------------------------- D3


@torch.no_grad()
def decision_scores(model, row_id: int) -> list[float]:
    """Each item's log-probabilities added up, but where one token alone could follow."""
    prompt, scores = prompt_ids(row_id), []
    for ids in SEQUENCES:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        score = 0.0
        for place, token in enumerate(ids):
            allowed = {s[place] for s in SEQUENCES if s[:place] == ids[:place]}
            if len(allowed) > 1:
                score += logits[len(prompt) + place - 1, token].item()
        scores.append(score)
    return scores


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_d3_equals_a_plain_ranking(tmp_path, model, data, plain, factors, alpha):
    options = D3(alpha=alpha, num_beams=30)
    found = predicted(tmp_path, options, model, data, factors if alpha < 1 else None)
    asked = Factors.load(factors, found["row_id"].to_numpy(), len(NAMES))
    for row_id, items, scores in found.select("row_id", "items", "scores").iter_rows():
        probability = (asked.item @ asked.state[row_id]).softmax(-1)
        # Items of one title are one path, and likely as all of them are.
        theirs = probability.clone()
        theirs[HEAT] = probability[HEAT].sum()
        expected = [
            alpha * own + (1 - alpha) * other
            for own, other in zip(
                decision_scores(plain, row_id), theirs.log().tolist(), strict=True
            )
        ]
        assert scores == pytest.approx([expected[item] for item in items], abs=1e-3)
        assert sorted(items) == list(range(len(NAMES)))
        assert scores == sorted(scores, reverse=True)


def test_batches_change_no_ranking(tmp_path, model, data, factors):
    for options, asked in ((D3(alpha=0.5, num_beams=30), factors), (Bigrec(), None)):
        one = predicted(tmp_path, options, model, data, asked, batch_size=5)
        other = predicted(tmp_path, options, model, data, asked, batch_size=12)
        assert one["items"].equals(other["items"])


def test_factors_of_other_rows_are_refused(tmp_path, model, data, factors):
    with pytest.raises(InputError, match="made of another data set or split"):
        predicted(tmp_path, D3(alpha=0.5), model, data, factors, rows=4)


# --------------------------------------------------------------------------------------- BIGRec


@torch.no_grad()
def written(model, prompt: list[int], longest: int) -> list[int]:
    """The likeliest next token, again and again."""
    ids: list[int] = []
    while len(ids) < longest and TOKENS.eos_token_id not in ids:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids


@torch.no_grad()
def state(model, title: str) -> torch.Tensor:
    ids = TOKENS(title).input_ids or [TOKENS.eos_token_id]
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def test_bigrec_equals_a_plain_ranking(tmp_path, model, data, plain):
    longest = max(map(len, SEQUENCES))
    vectors = torch.stack([state(plain, title) for title in NAMES])
    found = predicted(tmp_path, Bigrec(), model, data)
    for row_id, items, scores in found.select("row_id", "items", "scores").iter_rows():
        ids = written(plain, prompt_ids(row_id), longest)
        text = TOKENS.decode([i for i in ids if i != TOKENS.eos_token_id])
        text = text.removesuffix("\n").removeprefix('"').removesuffix('"')
        distance = (vectors - state(plain, text)).norm(dim=-1).tolist()
        assert sorted(items) == list(range(len(NAMES)))
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([-distance[item] for item in items], abs=1e-3)


def test_what_is_written_as_a_title_ranks_it_first(tmp_path, model, data, monkeypatch):
    """And all items of that title, by item id, before any other."""
    item = HEAT[1]

    def write(model, tree, prompts):
        return torch.tensor([SEQUENCES[item]] * len(prompts))

    monkeypatch.setattr(module, "generate_greedy", write)
    found = predicted(tmp_path, Bigrec(), model, data, list_length=20)
    for items, scores in found.select("items", "scores").iter_rows():
        assert items[: len(HEAT)] == HEAT
        assert scores[: len(HEAT)] == pytest.approx([0] * len(HEAT), abs=1e-4)
        assert scores[len(HEAT)] < -1e-3
        assert len(items) == 20


def test_an_embedding_depends_on_its_sequence_alone(plain):
    sequences = [[5, 6, 7, 8, 9], [7], [3, 4]] * 3
    together = embed(plain, sequences)
    alone = torch.cat([embed(plain, [ids]) for ids in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_broken_weights_are_told(tmp_path, data):
    broken = causal_lm("qwen2", len(TOKENS))
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    TOKENS.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match="not numbers; its weights are broken"):
        predicted(tmp_path, Bigrec(), tmp_path / "broken", data)


def test_what_is_written_fits_the_models_positions(plain):
    with pytest.raises(InputError, match="exceed the model's 256 positions"):
        generate_greedy(plain, PrefixTree.build(SEQUENCES), [[3] * 256])
