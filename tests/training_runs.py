"""Short runs of the training stages, and readers of a run's folder."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import CYCLE

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions, Training
from rere.data.dataset import read_split
from rere.engine.search.beam import beam_search
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training.preference import preference
from rere.training.rl import rl
from rere.training.sft import sft

STAGES = {"sft": sft, "preference": preference, "rl": rl}
SHORT = {
    # Six steps.
    "sft": SftOptions(learning_rate=5e-3, batch_size=8, rows_per_pass=8, epochs=0.5, validations=1),
    "preference": PreferenceOptions(
        learning_rate=1e-3, steps=8, batch_size=8, rows_per_pass=8, validations=1, num_beams=4
    ),
    "rl": RlOptions(
        learning_rate=1e-3,
        steps=4,
        prompts=8,
        rows_per_pass=8,
        group_size=4,
        beta=0.1,
        validations=1,
    ),
}
"""Options of short runs, by stage."""

RESUMED = {
    # Two epochs of six steps; one of twelve and two steps of another.
    "sft": SftOptions(
        learning_rate=3e-2, batch_size=16, rows_per_pass=8, epochs=2.0, validations=4, patience=9
    ),
    # Both see all rows more than once; sprec has two iterations of three and three steps.
    "s_dpo": PreferenceOptions(
        learning_rate=1e-2,
        steps=14,
        batch_size=8,
        rows_per_pass=4,
        validations=5,
        valid_rows=8,
        num_beams=4,
    ),
    "sprec": PreferenceOptions(
        algorithm="sprec",
        iterations=2,
        learning_rate=1e-2,
        steps=12,
        batch_size=16,
        rows_per_pass=8,
        validations=4,
        valid_rows=8,
        num_beams=4,
    ),
    "rl": RlOptions(
        learning_rate=1e-2,
        steps=14,
        prompts=8,
        rows_per_pass=4,
        group_size=4,
        beta=0.1,
        validations=5,
        valid_rows=8,
    ),
}
RESUMED["rl_lora"] = RESUMED["rl"].model_copy(update={"lora_rank": 4})
RESUMED["rl_synced"] = RESUMED["rl"].model_copy(update={"sync_interval": 5})
RESUMED["rl_two_updates"] = RESUMED["rl"].model_copy(
    update={"objective": "gspo", "updates": 2, "rollout": "iid", "scoring": "catalogue"}
)
RESUMED["rl_dynamic_sampling"] = RESUMED["rl"].model_copy(
    update={"objective": "dapo", "dynamic_sampling": 2, "beta": 0.0, "updates": 2}
)
"""Options of runs that tests interrupt and resume. All stages, and RL with state of its own."""
EVERY_STEP = {"checkpoint_seconds": 0.0}
"""A checkpoint after each step."""


def run_stage(options: Training, init: Path, data: Path, seed: int, output: Path) -> None:
    """Run the stage that takes such options."""
    (stage,) = (name for name, short in SHORT.items() if type(short) is type(options))
    STAGES[stage](options, init, data, seed, output)


MACHINE_FIELDS = {"seconds", "candidates_per_second", "peak_memory_mb", "peak_device_memory_mb"}
"""Fields of the log that depend on the machine."""


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


def has_same_weights(actual: Path, expected: Path) -> bool:
    """Whether all weights of two runs are the same bits."""
    one, other = load_weights(actual), load_weights(expected)
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


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


def ndcg(folder: Path, data: Path, num_beams: int) -> float:
    """NDCG@10 of beam search on the validation rows, one row at a time."""
    model, encoder = load_model(folder), PromptEncoder(load_tokenizer(folder), CYCLE)
    tree = PrefixTree.build(encoder.encode_responses())
    rows = read_split(data, "valid")
    total = 0.0
    for row_id, history, target in rows.select("row_id", "history", "target").iter_rows():
        encoded = encoder.encode_prompts([row_id], [history], 0)
        leaves = beam_search(model, tree, encoded, num_beams).leaf[0].tolist()
        leaf = int(tree.leaf_of_item[target])
        if leaf in leaves[:10]:
            total += 1 / math.log2(leaves.index(leaf) + 2)
    return total / len(rows)
