"""Several processes give the results of one, and end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_runs import OF_THREE, PREDICTIONS, RUNS, start
from training_runs import assert_weights_close, has_same_weights, read_log

from rere import ranks
from rere.errors import InputError
from rere.ranks import ALONE, Ranks

TOLERANCE = 1e-6

# ---------------------------------------------------------------------------------- a rank's share


def test_ranks_share_all_rows():
    rows = list(range(7))
    shares = [rows[Ranks(rank, 3).rows] for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [list(Ranks(rank, 3).deal(rows)) for rank in range(3)] == shares


def test_one_process_shares_with_none():
    values, weight = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    assert ALONE.gather(values, 3) is values
    assert ALONE.sum(values) is values
    assert (ALONE.first(1, 2), ALONE.largest(3, 4)) == ([1, 2], [3, 4])
    ALONE.sum_gradients([weight])
    assert weight.grad is None
    before = torch.random.get_rng_state()
    with ALONE.random_numbers(5):
        assert torch.equal(torch.random.get_rng_state(), before)


def test_buckets_have_one_dtype_and_a_limit(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 10)
    sizes = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (1, torch.float64)]
    sizes.append((30, torch.float64))
    weights = [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size, dtype in sizes]
    found = [[len(each) for each in bucket] for bucket in ranks.buckets(weights)]
    assert found == [[4, 6], [1], [1], [30]]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert [ranks.own_gpu(rank, ranks.visible_gpus()) for rank in (0, 1)] == ["3", "GPU-5"]
    with pytest.raises(InputError, match="more processes than the machine's 2 GPUs"):
        ranks.own_gpu(2, ranks.visible_gpus())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.visible_gpus() == ["0", "1"]


# ----------------------------------------------------------------------------- equal to one process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "name"), [*[(2, name) for name in RUNS], *[(3, name) for name in OF_THREE]]
)
def test_loss_gradient_and_weights_are_those_of_one_process(name, processes, runs_of):
    one, several = runs_of[1] / name, runs_of[processes] / name
    for expected, line in zip(read_log(one), read_log(several), strict=True):
        assert line == pytest.approx(expected, abs=TOLERANCE)
    assert_weights_close(several, one, TOLERANCE)


@pytest.mark.slow
def test_runs_skip_and_replace_groups(runs_of):
    skipping = [line for line in read_log(runs_of[2] / "rl_skipping") if "skipped" in line]
    assert any(0 < line["skipped"] < 1 for line in skipping)
    replacing = [line for line in read_log(runs_of[2] / "rl_dynamic_sampling") if "skipped" in line]
    assert any(line["extra_prompts"] for line in replacing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rl", "rl_sharded"])
def test_the_first_rank_decides_by_its_clock(name, runs_of):
    """The initial model and the last step, the best; not the steps between."""
    assert json.loads((runs_of[2] / f"{name}.steps").read_text()) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_are_those_of_one_process_to_the_byte(name, runs_of):
    one, two = (runs_of[processes] / f"{name}.parquet" for processes in (1, 2))
    assert two.read_bytes() == one.read_bytes()


# --------------------------------------------------------------------------------- the end of all

LONG = ["--steps", "40", "--prompts", "8", "--group-size", "4", "--rows-per-pass", "4"]
LONG += ["--validations", "2", "--checkpoint-seconds", "0", "--learning-rate", "1e-3"]


def run_long(processes: int, init: Path, data: Path, output: Path) -> subprocess.Popen[str]:
    arguments = ["--init", init, "--data", data, "--output", output]
    return start(processes, "-m", "rere", "rl", *arguments, *LONG)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a launcher, by rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if parent == process.pid:
            rank = next(each for each in variables if each.startswith("RANK="))
            found.append((int(rank.removeprefix("RANK=")), int(folder.name)))
    return [pid for _, pid in sorted(found)]


@pytest.mark.slow
def test_killed_rank_ends_all_and_the_run_resumes(tmp_path, fixed_model, cycle):
    whole, killed, on_one = (tmp_path / name for name in ("whole", "killed", "on_one"))
    assert run_long(2, fixed_model, cycle, whole).wait() == 0
    process, log = run_long(2, fixed_model, cycle, killed), killed / "checkpoints" / "log.jsonl"
    while not (log.exists() and '"step": 9,' in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    started = time.monotonic()
    os.kill(workers_of(process)[1], signal.SIGKILL)
    text, _ = process.communicate()
    assert process.returncode != 0
    assert time.monotonic() - started < 30
    lines = [line for line in text.splitlines() if line.startswith("rere rl:")]
    assert lines == [
        "rere rl: another process of this run has ended; the same command resumes from its last "
        "checkpoint"
    ]
    assert not (killed / "model").exists()

    shutil.copytree(killed, on_one)
    for processes, output in [(2, killed), (1, on_one)]:
        process = run_long(processes, fixed_model, cycle, output)
        text, _ = process.communicate()
        assert process.returncode == 0, text
        assert "the run resumes from here" in text
        assert ("resumes with processes 1 instead of 2" in text) == (processes == 1)
        assert has_same_weights(output, whole) == (processes == 2)
        assert_weights_close(output, whole, TOLERANCE)
        assert json.loads((output / "run.json").read_text())["resumed"] == 1


OTHER_DATA = """
import os, sys
from rere.cli import main
if os.environ["RANK"] == sys.argv.pop(1):
    sys.argv[sys.argv.index("--data") + 1] = "nowhere"
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_bad_input_of_one_rank_ends_all(rank, tmp_path, fixed_model, cycle):
    script = tmp_path / "script.py"
    script.write_text(OTHER_DATA)
    arguments = ["--init", fixed_model, "--data", cycle, "--output", tmp_path / "run"]
    process = start(2, script, rank, "sft", *arguments)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in text.splitlines() if line.startswith("rere sft: ")]
    assert any("nowhere" in line for line in lines), text
    assert not (tmp_path / "run" / "model").exists()


def test_other_stages_take_one_process(monkeypatch, capsys):
    from rere import cli

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["rere", "audit", "--data", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == ("rere audit: takes one process; start it without torchrun\n")
