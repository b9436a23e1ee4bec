"""Models and data that the tests of benchmarks share."""

from pathlib import Path

import pytest
from search_oracles import random_catalogue
from tiny_models import CYCLE, VOCAB_SIZE, causal_lm, write_data, write_fixed_model

from rere.backbones import load_tokenizer, tiny_model
from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.config.backbones import Tiny

SEQUENCES = random_catalogue(60, seed=5)
PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22], [4, 4], [9, 6, 5], [3], [12, 2, 9, 9], [20]]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """The folders of a model with fixed weights and of a data set."""
    root = tmp_path_factory.mktemp("benchmarks")
    rows = [([start, (start + 1) % 8], (start + 2) % 8) for start in range(6)]
    data = write_data(root / "cycle", CYCLE, train=rows + rows[:2], test=rows)
    return write_fixed_model(root / "model"), data


@pytest.fixture(scope="session")
def random_inputs(inputs):
    """The same with random weights."""
    model, data = inputs
    folder = model.parent / "random"
    options = Tiny(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2)
    tiny_model(options, load_tokenizer(model)).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder, data


@pytest.fixture(scope="session")
def random_model():
    """A model with random weights on a random catalogue, not on disk."""
    weights = {"float32": causal_lm("qwen2", VOCAB_SIZE, seed=1)}
    return BenchmarkModel("random", Path("model"), Path("cycle"), weights, SEQUENCES, eos=1)


@pytest.fixture(scope="session")
def prompt_rows():
    return [PromptRow(number, prompt, number % 7) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="session")
def run_inline():
    """A replacement of `run_in_process` that starts no process."""
    return lambda context, function, *arguments: function(*arguments)
