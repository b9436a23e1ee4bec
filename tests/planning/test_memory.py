"""The memory of training on fake tensors, beside that of real ones."""

import pytest
import torch
from packed_batches import pack_for
from tiny_models import FAMILIES, causal_lm

from rere.backbones import count_parameters, shape_of
from rere.config.rl import RlOptions
from rere.config.training import SftOptions
from rere.engine.candidates.scoring import token_scores
from rere.engine.model import attention_blocks
from rere.engine.model.precision import arithmetic
from rere.planning.memory import (
    HeldMemory,
    inference_weights,
    training_memory,
)

CPU = torch.device("cpu")
PACKED = pack_for("vocabulary")


def plan(model, has_reference=False, is_synced=False, packed=PACKED, **options):
    options = RlOptions(**{"dtype": "float32", "prompts": 8, "rows_per_pass": 8} | options)
    return training_memory(model.config, options, packed, has_reference, is_synced, CPU)


def weight_bytes(model):
    return sum(weight.nbytes for weight in model.parameters())


def linear_bytes(model):
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sum(weight.nbytes for layer in layers for weight in layer.parameters())


def test_held_memory_by_hand():
    with HeldMemory() as held:
        first = torch.zeros(100)  # 400 bytes
        view = first[:10]
        second = first + 1
        assert held.now == held.peak == 800
        del second
        assert held.now == 400 and held.peak == 800
        del first
        assert held.now == 400  # the view keeps its storage
        del view
        assert held.now == 0 and held.peak == 800


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_those_of_real_tensors(family, dtype, monkeypatch):
    monkeypatch.setattr(attention_blocks, "BLOCK_COST", {})
    model = causal_lm(family, 100, num_hidden_layers=3)
    planned = plan(model, dtype=dtype)
    held = HeldMemory()
    for weight in model.parameters():
        held.hold(weight.untyped_storage())  # else views of it would count
        weight.grad = torch.zeros_like(weight)
        held.hold(weight.grad.untyped_storage())
    before = held.now
    with held:
        with arithmetic(CPU, dtype):
            scores = token_scores(model, PACKED)
        scores.log_prob.sum().backward()
    assert planned.activations == pytest.approx(held.peak - before, rel=0.02)


def test_the_parts_of_full_training_by_hand():
    model = causal_lm("qwen2", 100)
    weights = weight_bytes(model)
    planned = plan(model, has_reference=True)
    assert planned.weights == pytest.approx(weights, rel=0.01)  # and buffers
    assert planned.reference == planned.weights
    assert planned.gradients == weights
    assert planned.optimizer == pytest.approx(2 * weights, rel=0.01)  # and a counter a weight


def test_a_reference_that_stays_has_linear_layers_in_bfloat16():
    model = causal_lm("qwen2", 100)
    still, moving = (plan(model, True, synced, dtype="bfloat16") for synced in (False, True))
    assert moving.reference - still.reference == linear_bytes(model) // 2


def test_adapters_train_few_weights_over_a_bfloat16_base():
    model = causal_lm("qwen2", 100)
    planned = plan(model, has_reference=True, lora_rank=2, dtype="bfloat16")
    assert planned.reference == 0  # the policy without its adapters
    trained = planned.gradients
    assert planned.optimizer == pytest.approx(2 * trained, rel=0.1)
    base = weight_bytes(model) - linear_bytes(model) // 2
    assert planned.weights == pytest.approx(base + trained, rel=0.01)


def test_options_that_save_memory_do():
    model = causal_lm("qwen2", 100, num_hidden_layers=6)
    usual = plan(model)
    assert plan(model, gradient_checkpointing=True).activations < usual.activations / 2
    assert plan(model, optimizer="adafactor").optimizer < usual.optimizer / 2


def test_sft_has_no_entropies_and_no_reference():
    model = causal_lm("qwen2", 100)
    options = SftOptions(dtype="float32")
    planned = training_memory(model.config, options, PACKED, False, False, CPU)
    assert planned.reference == 0 and planned.activations > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_a_plan(family):
    model = causal_lm(family, 100)
    assert plan(model).weights >= weight_bytes(model)
    assert count_parameters(shape_of(model.config)) == model.num_parameters()


def test_inference_keeps_linear_layers_in_bfloat16():
    model = causal_lm("qwen2", 100)
    assert inference_weights(model.config, "float32") == weight_bytes(model)
    saved = linear_bytes(model) // 2
    assert inference_weights(model.config, "bfloat16") == weight_bytes(model) - saved


def test_nothing_of_the_plan_stays_behind():
    before = dict(attention_blocks.BLOCK_COST)
    plan(causal_lm("qwen2", 100))
    assert before == attention_blocks.BLOCK_COST and before
    assert torch.zeros(3).tolist() == [0, 0, 0]
