"""After SIGTERM or SIGHUP training writes a checkpoint; every stage leaves one line."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forks import STAGE_FORKS
from snakemake_runs import write_raw
from tiny_models import write_cycle, write_fixed_model

from rere import cli, signals
from rere.config.options import flags
from rere.config.training import SftOptions
from rere.signals import SIGNALS, DeferredSignals, Handler, Stopped, handle, stop
from rere.training.sft import sft
from rere.training.trainer import StepLog

OPTIONS = SftOptions(batch_size=16, rows_per_pass=16, validations=3)


@contextmanager
def restored() -> Iterator[None]:
    """Restore the handlers of all signals at the end, and forget what was raised."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        Stopped.raised = None
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_itself(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_training_writes_a_checkpoint_at_the_end_of_the_step(number, tmp_path, monkeypatch):
    """It resumes from there, and ends with the bytes of a run that was never stopped."""
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")
    sft(OPTIONS, init, data, 0, tmp_path / "whole")

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 4:  # of six, before the fifth
            kill_itself(number)

    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(StepLog, "on_step_begin", on_step_begin, raising=False)
        sft(OPTIONS, init, data, 0, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-5"
    name = signal.Signals(number).name
    assert str(stopped.value) == f"stopped by {name}; the same command resumes from {checkpoint}"
    assert stopped.value.number == number
    assert checkpoint.is_dir()
    assert [signal.getsignal(each) for each in SIGNALS] == before

    sft(OPTIONS, init, data, 0, tmp_path / "run")
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_second_signal_leaves_at_once(tmp_path, monkeypatch):
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 4:
            kill_itself(signal.SIGTERM, signal.SIGHUP)

    monkeypatch.setattr(StepLog, "on_step_begin", on_step_begin, raising=False)
    monkeypatch.setattr(signals, "REPEAT", 0.0)
    with restored(), pytest.raises(Stopped, match=r"^stopped by SIGHUP$"):
        handle(stop)
        sft(OPTIONS, init, data, 0, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "checkpoint-4").is_dir()  # of a validation
    assert not (checkpoints / "checkpoint-5").exists()


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, monkeypatch):
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 5:
            kill_itself(signal.SIGTERM)

    monkeypatch.setattr(StepLog, "on_step_begin", on_step_begin, raising=False)
    sft(OPTIONS, init, data, 0, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "log.jsonl",
        "model",
        "run.json",
    ]


def test_a_signal_that_a_parent_passes_on_counts_once(monkeypatch):
    monkeypatch.setattr(Handler, "last", -math.inf)
    with restored():
        handle(stop)
        with DeferredSignals() as deferred:
            kill_itself(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
            assert deferred.received == signal.SIGTERM
            monkeypatch.setattr(Handler, "last", Handler.last - 2 * signals.REPEAT)
            with pytest.raises(Stopped):
                kill_itself(signal.SIGTERM)


def test_ignored_signals_stay_ignored(monkeypatch):
    """As nohup starts a command."""
    monkeypatch.setattr(signals, "REPEAT", 0.0)
    with restored():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        handle(stop)
        with DeferredSignals() as deferred:
            kill_itself(signal.SIGHUP)
            assert deferred.received is None
            kill_itself(signal.SIGTERM)
            assert deferred.received == signal.SIGTERM
            kill_itself(signal.SIGHUP)
            with pytest.raises(Stopped):
                kill_itself(signal.SIGTERM)


STOPPED_WHILE_WRITING = """
import os, sys
from rere.cli import main
from rere.data import preprocess
def killed(*_):
    os.kill(os.getpid(), {number})
preprocess.write_json = killed
main()
"""


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped by SIGHUP"),
        (signal.SIGINT, "interrupted"),
    ],
)
def test_another_stage_leaves_one_line_and_no_files(number, message, tmp_path):
    write_raw(tmp_path / "raw")
    code = STOPPED_WHILE_WRITING.format(number=int(number))
    arguments = ["preprocess", "ml-100k", "--raw", tmp_path / "raw", "--output", tmp_path / "data"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"rere preprocess ml-100k: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.slow
def test_the_command_says_where_it_resumes(tmp_path):
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")
    output = tmp_path / "run"
    options = flags(OPTIONS.model_copy(update={"epochs": 500.0, "patience": 10_000}))
    arguments = ["sft", "--init", init, "--data", data, "--output", output, *options]
    process = STAGE_FORKS.start("-m", "rere", *arguments)
    log = output / "checkpoints" / "log.jsonl"
    while not (log.exists() and '"step": 3,' in log.read_text()):
        assert process.is_running()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    last = process.output.splitlines()[-1]
    begin = "rere sft: stopped by SIGTERM; the same command resumes from "
    assert last.startswith(begin)
    assert Path(last.removeprefix(begin)).is_dir()
    assert "Traceback" not in process.output


def test_a_signal_that_a_library_turns_into_another_error_is_named(monkeypatch, capsys):
    class Draw:
        def run(self) -> None:
            try:
                stop(signal.SIGTERM)
            except Stopped:
                raise ValueError("invalid bounding box") from None

    monkeypatch.setattr(Stopped, "raised", None)
    monkeypatch.setattr(signals, "handle", lambda act: {})
    monkeypatch.setattr(signals, "ignore", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.run_stage("curves", Draw())
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "rere curves: stopped by SIGTERM\n"


def test_ctrl_c_before_the_stage_begins_is_one_line(monkeypatch, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "rere: interrupted\n"
