"""RL stops after steps in which nothing is learnt, whether or not their candidates differ."""

import json
from pathlib import Path

import pytest
from tiny_models import write_cycle, write_fixed_model
from training_runs import read_values
from transformers import TrainerState

from rere.config.rl import RlOptions
from rere.errors import InputError
from rere.training.callbacks import CollapseStop
from rere.training.rl import rl

OPTIONS = RlOptions(
    learning_rate=1e-3, steps=4, prompts=8, rows_per_pass=8, group_size=4, validations=1, beta=0.1
)
EQUAL = ["faulty_rewards:equal"]
"""The same reward for all candidates."""


def train(folder: Path, **changes) -> Path:
    """The folder of a run on the cycle, below `folder`."""
    if not (folder / "data").exists():
        write_cycle(folder / "data")
        write_fixed_model(folder / "init")
    options = RlOptions.model_validate(OPTIONS.model_dump() | changes)
    rl(options, folder / "init", folder / "data", 0, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("changes", [{}, {"beta": 0.0}, {"dynamic_sampling": 1}])
def test_distinct_beams_with_equal_rewards_stop_the_run(changes, tmp_path):
    with pytest.raises(InputError) as stopped:
        train(tmp_path, reward=EQUAL, collapse_steps=2, **changes)
    message = str(stopped.value)
    assert message.startswith(
        "in the last 2 steps, up to step 2, all groups had zero advantage, so nothing was learnt ("
    )
    assert "4 distinct items per group" in message
    assert "lower learning_rate or raise beta" in message
    assert message.endswith("or set collapse_steps: null")
    assert "\n" not in message
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints"}


def test_rollouts_without_an_item_stop_the_run(tmp_path):
    """A model with random weights writes no title."""
    with pytest.raises(InputError, match=r"\(no candidate is an item\); take a constrained roll"):
        train(tmp_path, rollout="unconstrained", collapse_steps=2)


def test_a_stopped_run_resumes_under_another_limit(tmp_path):
    changes = {"reward": EQUAL, "checkpoint_seconds": 0.0, "steps": 5}
    with pytest.raises(InputError, match="in the last 2 steps, up to step 2,"):
        train(tmp_path, collapse_steps=2, **changes)
    with pytest.raises(InputError, match="in the last 4 steps, up to step 4,"):
        train(tmp_path, collapse_steps=4, **changes)
    folder = train(tmp_path, collapse_steps=None, **changes)
    assert read_values(folder, "zero_advantage") == [1.0] * 5
    assert json.loads((folder / "run.json").read_text())["resumed"] == 2


def test_hits_in_some_groups_do_not_stop_the_run(tmp_path):
    folder = train(tmp_path, collapse_steps=1)
    shares, hits = read_values(folder, "zero_advantage"), read_values(folder, "hit_rate")
    # With rule and ranking rewards, groups without a hit have equal rewards.
    assert shares == pytest.approx([1 - rate for rate in hits])


def test_only_consecutive_steps_count():
    stop, state = CollapseStop(2), TrainerState(global_step=7)

    def log(**logs: float) -> None:
        stop.on_log(None, state, None, {"invalid": 0.0, "hit_rate": 0.0, "distinct": 16.0, **logs})

    log(zero_advantage=1.0)
    log(zero_advantage=0.97)
    log(zero_advantage=1.0)
    stop.on_log(None, state, None, {"eval_ndcg@10": 0.0})
    assert stop.steps == 1
    with pytest.raises(InputError, match="in the last 2 steps, up to step 7,"):
        log(zero_advantage=1.0)
