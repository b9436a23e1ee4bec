"""The proved top K against brute force over all items."""

import pytest
from engine.search.test_beam import (
    CATALOGUES,
    MODELS,
    PROMPTS,
    SCORINGS,
    assert_same,
    brute_force,
    random_catalogue,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, UNSTEERABLE, precise, tolerance

from rere.catalogue import PrefixTree
from rere.engine.search.best_first import best_first_search

THREE = [[5, 9, 3, 4, 7], [8], [2, 3]]


def found(result, sequences, tree):
    """Token sequences and scores of each row."""
    return [
        [(tuple(sequences[tree.leaf_items[n][0]]), s) for n, s in zip(*row, strict=True) if n >= 0]
        for row in zip(result.leaf.tolist(), result.score.tolist(), strict=True)
    ]


def check(model, sequences, prompts, number, scoring, **options):
    tree = PrefixTree.build(sequences)
    result = best_first_search(model, tree, prompts, number, scoring, **options)
    rows = found(result, sequences, tree)
    for row, prompt, proved in zip(rows, prompts, result.num_proved.tolist(), strict=True):
        truth = brute_force(model, sequences, prompt, scoring)
        assert proved <= len(row) <= number
        tol = max(tolerance(model), 1e-6)
        assert_same(row[:proved], truth[:proved], tol)
        if "max_nodes" not in options:
            assert proved == min(number, len(truth))
    return result


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", FAMILIES | UNSTEERABLE)
def test_the_proved_are_the_true_top(family, scoring):
    check(precise(family), random_catalogue(25, seed=3), THREE, 5, scoring, width=3)


@given(CATALOGUES, PROMPTS, st.integers(1, 50), st.integers(1, 8), st.sampled_from(SCORINGS))
@settings(max_examples=30, deadline=None)
def test_any_catalogue(sequences, prompts, number, width, scoring):
    check(MODELS["qwen2"], sequences, prompts, number, scoring, width=width)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("max_nodes", [1, 2, 4, 8, 16])
def test_what_a_budget_proves_is_true(max_nodes, scoring):
    sequences = random_catalogue(40, seed=9)
    options = {"max_nodes": max_nodes, "width": 2}
    result = check(MODELS["gpt2"], sequences, THREE, 10, scoring, **options)
    assert result.num_expanded.max() <= max_nodes + 1


def test_one_result_costs_fewer_nodes_than_all():
    sequences = random_catalogue(40, seed=9)
    one = check(MODELS["gpt2"], sequences, THREE, 1, "catalogue", width=1)
    every = check(MODELS["gpt2"], sequences, THREE, 40, "catalogue", width=1)
    assert (one.num_expanded < every.num_expanded).all()


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_below_one(numbers):
    tree = PrefixTree.build(random_catalogue(4, seed=0))
    number, max_nodes, width = numbers
    with pytest.raises(ValueError, match="at least 1"):
        best_first_search(MODELS["qwen2"], tree, THREE, number, max_nodes=max_nodes, width=width)
