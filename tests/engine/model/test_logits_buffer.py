"""Logits in memory that stays: the same values and gradients, and no tensor in another's place."""

import copy

import pytest
import torch
from packed_batches import (
    QWEN2,
    assert_gradients_equal,
    gradients_of,
    pack_for,
    weighted_sum,
    with_adapters,
)
from torch import nn

from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model import logits_buffer as room
from rere.engine.model.logits_buffer import LinearInRoom, Room


@pytest.fixture
def every_size(monkeypatch):
    """A room that takes the smallest logits."""
    monkeypatch.setattr(room, "LARGE", 0)
    monkeypatch.setattr(room, "ROOM", Room())
    return room.ROOM


def test_a_block_has_one_tenant_at_a_time(every_size):
    first = every_size.take((3, 4), torch.float32)
    block = first.data_ptr()
    part = first[1:]
    del first
    assert every_size.take((3, 4), torch.float32).data_ptr() != block  # a part is in it still
    del part
    again = every_size.take((2, 3), torch.float64)
    assert again.data_ptr() == block and again.shape == (2, 3) and again.dtype == torch.float64
    del again
    larger = every_size.take((30, 40), torch.float32)
    assert larger.fill_(1).sum() == 1200


def test_small_blocks_are_the_allocators():
    some = Room()
    some.take((2, 3), torch.float32)
    assert len(some.memory) == 0 and some.tenant is None


def test_a_pass_is_the_same(model, every_size, monkeypatch):
    packed = pack_for("vocabulary")
    actual = token_log_probs(model, packed)
    assert len(every_size.memory) > 0
    found = gradients_of(model, weighted_sum(actual))
    monkeypatch.setattr(room, "LARGE", 2**60)
    expected = token_log_probs(model, packed)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    assert_gradients_equal(found, gradients_of(model, weighted_sum(expected)), 1e-9)


def test_passes_that_wait_for_their_gradient_keep_their_logits(every_size):
    packed = pack_for("vocabulary")
    expected = gradients_of(QWEN2, weighted_sum(token_log_probs(QWEN2, packed)))
    first, second = (weighted_sum(token_log_probs(QWEN2, packed)) for _ in range(2))
    with torch.no_grad():
        token_log_probs(QWEN2, packed, temperature=3.0)
    assert_gradients_equal(gradients_of(QWEN2, first), expected, 1e-12)
    assert_gradients_equal(gradients_of(QWEN2, second), expected, 1e-12)


def test_with_adapters_the_output_layer_has_no_gradient(every_size):
    model, packed = with_adapters(QWEN2), pack_for("vocabulary")
    found = gradients_of(model, weighted_sum(token_log_probs(model, packed)))
    assert found and all("lora" in name for name in found) and len(every_size.memory) > 0


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_layer_is_linear(every_size, with_bias):
    layer = nn.Linear(3, 5, bias=with_bias).double()
    states = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.equal(LinearInRoom.apply(states, layer.weight, layer.bias), layer(states))
    assert torch.autograd.gradcheck(LinearInRoom.apply, (states, layer.weight, layer.bias))


def test_the_layer_is_itself_again(every_size):
    model = copy.deepcopy(QWEN2)
    token_log_probs(model, pack_for("vocabulary"))
    assert "forward" not in vars(model.get_output_embeddings())
