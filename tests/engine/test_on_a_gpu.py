"""Searches and scores on an imitated GPU equal those on the CPU, and read the device seldom."""

import copy

import pytest
import torch
from fake_gpu import fake_gpu
from packed_batches import SCORINGS, gradients_of, pack_for, weighted_sum
from search_oracles import SCORINGS as SEARCH_SCORINGS
from search_oracles import random_catalogue
from tiny_models import MASK_IGNORING, precise

from rere.config.rl import RolloutStrategy
from rere.engine.candidates.scoring import token_scores
from rere.engine.search.beam import beam_search
from rere.engine.search.best_first import best_first_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.prefix_tree import PrefixTree
from rere.pruning import prune_rows

MODEL = precise("qwen2", seed=1)
TREE = PrefixTree.build(random_catalogue(40, seed=3))
PROMPTS = [[5, 9, 3, 4, 7], [8], [2, 3], [4, 4, 6], [11, 7, 5, 3], [9, 2]]
TARGET = TREE.leaf_of_item[: len(PROMPTS)]


def on_both(run, model=MODEL):
    """What `run(model, device)` gives on the CPU, and on an imitated GPU as tensors of the host."""
    expected = run(copy.deepcopy(model), "cpu")
    with fake_gpu():
        found = run(copy.deepcopy(model).to("meta"), "meta")
        assert all(x.device.type == "meta" for x in found if x is not None)
        return [None if x is None else x.cpu() for x in found], expected


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


# ------------------------------------------------------------------------------------ searches


@pytest.mark.parametrize("scoring", SEARCH_SCORINGS)
def test_beam_search(scoring):
    assert_equal(
        *on_both(lambda model, device: beam_search(model, TREE.to(device), PROMPTS, 6, scoring))
    )


def test_beam_search_in_trees_of_the_rows_own():
    trees = prune_rows(TREE, [TREE.leaf_of_item[: 7 * row].tolist() for row in range(6)])
    assert_equal(*on_both(lambda model, device: beam_search(model, trees.to(device), PROMPTS, 6)))


def test_beam_search_without_a_shared_prompt():
    model = precise(next(iter(MASK_IGNORING)))
    assert_equal(
        *on_both(lambda model, device: beam_search(model, TREE.to(device), PROMPTS, 4), model)
    )


@pytest.mark.parametrize("scoring", SEARCH_SCORINGS)
def test_best_first_search(scoring):
    def run(model, device):
        return best_first_search(model, TREE.to(device), PROMPTS, 5, scoring, max_nodes=12, width=3)

    assert_equal(*on_both(run))


@pytest.mark.parametrize("strategy", RolloutStrategy.__args__)
def test_rollouts(strategy):
    def run(model, device):
        seeds, target = row_seeds(0, 0, range(len(PROMPTS))).to(device), TARGET.to(device)
        return roll_out(model, TREE.to(device), PROMPTS, strategy, 5, seeds, target=target)

    assert_equal(*on_both(run))


# -------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("scoring", SCORINGS)
def test_token_scores_and_gradients(scoring):
    packed = pack_for(scoring)

    def run(model, device):
        scores = token_scores(model, packed.to(device), temperature=0.7)
        return *scores, *gradients_of(model, weighted_sum(scores.log_prob)).values()

    assert_equal(*on_both(run))
