"""Killed runs resume from their last checkpoint and end with the same results."""

import json
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from forks import STAGE_FORKS, Fork
from training_runs import (
    EVERY_STEP,
    RESUMED,
    assert_weights_close,
    read_log,
    read_steps,
    read_values,
    run_stage,
)

from rere.config.options import flags
from rere.engine.search import sizes
from rere.errors import InputError
from rere.training.checkpoint_folder import locked
from rere.training.checkpoints import CheckpointMetadata
from rere.training.sft import sft
from rere.training.trainer import StepLog


def assert_same(actual: Path, expected: Path) -> None:
    """Two runs have the same model files and the same log, except for MACHINE_FIELDS."""
    for path in (expected / "model").iterdir():
        assert (actual / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    assert read_log(actual) == read_log(expected)


def provenance(output: Path) -> dict:
    return json.loads((output / "run.json").read_text())


# ------------------------------------------------------------------------------------- kill -9

KILL_ITSELF = """
import os, signal
from rere.cli import main
from {module} import {owner}
original, calls = {owner}.{name}, []
def killed(*args, **more):
    calls.append(None)
    if len(calls) == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **more)
{owner}.{name} = killed
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_run_killed_three_times(stage, tmp_path, dropout_model, cycle, uninterrupted):
    output = tmp_path / "run"
    options = flags(RESUMED[stage].model_copy(update=EVERY_STEP))
    arguments = [stage, "--init", dropout_model, "--data", cycle, "--output", output, *options]

    def start(*python: str) -> Fork:
        return STAGE_FORKS.start(*python, *arguments)

    # Killed while it computes.
    process, log = start("-m", "rere"), output / "checkpoints" / "log.jsonl"
    while not (log.exists() and '"step": 3,' in log.read_text()):
        assert process.is_running()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "model").exists()

    # Killed while it writes a checkpoint, then while it writes the model.
    for module, owner, name, calls in [
        ("rere.training.checkpoints", "Checkpoints", "write_metadata", 4),
        ("rere.catalogue", "Catalogue", "save", 1),
    ]:
        code = KILL_ITSELF.format(module=module, owner=owner, name=name, calls=calls)
        process = start("-c", code)
        assert process.wait() == -signal.SIGKILL, process.output
        assert "the run resumes from here" in process.output
        assert not (output / "model").exists()
        assert len([path for path in output.rglob(".*") if path.is_dir()]) == 1

    process = start("-m", "rere")
    assert process.wait() == 0
    assert "missing keys" not in process.output
    assert sorted(path.name for path in output.iterdir()) == ["log.jsonl", "model", "run.json"]
    assert_same(output, uninterrupted(stage))
    assert provenance(output)["resumed"] == 3


# ------------------------------------------------------------------ interrupted within the test


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        *[("sft", 2), ("sft", 7), ("sft", 8), ("rl", 6), ("rl", 13)],
        # sprec: within DPO, with a synced reference; at the step that syncs it.
        *[("s_dpo", 7), ("s_dpo", 13), ("sprec", 6), ("sprec", 10)],
        *[("rl_lora", 6), ("rl_synced", 8), ("rl_two_updates", 7), ("rl_dynamic_sampling", 7)],
    ],
)
def test_interrupted_run_resumes_with_the_same_results(
    stage, step, tmp_path, dropout_model, cycle, uninterrupted, interrupt
):
    interrupt(stage, tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    run_stage(RESUMED[stage], dropout_model, cycle, 0, tmp_path)
    assert_same(tmp_path, uninterrupted(stage))


@pytest.mark.parametrize("stage", ["s_dpo", "rl"])
def test_a_resumed_run_keeps_what_was_chosen_for_the_device(
    stage, tmp_path, dropout_model, cycle, uninterrupted, interrupt, monkeypatch
):
    monkeypatch.setattr(sizes, "available_memory", lambda device: 1 << 20)
    interrupt(stage, tmp_path, 7)
    monkeypatch.setattr(sizes, "available_memory", lambda device: 1 << 10)
    run_stage(RESUMED[stage], dropout_model, cycle, 0, tmp_path)
    chosen = {"dtype": "float32", "full_pass_tokens": 768, "search_memory": 1 << 19}
    assert provenance(tmp_path)["chosen"] == chosen
    assert_same(tmp_path, uninterrupted(stage))


def test_checkpoint_frequency_changes_nothing(tmp_path, dropout_model, cycle, uninterrupted):
    sft(RESUMED["sft"].model_copy(update=EVERY_STEP), dropout_model, cycle, 0, tmp_path)
    assert_same(tmp_path, uninterrupted("sft"))
    assert provenance(tmp_path)["resumed"] == 0


def test_run_interrupted_before_its_first_checkpoint(
    tmp_path, dropout_model, cycle, uninterrupted, interrupt
):
    interrupt("sft", tmp_path, 1)
    sft(RESUMED["sft"], dropout_model, cycle, 0, tmp_path)
    assert_same(tmp_path, uninterrupted("sft"))


@pytest.mark.parametrize("stage", ["sft", "s_dpo", "sprec", "rl"])
def test_a_run_resumes_with_less_memory(stage, tmp_path, fixed_model, cycle, interrupt, caplog):
    """It takes the same steps on the same rows, and differs by rounding."""
    options = RESUMED[stage].model_copy(update={"learning_rate": 1e-3})
    run_stage(options, fixed_model, cycle, 0, tmp_path / "whole")
    interrupt(stage, tmp_path / "run", 9, options, fixed_model)
    caplog.clear()
    less = options.model_copy(update={"rows_per_pass": 2, "gradient_checkpointing": True})
    run_stage(less, fixed_model, cycle, 0, tmp_path / "run")
    assert provenance(tmp_path / "run")["resumed"] == 1
    assert [message.rpartition("/")[2] for message in caplog.messages[:2]] == [
        "checkpoint-8: the run resumes from here",
        f"checkpoint-8: resumes with rows_per_pass 2 instead of {options.rows_per_pass}; results "
        "differ from an uninterrupted run by rounding",
    ]
    whole, resumed = read_steps(tmp_path / "whole"), read_steps(tmp_path / "run")
    for expected, actual in zip(whole, resumed, strict=True):
        assert actual == pytest.approx(expected, abs=1e-4, rel=1e-3)
    assert_weights_close(tmp_path / "run", tmp_path / "whole", 1e-4)


def test_patience_survives_a_resume(tmp_path, dropout_model, cycle, interrupt):
    """Validation after every step; the high learning rate soon makes three in a row worse."""
    options = RESUMED["sft"].model_copy(
        update={"learning_rate": 10.0, "validations": 12, "patience": 3}
    )
    sft(options, dropout_model, cycle, 0, tmp_path / "uninterrupted")
    losses = read_values(tmp_path / "uninterrupted", "eval_loss")[1:]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 12
    for step in (best + 3, best + 4):  # after one and two validations without a better loss
        interrupt("sft", tmp_path / str(step), step, options)
        sft(options, dropout_model, cycle, 0, tmp_path / str(step))
        assert_same(tmp_path / str(step), tmp_path / "uninterrupted")


def test_seconds_include_those_before_the_resume(tmp_path, dropout_model, cycle, interrupt):
    interrupt("sft", tmp_path, 7)
    path = tmp_path / "checkpoints" / "checkpoint-6" / "checkpoint.json"
    metadata = CheckpointMetadata.model_validate_json(path.read_text())
    assert metadata.seconds > 0
    metadata.seconds = 1000.0
    metadata.sha256 = metadata.hash()
    path.write_text(metadata.model_dump_json())
    sft(RESUMED["sft"], dropout_model, cycle, 0, tmp_path)
    assert 1000 < provenance(tmp_path)["seconds"] < 1100


# ---------------------------------------------------------------------------- checkpoint files


def test_checkpoints_have_no_pickle_and_only_the_last_two_and_their_best_are_kept(
    tmp_path, dropout_model, cycle, interrupt
):
    interrupt("rl", tmp_path, 9)
    folder = tmp_path / "checkpoints"
    last = [folder / f"checkpoint-{step}" for step in (7, 8)]
    best = [json.loads((path / "checkpoint.json").read_text())["best"] for path in last]
    kept = {*(path.name for path in last), *(f"checkpoint-{step}" for step in best)}
    assert {path.name for path in folder.iterdir()} == {*kept, "log.jsonl", ".lock"}
    for path in (folder / "checkpoint-8").iterdir():
        assert path.suffix in {".json", ".jsonl", ".safetensors", ".pt", ".pth"}
    torch.load(folder / "checkpoint-8" / "optimizer.pt", weights_only=True)
    torch.load(folder / "checkpoint-8" / "scheduler.pt", weights_only=True)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def remove_optimizer(folder: Path) -> None:
    (folder / "optimizer.pt").unlink()


def cut_metadata(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"fingerprint": ')


def remove_metadata(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


@pytest.mark.parametrize("harm", [cut_weights, remove_optimizer, cut_metadata, remove_metadata])
def test_incomplete_checkpoint_is_ignored(
    harm, tmp_path, dropout_model, cycle, uninterrupted, interrupt, monkeypatch
):
    """The run resumes from the one before; without a best one it starts again."""
    monkeypatch.setattr(StepLog, "on_train_begin", remember_start)
    options = RESUMED["sft"]
    interrupt("sft", tmp_path, 6)
    best, last = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (3, 5))
    harm(last)
    STARTS.clear()
    interrupt("sft", tmp_path, 5)
    assert not last.exists()
    shutil.copytree(best, last)  # under a wrong name
    harm(best)
    sft(options, dropout_model, cycle, 0, tmp_path)
    assert STARTS == [4, 0]
    assert_same(tmp_path, uninterrupted("sft"))


STARTS: list[int] = []
begin = StepLog.on_train_begin


def remember_start(self, args, state, control, **more):
    STARTS.append(state.global_step)
    begin(self, args, state, control, **more)


def test_checkpoint_without_its_best_is_ignored(
    tmp_path, dropout_model, cycle, uninterrupted, interrupt
):
    interrupt("sft", tmp_path, 6)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-3")
    sft(RESUMED["sft"], dropout_model, cycle, 0, tmp_path)
    assert_same(tmp_path, uninterrupted("sft"))
    assert provenance(tmp_path)["resumed"] == 0


@pytest.mark.parametrize("other", ["options", "seed", "data"])
def test_checkpoints_of_another_run_are_removed(
    other, tmp_path, dropout_model, cycle, interrupt, caplog
):
    data, options, seed = cycle, RESUMED["sft"], 0
    interrupt("sft", tmp_path / "run", 6)
    if other == "options":
        options = options.model_copy(update={"weight_decay": 0.1})
    if other == "seed":
        seed = 1
    if other == "data":
        data = shutil.copytree(cycle, tmp_path / "changed")
        pl.read_parquet(data / "train.parquet").head(64).write_parquet(data / "train.parquet")
    caplog.clear()
    sft(options, dropout_model, data, seed, tmp_path / "run")
    (message,) = caplog.messages
    assert message.endswith(
        "checkpoints: removed checkpoints of a run with other options, seed or inputs"
    )
    sft(options, dropout_model, data, seed, tmp_path / "fresh")
    assert_same(tmp_path / "run", tmp_path / "fresh")


def test_moved_dataset_is_the_same_run(tmp_path, dropout_model, cycle, uninterrupted, interrupt):
    interrupt("sft", tmp_path / "run", 6)
    moved = tmp_path / cycle.name  # the name is in the model card
    shutil.copytree(cycle, moved)
    (moved / "stats.json").write_text("{}")  # which training does not read
    sft(RESUMED["sft"], dropout_model, moved, 0, tmp_path / "run")
    assert provenance(tmp_path / "run")["resumed"] == 1
    assert_same(tmp_path / "run", uninterrupted("sft"))


def test_second_process_in_a_folder_is_refused(tmp_path, dropout_model, cycle):
    with (
        locked(tmp_path / "checkpoints"),
        pytest.raises(InputError, match="checkpoints: another process is training here"),
    ):
        sft(RESUMED["sft"], dropout_model, cycle, 0, tmp_path)
