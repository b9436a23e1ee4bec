"""The small study through profiles/slurm, on a real Slurm (`make test-cluster`)."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm_cluster import find_missing, profile_text
from snakemake_runs import ROOT, SMALL, write_raw

PLUGIN = "snakemake_executor_plugin_slurm"
LACKING = [*find_missing(), *([] if importlib.util.find_spec(PLUGIN) else [PLUGIN])]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(LACKING), reason=f"missing: {', '.join(LACKING)}"),
]

STUDY = {
    "overwrite": True,
    "tables": {
        "main": {"methods": ["popularity", "sft", "rere"]},
        "seeds": None,
    },
    # The reward takes as long as the environment says: results do not depend on it.
    "methods": {
        "rere": {"rl": {"steps": 30, "dynamic_sampling": 0, "reward": ["rule", "rewards:slow"]}}
    },
}
REWARD = """
import os, time

def slow(groups):
    time.sleep(float(os.environ.get("SECONDS_PER_STEP", 0)))
    return groups.item.float()
"""
RUN = "results/runs/small/small/rere/seed0"
SAME = [
    f"{RUN}/model/model.safetensors",
    f"{RUN}/rows=40-list_length=20-num_beams=20/predictions.parquet",
    f"{RUN}/rows=40-list_length=20-num_beams=20/metrics.json",
    "results/runs/small/none/popularity/seed0/rows=40-list_length=20/predictions.parquet",
    "results/runs/small/small/sft/seed0/model/model.safetensors",
    "results/tables/main.csv",
]

SITE = {"gpu_partition": "gpu", "cpus_per_gpu": 1, "minutes": 9, "memory": 32000}


def write_study(folder: Path) -> Path:
    folder.mkdir()
    write_raw(folder / "raw")
    (folder / "rewards.py").write_text(REWARD)
    (folder / "overlay.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


def command(folder: Path, *arguments: str, **site: str | int) -> list[str]:
    """Snakemake on a study; with values of a site, through profiles/slurm with these."""
    options = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    options += ["--configfile", *map(str, SMALL), str(folder / "overlay.yaml")]
    return [*snakemake(folder, *arguments, **site), *options]


def snakemake(folder: Path, *arguments: str, **site: str | int) -> list[str]:
    how = ["--cores", "1"]
    if site:
        profile = folder / "profile" / "profile.yaml"
        profile.parent.mkdir(exist_ok=True)
        profile.write_text(profile_text(**site))
        how = ["--workflow-profile", str(profile.parent), "--latency-wait", "10", "--verbose"]
        how += ["--slurm-init-seconds-before-status-checks", "2"]
    return [sys.executable, "-m", "snakemake", *arguments, *how]


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """The output of Snakemake, which succeeds."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(arguments, env=environment, text=True, timeout=1200, **both)
    assert done.returncode == 0, done.stdout
    return done.stdout


def submitted(output: str, rule: str) -> list[str]:
    """The calls of sbatch for jobs of a rule."""
    comment = rf"--comment rule_{rule}(?:_wildcards_\S+)? "
    return re.findall(rf"sbatch call: (sbatch .*{comment}.*) --wrap", output)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_that_reaches_its_limit_is_resubmitted_and_ends_with_the_same_bytes(
    tmp_path, cluster, nodes
):
    """Also one on two nodes, with a process on each, as two processes on one machine end it."""
    uninterrupted = write_study(tmp_path / "uninterrupted")
    processes = [f"{rule}:gpu={nodes}" for rule in ("sft", "rl")]
    local = ["--resources", f"gpu={nodes}", "--set-resources", *processes]
    run([*command(uninterrupted, "results/tables/main.csv"), *local], os.environ.copy())

    # Slurm counts limits in minutes, looks at them every 30 seconds, and sends the signal up to 30
    # seconds early: after 30 to 60 seconds here. The run takes 75 at least.
    study = write_study(tmp_path / "study")
    limits = SITE | {"minutes": 2, "grace": 60, "nodes": nodes}
    slowly = cluster | {"SECONDS_PER_STEP": "2.5"}
    output = run(command(study, "results/tables/main.csv", **limits), slowly)

    calls = submitted(output, "rl")
    assert len(calls) >= 2
    options = ["-p gpu", f"--gpus={nodes}", "-t 2", "--mem 32000", "--cpus-per-gpu=1"]
    options += ["--nodes=2", "--ntasks=2", "--gpus-per-node=1"] if nodes == 2 else []
    for option in [*options, "--signal=TERM@60"]:
        assert f" {option} " in f"{calls[0]} "
    assert "--ntasks-per-gpu" not in calls[0]
    assert " -p cpu " in submitted(output, "preprocess")[0]
    assert submitted(output, "backbone") == []
    assert "rere rl: stopped by SIGTERM; the same command resumes from" in output
    assert re.search(r"checkpoint-\d+: the run resumes from here", output + last_log(study))
    # A job may be stopped before its run begins.
    assert 1 <= json.loads((study / RUN / "run.json").read_text())["resumed"] < len(calls)
    assert not (study / RUN / "checkpoints").exists()
    for path in SAME:
        assert (study / path).read_bytes() == (uninterrupted / path).read_bytes(), path


def last_log(study: Path) -> str:
    return (study / "logs/rl/small/small/rere/seed0.log").read_text()


def test_a_run_in_its_last_step_finishes_after_the_signal(tmp_path, cluster):
    """Its job counts as done, though Snakemake received the signal, too."""
    study = write_study(tmp_path / "study")
    one_step = {"dynamic_sampling": 0, "steps": 1, "reward": ["rewards:slow"]}
    (study / "overlay.yaml").write_text(
        yaml.safe_dump(STUDY | {"methods": {"rere": {"rl": one_step}}})
    )
    slowly = cluster | {"SECONDS_PER_STEP": "75"}
    limits = SITE | {"minutes": 2, "grace": 60}
    output = run(command(study, f"{RUN}/run.json", **limits), slowly)
    assert len(submitted(output, "rl")) == 1
    assert json.loads((study / RUN / "run.json").read_text())["resumed"] == 0


def heed_ctrl_c() -> None:
    """Let a new process receive SIGINT, which shells turn off for jobs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_cancels_jobs_after_a_checkpoint(tmp_path, cluster):
    study = write_study(tmp_path / "study")
    slowly = cluster | {"SECONDS_PER_STEP": "1"}
    arguments = command(study, f"{RUN}/run.json", **SITE)
    with (tmp_path / "output").open("w") as output:
        both = {"stdout": output, "stderr": output}
        process = subprocess.Popen(arguments, env=slowly, preexec_fn=heed_ctrl_c, **both)
        end = time.monotonic() + 300
        while not (study / RUN / "checkpoints" / "checkpoint-0").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.5)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 1
    end = time.monotonic() + 30
    while "stopped by SIGTERM" not in last_log(study):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert {path.name for path in (study / RUN / "checkpoints").glob("checkpoint-*")} > {
        "checkpoint-0"
    }
