"""profiles/slurm as Snakemake reads it, with a stand-in for `sinfo`."""

import importlib.util
import re
from pathlib import Path

import pytest
import yte
from slurm_cluster import PROFILE, profile_text
from snakemake_runs import ROOT

PLUGIN = "snakemake_executor_plugin_slurm"


def read(**site):
    """The profile with these values of `__variables__`."""
    return yte.process_yaml(profile_text(**site), require_use_yte=True)


def test_jobs_that_train_take_one_gpu_and_are_told_to_stop(sinfo):
    profile = read(gpu_partition="gpu", minutes=30, memory=64000, grace=60)
    assert profile["resources"] == {"runtime": 30, "mem_mb": 64000}
    resources = profile["set-resources"]
    assert resources["rl"] == {
        "slurm_partition": "'gpu'",
        "gpu": 1,
        "cpus_per_gpu": 4,
        "slurm_extra": "'--signal=TERM@60'",
    }
    assert "slurm_extra" not in resources["recommend"]


def test_several_nodes_are_for_training_alone(sinfo):
    resources = read(gpus=4, nodes=2)["set-resources"]
    several = {"gpu": 8, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    several["slurm_extra"] = "'--signal=TERM@120 --gpus-per-node=4'"
    assert several.items() <= resources["sft"].items()
    assert resources["recommend"]["gpu"] == 4
    assert resources["benchmark_speed"]["gpu"] == 1
    assert "nodes" not in resources["recommend"]


def test_a_cluster_without_gpus_gives_none(sinfo):
    assert {each["gpu"] for each in read(gpus=0)["set-resources"].values()} == {0}


def test_every_rule_that_takes_a_gpu_is_in_the_profile(sinfo):
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    blocks = re.findall(r"^(?:use rule \w+ as|rule) (\w+).*\n((?:    .*\n|\n)*)", rules, flags=re.M)
    with_gpu = {name for name, block in blocks if re.search(r"^        gpu=", block, flags=re.M)}
    assert "rl" in with_gpu
    assert with_gpu | {"rl_adapters"} <= read()["set-resources"].keys()


@pytest.mark.parametrize("partition", ["gpu", "cpu,gpu"])
def test_partitions_that_exist_are_accepted(sinfo, partition):
    assert read(partition=partition)["default-resources"]["slurm_partition"] == f"'{partition}'"


def test_a_partition_that_does_not_exist_is_named(sinfo):
    with pytest.raises(
        SystemExit, match=r"^profiles/slurm: gpus: no such partition; there are cpu, gpu$"
    ):
        read(gpu_partition="gpus")


def test_a_slurm_that_does_not_answer_is_one_line(sinfo):
    sinfo.write_text("#!/bin/sh\necho 'sinfo: error: no controller' >&2\nexit 1\n")
    with pytest.raises(
        SystemExit, match=r"^profiles/slurm: Slurm does not answer: .* no controller$"
    ):
        read()


def test_a_machine_without_slurm_is_one_line(sinfo):
    sinfo.unlink()
    with pytest.raises(SystemExit, match=r"^profiles/slurm: there is no Slurm here; .* login node"):
        read()


def test_a_missing_plugin_is_one_line(sinfo, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"^profiles/slurm: the plugin is missing: pip install .*\[c"
    ):
        read()


def test_both_profiles_share_what_is_not_about_the_machine():
    default = Path(PROFILE.parent.parent / "default" / "profile.yaml").read_text()
    shared = PROFILE.read_text().partition("# As in profiles/default.\n")[2].splitlines()
    assert len(shared) == 4
    assert set(shared) <= set(default.splitlines())
