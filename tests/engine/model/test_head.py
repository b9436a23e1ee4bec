"""Logits in float32, whatever the arithmetic of the layers below."""

from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, MASK_IGNORING, VOCAB_SIZE, causal_lm
from torch.nn.functional import linear

from rere.engine.model.decoder import eval_mode
from rere.engine.model.head import TokenHead, head_in_float32
from rere.engine.model.precision import arithmetic

IDS = torch.arange(24).view(2, 12) % VOCAB_SIZE


def is_representable(logits: torch.Tensor) -> bool:
    """Whether logits are as coarse as bfloat16."""
    return torch.equal(logits.bfloat16().to(logits.dtype), logits)


@pytest.mark.parametrize("family", [*FAMILIES, *MASK_IGNORING])
def test_logits_are_float32_products_of_the_last_states(family):
    model = causal_lm(family, VOCAB_SIZE)
    head = model.get_output_embeddings()
    states: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _, args, output: states.extend([args[0], output]))
    with torch.no_grad(), arithmetic(model.device, "bfloat16"), head_in_float32(model):
        logits = model(IDS, use_cache=False).logits
    hook.remove()
    hidden, product = states
    expected = linear(hidden.float(), head.weight, head.bias)
    torch.testing.assert_close(product, expected, atol=0, rtol=0)
    assert logits.dtype == torch.float32 and not is_representable(logits)


def test_weights_in_bfloat16():
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
    with torch.no_grad(), eval_mode(model):
        logits = model(IDS, use_cache=False).logits
    assert logits.dtype == torch.float32 and not is_representable(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_changes_in_full_precision(dtype):
    model = causal_lm("llama", VOCAB_SIZE).to(dtype)
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
        with eval_mode(model), head_in_float32(model):  # the inner one does nothing
            assert torch.equal(model(IDS, use_cache=False).logits, expected)
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
    assert "forward" not in vars(model.get_output_embeddings())


def test_gradients_reach_tied_embeddings():
    model = causal_lm("gemma3", VOCAB_SIZE)
    weight = model.get_output_embeddings().weight
    assert weight is model.get_input_embeddings().weight
    gradients = []
    for dtype in ("float32", "bfloat16"):
        weight.grad = None
        with arithmetic(model.device, dtype), head_in_float32(model):
            model(IDS, use_cache=False).logits.square().mean().backward()
        gradients.append(weight.grad)
    exact, rough = gradients
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_another_forward_of_the_head_stays():
    model = causal_lm("qwen2", VOCAB_SIZE)
    with patch.object(model.get_output_embeddings(), "forward", lambda hidden: hidden[..., :1]):
        with head_in_float32(model):
            assert model(IDS, use_cache=False).logits.shape == (2, 12, 1)
        assert "forward" in vars(model.get_output_embeddings())


# --------------------------------------------------------------------------- some tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_some_tokens_are_those_of_the_whole_head(family, dtype):
    model, token = causal_lm(family, VOCAB_SIZE), torch.tensor([2, 3, 11, VOCAB_SIZE - 1])
    with torch.no_grad(), arithmetic(model.device, dtype), eval_mode(model):
        head = TokenHead.of(model, token)
        assert head is not None
        expected = model(IDS, use_cache=False).logits
        with head.used_in(model):
            actual = model(IDS, use_cache=False).logits
        torch.testing.assert_close(actual, expected[..., token])
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("barred", [100, 1])
def test_a_model_that_looks_for_a_token_has_its_whole_head(barred):
    """By a place that the logits of some tokens lack, or where they have another token."""
    model = causal_lm("qwen2", 200)
    forward = model.forward

    def bar(**inputs):
        output = forward(**inputs)
        output.logits[..., barred] = -1e9
        return output

    with patch.object(model, "forward", bar):
        assert TokenHead.of(model, torch.tensor([2, 3])) is None


def test_a_head_with_adapters_is_whole():
    model = causal_lm("qwen2", VOCAB_SIZE)
    get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=2))
    assert TokenHead.of(model, torch.tensor([2, 3])) is None
