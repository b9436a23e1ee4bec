"""A small model of a family."""

import torch
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Qwen2Config,
)

from rere.planning.small_model import few_layers, small_model

VOCAB = {"vocab_size": 200}


def test_few_layers_are_one_of_each_kind():
    kinds = [*["sliding_attention"] * 5, "full_attention"]
    config = Gemma3TextConfig(num_hidden_layers=12, layer_types=kinds * 2, **VOCAB)
    few = few_layers(config)
    assert few.num_hidden_layers == 2
    assert few.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 12
    assert few_layers(Qwen2Config(num_hidden_layers=9)).num_hidden_layers == 2
    assert few_layers(Qwen2Config(num_hidden_layers=1)).num_hidden_layers == 1


def test_heads_keep_their_size_and_grouping():
    """32 heads of 4096 / 32 = 128 numbers, all with keys of their own, in groups, with one key."""
    for groups, kept in ((32, 4), (8, 2), (1, 1)):
        config = LlamaConfig(num_key_value_heads=groups, num_hidden_layers=8, **VOCAB)
        model, name = small_model(config)
        sizes = model.config.num_attention_heads, model.config.num_key_value_heads
        assert sizes == (4, kept)
        assert model.model.layers[0].self_attn.head_dim == 128
        assert name == "a random LlamaForCausalLM of 2 layers, width 128"


def test_names_of_sizes_and_experts():
    gpt2, _ = small_model(GPT2Config(n_layer=5, **VOCAB))  # 12 heads of 64 numbers
    assert (gpt2.config.n_embd, gpt2.config.n_head, gpt2.config.n_positions) == (256, 4, 1024)
    mixtral, _ = small_model(MixtralConfig(num_hidden_layers=5, num_local_experts=8, **VOCAB))
    assert mixtral.config.num_local_experts == 4


def test_a_family_that_cannot_be_narrowed_has_few_layers():
    model, name = small_model(MambaConfig(hidden_size=64, num_hidden_layers=5, **VOCAB))
    assert name == "a random MambaForCausalLM of 2 layers, width 64"
    assert not model.training


def test_its_weights_are_fixed_and_draw_nothing():
    state = torch.get_rng_state()
    config = Qwen2Config(num_hidden_layers=2, **VOCAB)
    first, second = (small_model(config)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())
