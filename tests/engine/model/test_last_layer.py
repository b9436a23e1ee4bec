"""Tokens that the last layer skips; tests that compare logits show that this changes nothing."""

import pytest
import torch
from tiny_models import causal_lm, precise

from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model.attention import own_attention
from rere.engine.model.decoder import SharedPromptDecoder
from rere.engine.model.last_layer import TOKEN_WISE, last_layer, last_layer_for

PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]


def count_tokens(model):
    """How many tokens the modules of each layer get from now on, pass after pass."""
    layers = model.get_decoder().layers
    seen = [{name: [] for name in TOKEN_WISE} for _ in layers]
    for layer, modules in zip(layers, seen, strict=True):
        for name, counts in modules.items():
            layer.get_submodule(name).register_forward_hook(
                lambda *x, counts=counts: counts.append(x[1][0].shape[1])
            )
    return seen


def count_queries(monkeypatch):
    """How many queries per row each layer attends for from now on, pass after pass."""
    attend, counts = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query, *args, **kwargs):
        counts.append(query.shape[2])
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return counts


def test_the_last_layer_gets_the_tokens_with_logits(monkeypatch):
    model, opening = causal_lm("qwen2", 23), torch.tensor([6, 10])
    seen, queries = count_tokens(model), count_queries(monkeypatch)
    SharedPromptDecoder(model, PROMPTS).prefill(opening, logits_to_keep=3)
    packed = pack(PROMPTS, [[[4, 5, 1], [4, 6, 7, 1]]] * 3)
    token_log_probs(model, packed).sum().backward()
    *others, last = seen
    # Prompts of 6, 1 and 3 tokens, with 2 more; attention has them in rows of 8.
    assert others == [{name: [16, packed.num_tokens] for name in TOKEN_WISE}] * len(others)
    assert last == {name: [9, packed.num_logits] for name in TOKEN_WISE}
    # Two heads share their keys, so that each token is two queries.
    prefill, scoring = [8] * len(others) + [3], [packed.input_ids.shape[1]] * len(others)
    assert queries == [2 * number for number in (*prefill, *scoring, packed.logits_to_keep)]


def test_all_tokens_outside_the_context():
    model, ids = causal_lm("qwen2", 23), torch.tensor([PROMPTS[0]])
    seen = count_tokens(model)
    with own_attention(model), last_layer_for(model, 6, 2, 2):
        inside = model(ids, logits_to_keep=2).logits
    outside = model(ids).logits
    assert seen[-1] == {name: [2, 6] for name in TOKEN_WISE}
    torch.testing.assert_close(inside, outside[:, -2:])
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.get_decoder().layers[-1].self_attn, "num_queries")


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_modules_under_other_names_compute_all_tokens(family):
    model, ids = causal_lm(family, 23), torch.tensor([PROMPTS[0]])
    with own_attention(model), last_layer_for(model, 6, 2, 2):
        inside = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(inside, model(ids).logits[:, -2:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_was_chosen_stays(implementation):
    model, ids = causal_lm("qwen2", 23), torch.tensor([PROMPTS[0]])
    model.set_attn_implementation(implementation)
    with own_attention(model), last_layer_for(model, 6, 2, 2):
        inside = model(ids, logits_to_keep=2).logits
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(inside, model(ids).logits[:, -2:])


def test_a_recomputed_layer_is_left_alone():
    model = precise("qwen2")
    model.activation_checkpointing_enable()
    assert last_layer(model) is not None  # in eval mode transformers recomputes nothing
    assert last_layer(model.train()) is None
