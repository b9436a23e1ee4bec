"""Odd paths, modules in the working folder: the graph runs, or says why it does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_runs import SMALL, checkout, start, write_raw

slow = pytest.mark.slow

SHADOWS = ("json", "types", "random", "polars", "pydantic")
"""Modules that a job imports, and a user might have in the working folder."""


def run(checkout: Path, folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """Run the small study of a checkout in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", checkout / "Snakefile"]
    command += ["--directory", folder, "--cores", "1", "--configfile", *SMALL, "--", *targets]
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@slow
def test_a_study_runs_wherever_its_checkout_and_folder_are(tmp_path):
    """With blanks, quotes and `$`, and without the modules of the folder that it runs in."""
    odd = checkout(tmp_path / "a $HOME 'b' \"c\" $(touch d) & é")
    folder = tmp_path / "e $PATH 'f' : {g}"
    folder.mkdir()
    write_raw(folder / "raw")
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder')\n")
    done = run(odd, folder, "results/data/small/items.parquet")
    assert done.returncode == 0, done.stdout
    assert json.loads((folder / "results/data/small/stats.json").read_text())["users"] == 60
    assert not list(tmp_path.rglob("d"))


@slow
@pytest.mark.parametrize("name", ["a{x}", "a:b"])
def test_a_checkout_that_cannot_be_used_is_refused_in_one_line(tmp_path, name):
    odd = checkout(tmp_path / name)
    write_raw(tmp_path / "raw")
    done = run(odd, tmp_path, "results/data/small/items.parquet")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == (
        f"{odd}: a path with braces or colons cannot be used; rename it"
    )
    assert "Traceback" not in done.stdout


@slow
def test_a_config_with_a_key_twice_is_refused_in_one_line(tmp_path):
    (tmp_path / "twice.yaml").write_text("evaluation:\n  rows: 5\n  rows: 6\n")
    with start(tmp_path, [*SMALL, tmp_path / "twice.yaml"], "--dry-run") as study:
        output, _ = study.communicate()
    assert study.returncode != 0
    assert output.splitlines()[-1] == (
        f"config: {tmp_path}/twice.yaml line 3: rows comes twice, first in line 2; keep one"
    )
