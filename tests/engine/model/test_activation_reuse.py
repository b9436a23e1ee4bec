"""Results of a search's linear layers in the training pass behind it: as without recalling them."""

import copy

import pytest
import torch
from packed_batches import (
    LEAVES,
    PROMPTS,
    QWEN2,
    TREE,
    assert_gradients_equal,
    assert_passes_equal,
    gradient_tolerance,
    gradients_of,
    search_and_pack,
    weighted_sum,
    with_adapters,
)
from tiny_models import precise
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model import activation_reuse as recall
from rere.engine.model.activation_reuse import RecordedActivations, ReplayedLinear, start_recording
from rere.engine.model.unpadding import UnpaddedTokens
from rere.prefix_tree import PrefixTree


@pytest.fixture
def computed(monkeypatch):
    """How many tokens each recalling layer had, and how many of them it computed."""
    numbers, forward = [], ReplayedLinear.forward

    def counting(ctx, *inputs):
        numbers.append((inputs[0].shape[:-1].numel(), len(inputs[-1])))
        return forward(ctx, *inputs)

    monkeypatch.setattr(ReplayedLinear, "forward", counting)
    return numbers


def test_a_pass_that_recalls_is_the_same(model):
    prompts, packed = search_and_pack(model)
    assert_passes_equal(model, packed, prompts, gradient_tolerance(model))


def test_with_adapters(model):
    model = with_adapters(model)
    prompts, packed = search_and_pack(model.get_base_model())
    assert_passes_equal(model, packed, prompts, gradient_tolerance(model))


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_end_early_and_tokens_that_are_forgotten(seed, computed):
    generator = torch.Generator().manual_seed(seed)

    def some(size, most):
        lengths = torch.randint(1, most, (size,), generator=generator).tolist()
        return [torch.randint(2, 6, (n,), generator=generator).tolist() for n in lengths]

    titles = sorted({(*title, 1) for title in some(60, 12)})
    tree = PrefixTree.build([list(title) for title in titles])
    prompts, packed = search_and_pack(QWEN2, tree, some(6, 9), 5)
    assert_passes_equal(QWEN2, packed, prompts, gradient_tolerance(QWEN2))
    assert {unknown for _, unknown in computed} == {6}  # the prompts' last tokens


def test_every_linear_layer_recalls_what_was_fed(computed):
    prompts, packed = search_and_pack(QWEN2)
    token_log_probs(QWEN2, packed, prompt_cache=prompts)
    layers = [x for x in QWEN2.get_decoder().modules() if isinstance(x, nn.Linear)]
    num_nodes = packed.num_tokens - prompts.num_before
    # The prompts' last tokens, and what all items begin with, were computed with the prompts.
    assert computed == [(num_nodes, len(PROMPTS) * (1 + TREE.root_length))] * len(layers)


def test_what_was_not_fed_is_computed(computed):
    prompts, packed = search_and_pack(QWEN2, num_beams=1)
    num_found = packed.num_tokens
    packed = pack_leaves(PROMPTS, LEAVES, TREE, "vocabulary")
    assert packed.num_tokens > num_found
    assert_passes_equal(QWEN2, packed, prompts, gradient_tolerance(QWEN2))
    assert all(unknown > len(PROMPTS) for _, unknown in computed)


def test_results_serve_once_and_layers_are_themselves_again(computed):
    model = copy.deepcopy(QWEN2)
    prompts, packed = search_and_pack(model)
    first = token_log_probs(model, packed, prompt_cache=prompts)
    assert computed and not prompts.activations.results
    computed.clear()
    second = token_log_probs(model, packed, prompt_cache=prompts)
    assert not computed
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(not module._forward_hooks for module in model.get_decoder().modules())


def test_layers_that_do_not_give_one_result_a_token_compute():
    once, twice, some, never = (nn.Linear(3, 3) for _ in range(4))
    kept = RecordedActivations([once, twice, some, never], torch.tensor([0, 2]), num_places=10)
    real = torch.tensor([[True, True], [True, False]])
    place = torch.tensor([[4, 7], [2, 0]])
    with kept.recording(place, UnpaddedTokens(real, 3, 2, 3)):
        for layer, num_tokens in ((once, 3), (twice, 3), (twice, 3), (some, 2)):
            layer(torch.zeros(1, num_tokens, 3))
    assert list(kept.results) == [once] and len(kept.results[once][0]) == 3
    assert torch.cat(kept.tokens).tolist() == [4, 7, 22]


def test_tokens_are_found_by_number():
    at, source = recall.found(torch.tensor([7, 3, 9]), torch.tensor([9, -1, 3, 10, 8]))
    assert at.tolist() == [0, 2] and source.tolist() == [2, 1]


def test_nothing_is_recalled_in_half_precision():
    assert start_recording(copy.deepcopy(QWEN2).bfloat16(), 1, 9) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert start_recording(QWEN2, 1, 9) is None
    assert start_recording(precise("qwen2").float(), 1, 9).results


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_layer_has_the_gradient_of_a_linear_one(with_bias):
    layer = nn.Linear(3, 5, bias=with_bias).double()
    states = torch.randn(2, 2, 3, dtype=torch.double, requires_grad=True)
    expected = layer(states)
    given = list(expected.detach().flatten(0, 1)[[3, 0, 1]].split(2))  # not the third token's
    sources = [
        (torch.tensor([0, 3]), torch.tensor([1, 0])),
        (torch.tensor([1]), torch.tensor([0])),
    ]
    inputs = states, layer.weight, layer.bias, given, sources, torch.tensor([2])
    actual = ReplayedLinear.apply(*inputs)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), [states, *layer.parameters()]),
        torch.autograd.grad((expected * weights).sum(), [states, *layer.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("has_adapters", [False, True])
def test_a_distributed_model_recalls(process_group, has_adapters, computed):
    model = with_adapters(QWEN2) if has_adapters else precise("qwen2")
    wrapped = DistributedDataParallel(model)
    prompts, packed = search_and_pack(model.get_base_model() if has_adapters else model)
    expected = gradients_of(model, weighted_sum(token_log_probs(model, packed)))
    weighted_sum(token_log_probs(wrapped, packed, prompt_cache=prompts)).backward()
    assert computed
    actual = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    assert_gradients_equal(actual, expected, 1e-9)
