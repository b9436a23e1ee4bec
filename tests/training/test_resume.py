"""Runs that are killed go on from their last checkpoint and end as if they had not been."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import write_cycle, write_fixed_model
from training_runs import read_log, read_values

from rere.config.options import flags
from rere.config.training import PreferenceOptions, RlOptions, SftOptions, Training
from rere.errors import InputError
from rere.training.checkpoints import locked
from rere.training.preference import preference
from rere.training.rl import rl
from rere.training.sft import sft
from rere.training.trainer import StepLog

STAGES = {
    "sft": sft,
    **dict.fromkeys(("s_dpo", "sprec"), preference),
    **dict.fromkeys(("rl", "rl_lora", "rl_moving", "rl_twice", "rl_redraw"), rl),
}
OPTIONS = {
    # Two epochs of six steps; one of twelve and two steps of another.
    "sft": SftOptions(
        learning_rate=3e-2, batch_size=16, rows_per_pass=8, epochs=2.0, validations=4, patience=9
    ),
    # Both begin again with the rows that they have seen; two iterations of three and three steps.
    "s_dpo": PreferenceOptions(
        learning_rate=1e-2, steps=14, batch_size=8, rows_per_pass=4, validations=5, num_beams=4
    ),
    "sprec": PreferenceOptions(
        algorithm="sprec",
        iterations=2,
        learning_rate=1e-2,
        steps=12,
        batch_size=16,
        rows_per_pass=8,
        validations=4,
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
    ),
}
OPTIONS["rl_lora"] = OPTIONS["rl"].model_copy(update={"lora_rank": 4})
OPTIONS["rl_moving"] = OPTIONS["rl"].model_copy(update={"sync_interval": 5})
OPTIONS["rl_twice"] = OPTIONS["rl"].model_copy(
    update={"objective": "gspo", "updates": 2, "rollout": "iid", "scoring": "catalogue"}
)
OPTIONS["rl_redraw"] = OPTIONS["rl"].model_copy(
    update={"objective": "dapo", "dynamic_sampling": 2, "beta": 0.0, "updates": 2}
)
EVERY_STEP = {"checkpoint_seconds": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout, so that the state of the random numbers matters."""
    folder = write_fixed_model(tmp_path_factory.mktemp("init"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return folder


@pytest.fixture(scope="module")
def unkilled(
    tmp_path_factory: pytest.TempPathFactory, init: Path, data: Path
) -> Callable[[str], Path]:
    """The folder of a stage's run that nobody disturbed and that wrote few checkpoints."""
    folder = tmp_path_factory.mktemp("unkilled")

    def run(stage: str) -> Path:
        if not (folder / stage).exists():
            STAGES[stage](OPTIONS[stage], init, data, 0, folder / stage)
        return folder / stage

    return run


def assert_same(actual: Path, expected: Path) -> None:
    """The same weights byte by byte and the same log but for times."""
    for path in (expected / "model").iterdir():
        assert (actual / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    assert read_log(actual) == read_log(expected)


def provenance(output: Path) -> dict:
    return json.loads((output / "run.json").read_text())


# --------------------------------------------------------------------------- killed with kill -9

SUICIDE = """
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
def test_killed_again_and_again(stage, tmp_path, init, data, unkilled):
    output = tmp_path / "run"
    options = flags(OPTIONS[stage].model_copy(update=EVERY_STEP))
    arguments = [stage, "--init", init, "--data", data, "--output", output, *options]

    def start(*python: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *python, *map(str, arguments)], stderr=subprocess.PIPE, text=True
        )

    # While it computes, by somebody else.
    process, log = start("-m", "rere"), output / "checkpoints" / "log.jsonl"
    while not (log.exists() and '"step": 3,' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "model").exists()

    # Where a checkpoint is all but written, and where the model is.
    for module, owner, name, calls in [
        ("rere.training.checkpoints", "CheckpointMetadata", "model_dump_json", 4),
        ("rere.catalogue", "Catalogue", "save", 1),
    ]:
        code = SUICIDE.format(module=module, owner=owner, name=name, calls=calls)
        process = start("-c", code)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        assert "the run resumes from here" in said
        assert not (output / "model").exists()
        assert len([path for path in output.rglob(".*") if path.is_dir()]) == 1

    process = start("-m", "rere")
    _, said = process.communicate()
    assert process.returncode == 0
    assert "missing keys" not in said
    assert sorted(path.name for path in output.iterdir()) == ["log.jsonl", "model", "run.json"]
    assert_same(output, unkilled(stage))
    assert provenance(output)["resumed"] == 3


# ------------------------------------------------------------- interrupted, in the test's process


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, init: Path, data: Path) -> Callable[..., None]:
    """Start a stage and end it while it takes a step, after the checkpoint of the step before."""

    def run(stage: str, output: Path, step: int, options: Training | None = None) -> None:
        def on_step_end(self, args, state, control, **_):
            if state.global_step == step:
                raise KeyboardInterrupt

        options = (options or OPTIONS[stage]).model_copy(update=EVERY_STEP)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StepLog, "on_step_end", on_step_end)
            STAGES[stage](options, init, data, 0, output)

    return run


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        *[("sft", 2), ("sft", 7), ("sft", 8), ("rl", 6), ("rl", 13)],
        # In the midst of preferences, with a reference that has moved; where it moves.
        *[("s_dpo", 7), ("s_dpo", 13), ("sprec", 6), ("sprec", 10)],
        *[("rl_lora", 6), ("rl_moving", 8), ("rl_twice", 7), ("rl_redraw", 7)],
    ],
)
def test_interrupted_in_an_epoch_and_between(
    stage, step, tmp_path, init, data, unkilled, interrupt
):
    interrupt(stage, tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    STAGES[stage](OPTIONS[stage], init, data, 0, tmp_path)
    assert_same(tmp_path, unkilled(stage))


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path, init, data, unkilled):
    sft(OPTIONS["sft"].model_copy(update=EVERY_STEP), init, data, 0, tmp_path)
    assert_same(tmp_path, unkilled("sft"))
    assert provenance(tmp_path)["resumed"] == 0


def test_interrupted_before_the_first_checkpoint(tmp_path, init, data, unkilled, interrupt):
    interrupt("sft", tmp_path, 1)
    sft(OPTIONS["sft"], init, data, 0, tmp_path)
    assert_same(tmp_path, unkilled("sft"))


def test_patience_goes_on_too(tmp_path, init, data, interrupt):
    """Validations of steps 1, 2, 3 ...; the rate wrecks the model, and three are not better."""
    options = OPTIONS["sft"].model_copy(
        update={"learning_rate": 10.0, "validations": 12, "patience": 3}
    )
    sft(options, init, data, 0, tmp_path / "unkilled")
    losses = read_values(tmp_path / "unkilled", "eval_loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 12
    for step in (best + 3, best + 4):  # after one without a better loss, and after two
        interrupt("sft", tmp_path / str(step), step, options)
        sft(options, init, data, 0, tmp_path / str(step))
        assert_same(tmp_path / str(step), tmp_path / "unkilled")


def test_the_seconds_are_those_of_all_parts(tmp_path, init, data, interrupt):
    interrupt("sft", tmp_path, 7)
    metadata = tmp_path / "checkpoints" / "checkpoint-6" / "checkpoint.json"
    before = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**before, "seconds": 1000.0}))
    sft(OPTIONS["sft"], init, data, 0, tmp_path)
    assert before["seconds"] > 0
    assert 1000 < provenance(tmp_path)["seconds"] < 1100


# ---------------------------------------------------------------------------------- what is kept


def test_a_checkpoint_holds_no_pickle_and_no_other_is_kept_but_the_best(
    tmp_path, init, data, interrupt
):
    interrupt("rl", tmp_path, 9)
    folder = tmp_path / "checkpoints"
    best = json.loads((folder / "checkpoint-8" / "checkpoint.json").read_text())["best"]
    kept = {f"checkpoint-{best}", "checkpoint-8"}
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


def cut_facts(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"fingerprint": ')


def remove_facts(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


@pytest.mark.parametrize("harm", [cut_weights, remove_optimizer, cut_facts, remove_facts])
def test_half_a_checkpoint_is_passed_over(
    harm, tmp_path, init, data, unkilled, interrupt, monkeypatch
):
    """The one before, of the best validation, is gone on from; without it all of the run is."""
    monkeypatch.setattr(StepLog, "on_train_begin", remember_start)
    options = OPTIONS["sft"]
    interrupt("sft", tmp_path, 6)
    best, last = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (3, 5))
    harm(last)
    STARTS.clear()
    interrupt("sft", tmp_path, 4)
    assert not last.exists()
    shutil.copytree(best, last)  # a name that is not its own
    harm(best)
    sft(options, init, data, 0, tmp_path)
    assert STARTS == [3, 0]
    assert_same(tmp_path, unkilled("sft"))


STARTS: list[int] = []
begin = StepLog.on_train_begin


def remember_start(self, args, state, control, **more):
    STARTS.append(state.global_step)
    begin(self, args, state, control, **more)


def test_without_its_best_a_checkpoint_is_not_whole(tmp_path, init, data, unkilled, interrupt):
    interrupt("sft", tmp_path, 6)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-3")
    sft(OPTIONS["sft"], init, data, 0, tmp_path)
    assert_same(tmp_path, unkilled("sft"))
    assert provenance(tmp_path)["resumed"] == 0


@pytest.mark.parametrize("other", ["options", "seed", "data"])
def test_checkpoints_of_another_run_are_removed(other, tmp_path, init, data, interrupt, caplog):
    options, seed = OPTIONS["sft"], 0
    interrupt("sft", tmp_path / "run", 6)
    if other == "options":
        options = options.model_copy(update={"weight_decay": 0.1})
    if other == "seed":
        seed = 1
    if other == "data":
        shutil.copytree(data, tmp_path / "changed")
        data = tmp_path / "changed"
        pl.read_parquet(data / "train.parquet").head(64).write_parquet(data / "train.parquet")
    caplog.clear()
    sft(options, init, data, seed, tmp_path / "run")
    (message,) = caplog.messages
    assert message.endswith(
        "checkpoints: removed checkpoints of a run with other options, seed or inputs"
    )
    sft(options, init, data, seed, tmp_path / "fresh")
    assert_same(tmp_path / "run", tmp_path / "fresh")


def test_the_same_data_elsewhere_is_the_same_run(tmp_path, init, data, unkilled, interrupt):
    interrupt("sft", tmp_path / "run", 6)
    shutil.copytree(data, tmp_path / "copy")
    sft(OPTIONS["sft"], init, tmp_path / "copy", 0, tmp_path / "run")
    assert provenance(tmp_path / "run")["resumed"] == 1
    assert_same(tmp_path / "run", unkilled("sft"))


def test_two_processes_do_not_train_in_one_folder(tmp_path, init, data):
    with (
        locked(tmp_path / "checkpoints"),
        pytest.raises(InputError, match="checkpoints: another process is training here"),
    ):
        sft(OPTIONS["sft"], init, data, 0, tmp_path)


def test_a_launcher_of_several_processes_is_refused(tmp_path, init, data, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="training takes one process"):
        sft(OPTIONS["sft"], init, data, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
