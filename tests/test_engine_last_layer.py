"""What the last layer leaves out; that nothing hangs on it is shown where logits are compared."""

import pytest
import torch
from tiny_models import causal_lm, precise

from rere.engine.decoder import SharedPrompt
from rere.engine.last_layer import at_the_end, feed_forward
from rere.engine.packing import pack
from rere.engine.scoring import token_log_probs

PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]


@pytest.fixture
def seen(model):
    """How many tokens the feed-forward network of each layer gets, pass after pass."""
    layers = model.get_decoder().layers
    seen = [[] for _ in layers]
    for layer, counts in zip(layers, seen, strict=True):
        layer.mlp.register_forward_hook(lambda *x, counts=counts: counts.append(x[1][0].shape[1]))
    return seen


@pytest.fixture
def model():
    return causal_lm("qwen2", 23)


def test_the_last_network_gets_the_tokens_with_logits(model, seen):
    opening = torch.tensor([6, 10])
    SharedPrompt(model, PROMPTS).prefill(opening, keep=3)
    packed = pack(PROMPTS, [[[4, 5, 1], [4, 6, 7, 1]]] * 3)
    token_log_probs(model, packed).sum().backward()
    *others, last = seen
    assert all(counts == [8, packed.input_ids.shape[1]] for counts in others)
    assert last == [3, packed.num_kept]


def test_all_of_them_before_and_afterwards(model, seen):
    ids = torch.tensor([PROMPTS[0]])
    with at_the_end(model, 6, 2):
        inside = model(ids, logits_to_keep=2).logits
    outside = model(ids).logits
    assert seen[-1] == [2, 6]
    torch.testing.assert_close(inside, outside[:, -2:])


@pytest.mark.parametrize("family", ["opt", "mamba"])
def test_an_architecture_that_names_its_parts_differently_is_left_alone(family):
    assert feed_forward(causal_lm(family, 23)) is None


def test_a_layer_that_is_computed_again_is_left_alone():
    model = precise("qwen2")
    model.activation_checkpointing_enable()
    assert feed_forward(model) is not None  # in eval mode transformers computes nothing again
    assert feed_forward(model.train()) is None
