"""The comparison of ranked lists, and the plain search under `catalogue` scores."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import CATALOGUES, EOS, MODELS, assert_same_ranking
from tiny_models import unigram_lm

from rere.benchmarks.speed.agreement import (
    is_same_ranking,
    mean_ndcg,
    search_by_decision,
    share_different,
)
from rere.engine.search.beam import beam_search
from rere.prefix_tree import PrefixTree


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([7, 8, 9, 3], [7, 8, 9, 3], True),
        ([7, 9, 8, 3], [7, 8, 9, 3], True),  # 8 and 9 are tied
        ([8, 7, 9, 3], [7, 8, 9, 3], False),
        ([7, 8, 3, 9], [7, 8, 9, 3], False),
        ([7, 9, 3, 8], [7, 8, 9, 3], False),
        ([7, 9, 9, 3], [7, 8, 9, 3], False),
        ([7, 8, 9], [7, 8, 9, 3], False),
        ([7, 8, 9, 4], [7, 8, 9, 3], False),
        ([], [], True),
    ],
)
def test_only_tied_neighbours_may_be_swapped(ours, theirs, same):
    assert is_same_ranking(ours, theirs, [-1.0, -2.0, -2.00005, -2.5]) is same


def test_the_share_of_different_lists():
    assert share_different([[1, 2], [3], [4, 5], []], [[1, 2], [3, 6], [5, 4], []]) == 0.5


def test_ndcg_by_hand():
    ranked = [[5, 6, 7], [6], [*range(20)], []]
    gains = [1 / math.log2(2 + 1), 0, 0, 0]
    assert mean_ndcg(ranked, [6, 5, 10, 3]) == pytest.approx(sum(gains) / 4)
    assert mean_ndcg([[4], [3]], [4, 3]) == 1


@given(CATALOGUES, st.sampled_from([1, 2, 5, 16]), st.sampled_from(["qwen2", "gpt2"]))
@settings(max_examples=30, deadline=None)
def test_the_plain_search_finds_what_beam_search_finds(sequences, num_beams, family):
    model, prompt = MODELS[family], [5, 9, 3]
    tree = PrefixTree.build(sequences)
    leaf, score = beam_search(model, tree, [prompt], num_beams, "catalogue")
    paths = [tuple(sequences[tree.leaf_items[n][0]]) for n in leaf[0].tolist() if n >= 0]
    scores = score[0, : len(paths)].tolist()
    expected = search_by_decision(model, sequences, prompt, num_beams)
    assert scores == pytest.approx([value for _, value in expected], abs=1e-5)
    assert is_same_ranking(paths, [path for path, _ in expected], scores)


def test_the_plain_search_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    # 2 to 3 is 2 : 1, 4 to EOS is 1 : 8, and the tokens after 3 are forced.
    sequences = [[2, 4, EOS], [2, EOS], [3, 4, 4, EOS]]
    found = search_by_decision(model, sequences, [3], 3)
    probabilities = {
        (2, EOS): 2 / 3 * 8 / 9,
        (3, 4, 4, EOS): 1 / 3,
        (2, 4, EOS): 2 / 3 * 1 / 9,
    }
    expected = [(path, math.log(p)) for path, p in probabilities.items()]
    assert_same_ranking(found, expected, tolerance=1e-6)
