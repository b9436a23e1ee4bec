"""Prompts computed once for search and training pass: both as without keeping them."""

import pytest
import torch
from engine.candidates.test_scoring import (
    ITEMS,
    PROMPTS,
    QWEN2,
    SCORINGS,
    TREE,
    adapted,
    alone,
    assert_gradients_equal,
    flat,
    gradients,
    model,
    packed_in,
    rounding,
    synchronisations,
    weighted,
)
from tiny_models import precise, tolerance
from torch.nn.parallel import DistributedDataParallel

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import token_log_probs, token_scores
from rere.engine.model.prompt_cache import KeptPrompts
from rere.engine.search.beam import beam_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out

__all__ = ["alone", "model"]  # fixtures

SEEDS = row_seeds(0, 0, [0, 1, 2])


def searched(model, scoring, prompts=PROMPTS):
    """The prompts, kept by a search."""
    prompts = KeptPrompts(prompts)
    beam_search(model, TREE, prompts, 4, scoring)
    return prompts


def assert_passes_equal(model, packed, prompts, allowed):
    """Log-probabilities and gradients of a pass, and of one behind prompts that were kept."""
    expected = flat(token_log_probs(model, packed), packed)
    actual = flat(token_log_probs(model, packed, prompts=prompts), packed)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)
    assert_gradients_equal(
        gradients(model, weighted(actual)), gradients(model, weighted(expected)), allowed
    )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_pass_behind_kept_prompts_is_the_same(model, scoring):
    packed = packed_in(scoring)
    assert_passes_equal(model, packed, searched(model, scoring), rounding(model))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_search_that_keeps_finds_the_same(model, scoring):
    expected = beam_search(model, TREE, PROMPTS, 4, scoring)
    actual = beam_search(model, TREE, KeptPrompts(PROMPTS), 4, scoring)
    assert torch.equal(actual.leaf, expected.leaf) and not actual.score.requires_grad
    torch.testing.assert_close(actual.score, expected.score, atol=tolerance(model), rtol=0)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_with_adapters(model, scoring):
    model = adapted(model)
    prompts = searched(model.get_base_model(), scoring)  # which has the adapters' layers
    assert_passes_equal(model, packed_in(scoring), prompts, rounding(model))


@pytest.mark.parametrize("prompts", [[[5], [7], [9]], PROMPTS[:1] * 3])
def test_prompts_of_one_token_and_of_one_length(prompts):
    leaf = TREE.leaf_of_item[torch.tensor(ITEMS[:1] * 3)]
    packed = pack_leaves(prompts, leaf, TREE, "vocabulary")
    assert_passes_equal(QWEN2, packed, searched(QWEN2, "vocabulary", prompts), rounding(QWEN2))


@pytest.mark.parametrize("way", ["iid", "oversample", "stochastic_beam"])
def test_samplers_keep_prompts_too(way):
    prompts = KeptPrompts(PROMPTS)
    actual = roll_out(QWEN2, TREE, prompts, way, 4, SEEDS, "catalogue")
    expected = roll_out(QWEN2, TREE, PROMPTS, way, 4, SEEDS, "catalogue")
    assert torch.equal(actual.leaf, expected.leaf)
    assert_passes_equal(QWEN2, packed_in("catalogue"), prompts, rounding(QWEN2))


def test_what_nobody_kept_is_computed():
    prompts, packed = KeptPrompts(PROMPTS), packed_in("vocabulary")
    roll_out(QWEN2, TREE, prompts, "unconstrained", 4, SEEDS)
    actual, expected = (token_log_probs(QWEN2, packed, prompts=x) for x in (prompts, None))
    assert torch.equal(actual, expected)


def test_a_batch_that_is_cut_keeps_nothing():
    prompts = KeptPrompts(PROMPTS)
    assert prompts[0:8] is prompts and prompts[:] is prompts
    assert prompts[1:] == PROMPTS[1:] and not isinstance(prompts[:2], KeptPrompts)
    assert prompts[0] == PROMPTS[0]


def test_entropies_are_the_same():
    packed = packed_in("catalogue")
    actual = token_scores(QWEN2, packed, 0.6, searched(QWEN2, "catalogue"))
    torch.testing.assert_close(actual.entropy, token_scores(QWEN2, packed, 0.6).entropy)


def test_prompts_are_computed_once():
    model, packed, tokens = precise("qwen2"), packed_in("vocabulary"), []
    prompts = searched(model, "vocabulary")
    model.get_input_embeddings().register_forward_hook(lambda *x: tokens.append(x[-1].shape[1]))
    token_log_probs(model, packed, prompts=prompts)
    assert tokens == [packed.num_tokens - sum(len(prompt) - 1 for prompt in PROMPTS)]


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_distributed_model_gets_the_gradient_of_the_prompts(alone, with_adapters):
    model, packed = adapted(QWEN2) if with_adapters else precise("qwen2"), packed_in("vocabulary")
    expected = gradients(model, weighted(token_log_probs(model, packed)))
    wrapped = DistributedDataParallel(model)
    synchronised = synchronisations(wrapped)
    prompts = searched(model.get_base_model() if with_adapters else model, "vocabulary")
    weighted(token_log_probs(wrapped, packed, prompts=prompts)).backward()
    assert sum(synchronised) == len(expected)  # each once, when all of it is there
    actual = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    assert_gradients_equal(actual, expected, 1e-9)
