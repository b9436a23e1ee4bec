"""A stage that is given a part of the training rows trains on these, and on no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import write_cycle, write_fixed_model
from training_runs import assert_weights_close

from rere.config.training import PreferenceOptions, RlOptions, SftOptions, Training
from rere.data.factors import Factors
from rere.data.splits import read_split
from rere.errors import InputError
from rere.training.preference import preference
from rere.training.rl import rl
from rere.training.sft import sft

SFT = SftOptions(learning_rate=1e-2, batch_size=8, rows_per_pass=8, epochs=1.0, evaluations=1)
PREFERENCE = PreferenceOptions(
    learning_rate=1e-2, steps=8, batch_size=8, rows_per_pass=8, evaluations=1
)
RL = RlOptions(
    learning_rate=1e-2, steps=8, prompts=8, rows_per_pass=8, group_size=4, beta=0.1, evaluations=1
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training rows."""
    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixed_model(tmp_path_factory.mktemp("init"))


def part(options: Training, start: float, end: float) -> Training:
    return options.model_copy(update={"train_part": [start, end]})


@pytest.mark.parametrize(
    ("stage", "options"),
    [(sft, SFT), (preference, PREFERENCE), (rl, RL)],
    ids=["sft", "preference", "rl"],
)
def test_rows_outside_of_the_part_are_not_there(
    tmp_path: Path, data: Path, init: Path, stage: Callable, options: Training
):
    inside = tmp_path / "inside"
    shutil.copytree(data, inside)
    read_split(data, "train")[24:72].write_parquet(inside / "train.parquet")
    stage(part(options, 0.25, 0.75), init, data, 0, tmp_path / "part")
    stage(options, init, inside, 0, tmp_path / "whole")
    assert_weights_close(tmp_path / "part", tmp_path / "whole", 0.0)
    stage(options, init, data, 0, tmp_path / "all")
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "part", tmp_path / "all", 0.0)


def test_a_part_has_rewards_of_factors_of_all_rows(tmp_path: Path, data: Path, init: Path):
    row_id = torch.tensor(read_split(data, "train")["row_id"].to_list())
    factors = tmp_path / "factors.safetensors"
    Factors(row_id, torch.ones(len(row_id), 2), torch.ones(8, 2)).save(factors)
    options = RL.model_copy(update={"reward": ["rule", "collaborative"], "train_part": [0.5, 1.0]})
    rl(options, init, data, 0, tmp_path / "run", factors)
    assert (tmp_path / "run" / "model").is_dir()


def test_a_part_without_enough_rows_is_refused(tmp_path: Path, data: Path, init: Path):
    with pytest.raises(InputError, match="has 5 training rows, fewer than prompts a step"):
        rl(part(RL, 0.95, 1.0), init, data, 0, tmp_path / "run")
    with pytest.raises(InputError, match="has 0 training rows, fewer than one"):
        sft(part(SFT, 0.999, 1.0), init, data, 0, tmp_path / "run")
