"""A model that tests of training start from, and what a run left in its folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rere.backbones import backbone, load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue, PrefixTree
from rere.config.backbones import Tiny
from rere.config.training import SftOptions
from rere.tokenization import PromptEncoder
from rere.training.sft import sft

TIMES = {"seconds", "candidates_per_second", "peak_memory_mb", "peak_device_memory_mb"}
"""What a line of the log says of the machine and not of the run."""


def half_trained(folder: Path, data: Path) -> Path:
    """A model in a folder, trained too briefly to know the data set well."""
    untrained = folder / "backbone"
    backbone(Tiny(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4), data, untrained)
    options = SftOptions(
        learning_rate=5e-3, batch_size=8, rows_per_pass=8, epochs=3.0, validations=1
    )
    sft(options, untrained, data, 0, folder)
    return folder / "model"


def records(output: Path) -> list[dict]:
    """Every line of the run's log, without what only tells of the machine."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def steps(output: Path) -> list[dict]:
    """The log's lines of optimiser steps."""
    return [record for record in records(output) if "loss" in record]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the run's model."""
    return load_file(output / "model" / "model.safetensors")


def assert_carries_catalogue(output: Path, titles: list[str]) -> None:
    """Hold the catalogue beside the run's model to `titles` under the model's tokenizer."""
    encoder = PromptEncoder(load_tokenizer(output / "model"), titles)
    vocab_size = load_model(output / "model").config.vocab_size
    catalogue = Catalogue.load(output / "model" / CATALOGUE, vocab_size)
    assert list(catalogue.titles) == titles
    assert catalogue.fingerprint == encoder.fingerprint()
    expected = PrefixTree.build(encoder.responses())
    assert catalogue.tree.token.equal(expected.token)
    assert catalogue.tree.leaf_of_item.equal(expected.leaf_of_item)


def assert_weights_close(actual: Path, expected: Path, tolerance: float) -> None:
    """Hold every weight of one run to within `tolerance` of another's."""
    expected = weights(expected)
    for name, weight in weights(actual).items():
        torch.testing.assert_close(
            weight,
            expected[name],
            atol=tolerance,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )
