"""A model for tests of training to start from, and readers of a run's folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rere.backbones import backbone, load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.backbones import Tiny
from rere.config.training import SftOptions
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training.sft import sft

MACHINE_FIELDS = {"seconds", "candidates_per_second", "peak_memory_mb", "peak_device_memory_mb"}
"""Fields of the log that depend on the machine."""


def train_briefly(folder: Path, data: Path) -> Path:
    """The folder of a model that was trained too briefly to know the dataset well."""
    untrained = folder / "backbone"
    backbone(Tiny(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4), data, untrained)
    options = SftOptions(
        learning_rate=5e-3, batch_size=8, rows_per_pass=8, epochs=3.0, validations=1
    )
    sft(options, untrained, data, 0, folder)
    return folder / "model"


def read_log(output: Path) -> list[dict]:
    """Every line of the run's log, without MACHINE_FIELDS."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if name not in MACHINE_FIELDS}
        for line in lines
    ]


def read_steps(output: Path) -> list[dict]:
    """The log's lines of optimiser steps."""
    return [record for record in read_log(output) if "loss" in record]


def read_values(output: Path, name: str) -> list[float]:
    """The values of one field of the log, from the lines that have it."""
    return [line[name] for line in read_log(output) if name in line]


def load_weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the run's model by name."""
    return load_file(output / "model" / "model.safetensors")


def assert_has_catalogue(output: Path, titles: list[str]) -> None:
    """The catalogue in the run's model folder is that of `titles` in the model's tokens."""
    encoder = PromptEncoder(load_tokenizer(output / "model"), titles)
    vocab_size = load_model(output / "model").config.vocab_size
    catalogue = Catalogue.load(output / "model" / CATALOGUE, vocab_size)
    assert list(catalogue.titles) == titles
    assert catalogue.fingerprint == encoder.fingerprint()
    expected = PrefixTree.build(encoder.encode_responses())
    assert catalogue.tree.token.equal(expected.token)
    assert catalogue.tree.leaf_of_item.equal(expected.leaf_of_item)


def assert_weights_close(actual: Path, expected: Path, tolerance: float) -> None:
    """Every weight of one run is within `tolerance` of the other's."""
    expected = load_weights(expected)
    for name, weight in load_weights(actual).items():
        torch.testing.assert_close(
            weight,
            expected[name],
            atol=tolerance,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )
