"""The batch size of a search, and the memory estimate that it follows from."""

import pytest
import torch
from tiny_models import FAMILIES, causal_lm

from rere.engine.search import batch_size
from rere.engine.search.batch_size import count_fed_tokens, estimate_bytes, max_batch_size
from rere.prefix_tree import PrefixTree

TREE = PrefixTree.build(
    [[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], *([9, 2, 3, 4, 4, n, 3, 0] for n in range(10, 20))]
)
SCORINGS = ["catalogue", "vocabulary"]


def estimate(family="qwen2", tree=TREE, rows=4, prompt=50, beams=5, scoring="catalogue", **changes):
    model = causal_lm(family, **{"vocab_size": 100, **changes})
    return estimate_bytes(model, tree, rows, prompt, beams, scoring, 1000)


def choose_rows(monkeypatch, memory, model=None, **more):
    monkeypatch.setattr(batch_size, "available_memory", lambda device: memory)
    arguments = {"prompt_length": 50, "num_beams": 5, "scoring": "catalogue", **more}
    return max_batch_size(model or causal_lm("qwen2", 100), TREE, **arguments)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(
    "more",
    [
        {"rows": 8},
        {"prompt": 100},
        {"beams": 6},
        {"num_hidden_layers": 4},
        {"hidden_size": 32},
    ],
    ids=str,
)
def test_the_estimate_grows_with_every_size(scoring, more):
    assert estimate(scoring=scoring, **more) > estimate(scoring=scoring)


def test_logits_are_of_the_vocabulary_or_of_the_tokens_that_decide():
    assert estimate(scoring="vocabulary", vocab_size=200) > estimate(scoring="vocabulary")
    many = 4 * len(TREE.first_tokens[0])  # the most that `catalogue` scoring computes all logits of
    assert estimate(vocab_size=many - 1) > estimate(vocab_size=many)


def test_vocabulary_scoring_takes_more_than_catalogue_scoring():
    assert estimate(scoring="vocabulary") > estimate(scoring="catalogue")


def test_half_precision_takes_less():
    model = causal_lm("qwen2", 100)
    arguments = (TREE, 4, 50, 5, "catalogue", 1000)
    assert estimate_bytes(model.bfloat16(), *arguments) < estimate()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_an_estimate(family):
    # More than the keys and values of the prompts in two layers in float32.
    assert estimate(family) > 4 * 50 * 2 * 2 * 4


def test_count_fed_tokens_by_hand():
    # Edges into inner nodes hold 9, 2 and 3 4 4; those into leaves 5 0, 7 6 0, 0 and 10 x n 3 0.
    assert count_fed_tokens(TREE, 100, "catalogue", 1000) == (5, 5)
    assert count_fed_tokens(TREE, 1, "catalogue", 1) == (5, 3)
    assert count_fed_tokens(TREE, 100, "vocabulary", 1000) == (41, 41)
    assert count_fed_tokens(TREE, 2, "vocabulary", 1000) == (16, 6)
    assert count_fed_tokens(TREE, 2, "vocabulary", 4) == (16, 4)


def test_the_titles_that_most_are_shorter_than_count():
    # Of 13 titles 10 have 8 tokens, 5 of them fed under `catalogue` scoring.
    assert count_fed_tokens(TREE, 1, "vocabulary", 1000, 3 / 13) == (5, 3)
    assert count_fed_tokens(TREE, 1, "vocabulary", 1000, 4 / 13) == (8, 3)
    assert count_fed_tokens(TREE, 1, "catalogue", 1000, 3 / 13) == (2, 2)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_catalogue_of_one_title(monkeypatch, scoring):
    tree = PrefixTree.build([[5, 6, 0]])
    monkeypatch.setattr(batch_size, "available_memory", lambda device: 1 << 30)
    assert max_batch_size(causal_lm("qwen2", 100), tree, 50, 5, scoring) == 32


@pytest.mark.parametrize("scoring", SCORINGS)
def test_more_memory_never_means_fewer_rows(monkeypatch, scoring):
    sizes = [choose_rows(monkeypatch, 1 << power, scoring=scoring) for power in range(10, 40)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 2, 4, 8, 16, 32}


def test_the_choice_fits_and_twice_as_many_rows_do_not(monkeypatch):
    for power in range(18, 24):
        rows = choose_rows(monkeypatch, 1 << power)
        assert rows == 1 or estimate(rows=rows) <= (1 << power) / 2
        assert rows == 32 or estimate(rows=2 * rows) > (1 << power) / 2


def test_at_least_one_row_is_chosen(monkeypatch):
    assert choose_rows(monkeypatch, 0) == 1


def test_this_machine_has_enough_memory_for_a_tiny_model():
    assert batch_size.available_memory(torch.device("cpu")) > 1 << 28
    assert max_batch_size(causal_lm("qwen2", 100), TREE, 50, 5, "catalogue") == 32
