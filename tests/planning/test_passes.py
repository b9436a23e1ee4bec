"""The largest pass of a run, by hand."""

import numpy as np
import pytest
from tiny_models import TITLES, tokenizer

from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.planning.passes import largest_pass, largest_rows
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder

SIZES = {"batch_size": 4, "rows_per_pass": 2}
OPTIONS = {
    "sft": SftOptions(**SIZES),
    "preference": PreferenceOptions(**SIZES),
    "rl": RlOptions(prompts=4, rows_per_pass=2, group_size=3),
}


@pytest.mark.parametrize("stage", OPTIONS)
def test_the_longest_rows_of_a_step_share_a_pass(stage):
    assert set(largest_rows(OPTIONS[stage], np.array([5, 9, 1, 7]), seed=0)) == {1, 3}


@pytest.mark.parametrize("stage", OPTIONS)
def test_the_largest_pass_is_found_among_those_of_an_epoch(stage):
    lengths = np.random.default_rng(0).permutation(400)
    found = lengths[largest_rows(OPTIONS[stage], lengths, seed=3)]
    assert len(found) == 2
    assert found.sum() > 780
    if stage == "sft":  # rows of similar length share a step
        assert abs(found[0] - found[1]) < 10


def test_a_run_of_few_steps_sees_few_rows():
    lengths = np.arange(10_000)
    few, many = (
        lengths[largest_rows(OPTIONS["rl"].model_copy(update={"steps": steps}), lengths, seed=0)]
        for steps in (1, 10_000)
    )
    assert few.sum() < many.sum()


def test_a_run_of_epochs_sees_as_many_rows():
    lengths = np.random.default_rng(0).permutation(400)
    options = OPTIONS["rl"].model_copy(update={"epochs": 0.5})
    steps = OPTIONS["rl"].model_copy(update={"steps": 50})
    assert largest_rows(options, lengths, seed=0) == largest_rows(steps, lengths, seed=0)


def test_a_last_pass_may_be_smaller():
    assert largest_rows(OPTIONS["rl"], np.array([4]), seed=0) == [0]


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("stage", OPTIONS)
def test_candidates_of_a_pass(stage, scoring):
    titles = list(dict.fromkeys(title.strip() for title in TITLES))
    encoder = PromptEncoder(tokenizer("qwen2"), titles)
    responses = encoder.encode_responses()
    tree = PrefixTree.build(responses)
    rows = [{"row_id": n, "history": [n, n + 1], "target": n + 2} for n in range(4)]
    options = OPTIONS[stage].model_copy(update={"scoring": scoring})
    packed = largest_pass(options, rows, encoder, responses, tree, seed=0)
    assert len(packed.input_ids) == 2
    assert packed.num_candidates == {"sft": 1, "preference": 4, "rl": 3}[stage]
    assert (packed.allowed is None) == (scoring == "vocabulary")


def test_unconstrained_candidates_are_titles():
    titles = ["one", "two", "three", "four"]
    encoder = PromptEncoder(tokenizer("qwen2"), titles)
    responses = encoder.encode_responses()
    tree = PrefixTree.build(responses)
    options = OPTIONS["rl"].model_copy(update={"rollout": "unconstrained"})
    rows = [{"row_id": 0, "history": [0], "target": 1}]
    packed = largest_pass(options, rows, encoder, responses, tree, seed=0)
    assert packed.num_candidates == 3
