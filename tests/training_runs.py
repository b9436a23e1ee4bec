"""What a training run left in its folder, as the tests of SFT and RL read it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def records(output: Path) -> list[dict]:
    """Every line of the run's log."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def steps(output: Path) -> list[dict]:
    """The log's lines of optimiser steps."""
    return [record for record in records(output) if "loss" in record]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the run's model."""
    return load_file(output / "model" / "model.safetensors")


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
