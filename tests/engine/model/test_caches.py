"""A prompt cache changes neither what a search finds nor what a training pass computes."""

import pytest
import torch
from packed_batches import (
    ITEMS,
    PROMPTS,
    QWEN2,
    SCORINGS,
    TREE,
    assert_gradients_equal,
    assert_passes_equal,
    gradient_tolerance,
    gradients_of,
    pack_for,
    record_synchronisations,
    weighted_sum,
    with_adapters,
)
from tiny_models import precise, tolerance
from torch.nn.parallel import DistributedDataParallel

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import token_log_probs, token_scores
from rere.engine.model.caches import PromptCache
from rere.engine.search.beam import beam_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out

SEEDS = row_seeds(0, 0, [0, 1, 2])


def filled_cache(model, scoring, prompts=PROMPTS):
    """A prompt cache that a search has filled."""
    cache = PromptCache()
    beam_search(model, TREE, prompts, 4, scoring, prompt_cache=cache)
    return cache


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_training_pass_behind_cached_prompts_is_the_same(model, scoring):
    packed = pack_for(scoring)
    assert_passes_equal(model, packed, filled_cache(model, scoring), gradient_tolerance(model))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_search_that_fills_a_cache_finds_the_same(model, scoring):
    expected = beam_search(model, TREE, PROMPTS, 4, scoring)
    actual = beam_search(model, TREE, PROMPTS, 4, scoring, prompt_cache=PromptCache())
    assert torch.equal(actual.leaf, expected.leaf) and not actual.score.requires_grad
    torch.testing.assert_close(actual.score, expected.score, atol=tolerance(model), rtol=0)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_with_adapters(model, scoring):
    model = with_adapters(model)
    cache = filled_cache(model.get_base_model(), scoring)  # it contains the adapters
    assert_passes_equal(model, pack_for(scoring), cache, gradient_tolerance(model))


@pytest.mark.parametrize("prompts", [[[5], [7], [9]], PROMPTS[:1] * 3])
def test_prompts_of_one_token_and_of_one_length(prompts):
    leaf = TREE.leaf_of_item[torch.tensor(ITEMS[:1] * 3)]
    packed = pack_leaves(prompts, leaf, TREE, "vocabulary")
    assert_passes_equal(
        QWEN2, packed, filled_cache(QWEN2, "vocabulary", prompts), gradient_tolerance(QWEN2)
    )


@pytest.mark.parametrize("strategy", ["iid", "oversample", "stochastic_beam"])
def test_sampling_fills_a_cache_too(strategy):
    cache, arguments = PromptCache(), (QWEN2, TREE, PROMPTS, strategy, 4, SEEDS, "catalogue")
    actual = roll_out(*arguments, prompt_cache=cache)
    expected = roll_out(*arguments)
    assert torch.equal(actual.leaf, expected.leaf)
    assert_passes_equal(QWEN2, pack_for("catalogue"), cache, gradient_tolerance(QWEN2))


def test_an_unconstrained_rollout_leaves_the_cache_empty():
    cache, packed = PromptCache(), pack_for("vocabulary")
    roll_out(QWEN2, TREE, PROMPTS, "unconstrained", 4, SEEDS, prompt_cache=cache)
    assert not cache.is_filled
    actual, expected = (token_log_probs(QWEN2, packed, prompt_cache=x) for x in (cache, None))
    assert torch.equal(actual, expected)


def test_entropies_are_the_same():
    packed = pack_for("catalogue")
    actual = token_scores(QWEN2, packed, 0.6, filled_cache(QWEN2, "catalogue"))
    torch.testing.assert_close(actual.entropy, token_scores(QWEN2, packed, 0.6).entropy)


def test_prompts_are_computed_once():
    model, packed, tokens = precise("qwen2"), pack_for("vocabulary"), []
    cache = filled_cache(model, "vocabulary")
    model.get_input_embeddings().register_forward_hook(lambda *x: tokens.append(x[-1].shape[1]))
    token_log_probs(model, packed, prompt_cache=cache)
    assert tokens == [packed.num_tokens - sum(len(prompt) - 1 for prompt in PROMPTS)]


@pytest.mark.parametrize("has_adapters", [False, True])
def test_a_distributed_model_gets_the_gradient_of_the_prompts(process_group, has_adapters):
    model, packed = (
        with_adapters(QWEN2) if has_adapters else precise("qwen2"),
        pack_for("vocabulary"),
    )
    expected = gradients_of(model, weighted_sum(token_log_probs(model, packed)))
    wrapped = DistributedDataParallel(model)
    synchronised = record_synchronisations(wrapped)
    cache = filled_cache(model.get_base_model() if has_adapters else model, "vocabulary")
    weighted_sum(token_log_probs(wrapped, packed, prompt_cache=cache)).backward()
    assert sum(synchronised) == len(expected)  # each once, when all of it is there
    actual = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    assert_gradients_equal(actual, expected, 1e-9)
