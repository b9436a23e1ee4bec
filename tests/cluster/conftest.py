"""A Slurm of the tests' own, and a stand-in for one."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from slurm_cluster import slurm


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """The plugin, and a cluster with the partitions `cpu` and `gpu`; the path of its `sinfo`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "sinfo"
    program.write_text("#!/bin/sh\necho cpu\necho gpu\n")
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def cluster():
    """The environment in which Snakemake finds a Slurm; its logs are shown if a test fails."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with slurm(folder) as variables:
            yield os.environ | variables
    finally:
        for log in folder.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text()[-4000:]}")
        shutil.rmtree(folder)
