"""The proven top K against brute force over all items."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import (
    CATALOGUES,
    MODELS,
    PROMPT_BATCHES,
    SCORINGS,
    assert_same_ranking,
    brute_force,
    random_catalogue,
)
from tiny_models import FAMILIES, MASK_IGNORING, precise, tolerance

from rere.engine.search.best_first import best_first_search
from rere.prefix_tree import PrefixTree
from rere.pruning import prune

PROMPTS = [[5, 9, 3, 4, 7], [8], [2, 3]]


def to_rankings(result, sequences, tree):
    """One ranking per row: token sequences and their scores."""
    return [
        [(tuple(sequences[tree.leaf_items[n][0]]), s) for n, s in zip(*row, strict=True) if n >= 0]
        for row in zip(result.leaf.tolist(), result.score.tolist(), strict=True)
    ]


def assert_proved(model, sequences, prompts, number, scoring, **options):
    """Search, and compare what is proved with brute force; returns the result."""
    tree = PrefixTree.build(sequences)
    result = best_first_search(model, tree, prompts, number, scoring, **options)
    rows = to_rankings(result, sequences, tree)
    for row, prompt, proved in zip(rows, prompts, result.num_proved.tolist(), strict=True):
        truth = brute_force(model, sequences, prompt, scoring)
        assert proved <= len(row) <= number
        assert_same_ranking(row[:proved], truth[:proved], max(tolerance(model), 1e-6))
        if "max_nodes" not in options:
            assert proved == min(number, len(truth))
    return result


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", FAMILIES | MASK_IGNORING)
def test_all_ranks_are_proved(family, scoring):
    assert_proved(precise(family), random_catalogue(25, seed=3), PROMPTS, 5, scoring, width=3)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_all_ranks_of_a_pruned_tree_are_proved(scoring):
    model, sequences = precise("qwen2"), random_catalogue(40, seed=3)
    kept = [item for item in range(40) if item % 3]
    tree = prune(PrefixTree.build(sequences), torch.tensor(kept))
    left = [sequences[item] for item in kept]
    result = best_first_search(model, tree, PROMPTS, 8, scoring, width=3)
    assert result.num_proved.tolist() == [8] * len(PROMPTS)
    for row, prompt in zip(to_rankings(result, left, tree), PROMPTS, strict=True):
        truth = brute_force(model, left, prompt, scoring)
        assert_same_ranking(row, truth[:8], tolerance(model))


@given(CATALOGUES, PROMPT_BATCHES, st.integers(1, 50), st.integers(1, 8), st.sampled_from(SCORINGS))
@settings(max_examples=30, deadline=None)
def test_all_ranks_of_any_catalogue_are_proved(sequences, prompts, number, width, scoring):
    assert_proved(MODELS["qwen2"], sequences, prompts, number, scoring, width=width)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("max_nodes", [1, 2, 4, 8, 16])
def test_ranks_proved_within_a_budget_are_true(max_nodes, scoring):
    sequences = random_catalogue(40, seed=9)
    options = {"max_nodes": max_nodes, "width": 2}
    result = assert_proved(MODELS["gpt2"], sequences, PROMPTS, 10, scoring, **options)
    assert result.num_expanded.max() <= max_nodes + 1


def test_one_result_expands_fewer_nodes_than_all():
    sequences = random_catalogue(40, seed=9)
    one = assert_proved(MODELS["gpt2"], sequences, PROMPTS, 1, "catalogue", width=1)
    every = assert_proved(MODELS["gpt2"], sequences, PROMPTS, 40, "catalogue", width=1)
    assert (one.num_expanded < every.num_expanded).all()


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_below_one_are_refused(numbers):
    tree = PrefixTree.build(random_catalogue(4, seed=0))
    number, max_nodes, width = numbers
    with pytest.raises(ValueError, match="at least 1"):
        best_first_search(MODELS["qwen2"], tree, PROMPTS, number, max_nodes=max_nodes, width=width)
