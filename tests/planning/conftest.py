"""A data set, and a model that is larger than what a process holds without one."""

import pytest
import torch
from tiny_models import CYCLE, tokenizer, write_data
from transformers import AutoModelForCausalLM, Qwen2Config

from rere.planning.plan import Texts, load_config
from rere.planning.sample import Sample


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [([start], (start + 1) % 8) for start in range(8)]
    return write_data(
        tmp_path_factory.mktemp("cycle"), CYCLE, train=rows * 4, valid=rows, test=rows
    )


@pytest.fixture
def sample(data, fixed_model):
    """The data set in the tokens of a model of fixed weights; nothing is known yet."""
    config = load_config(str(fixed_model))
    return Sample(config, Texts.read(str(fixed_model), data), data, seed=0)


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """A random model of 127 MB."""
    folder = tmp_path_factory.mktemp("large")
    config = Qwen2Config(
        vocab_size=30_000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    return folder
