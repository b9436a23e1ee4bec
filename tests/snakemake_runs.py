"""Run Snakemake on a study's configs, and write raw files for the small study."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from forks import JOB_FORKS, SNAKEMAKE_FORKS

from rere.config.study import Study
from rere.overlays import read_configs
from rere.study import load_study

ROOT = Path(__file__).parent.parent
QUICK = [ROOT / "config" / "config.yaml"]
SMALL = [*QUICK, ROOT / "tests" / "studies" / "small.yaml"]
PAPER = [*QUICK, ROOT / "config" / "paper.yaml"]
PAPER_IN_SMALL = [*PAPER, ROOT / "tests" / "studies" / "paper_small.yaml"]


def snakemake(
    folder: Path, configs: list[Path], *arguments: str, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder on one core; `changes` are sections laid over the configs.

    Its jobs are forks, too.
    """
    words = options(folder, configs, *arguments, **changes)
    variables = {} if {"-n", "--dry-run"} & {*arguments} else JOB_FORKS.variables()
    return SNAKEMAKE_FORKS.run("-m", "snakemake", *words, **variables)


def start(
    folder: Path,
    configs: list[Path],
    *arguments: str,
    start_new_session: bool = False,
    **changes: Any,
) -> subprocess.Popen[str]:
    """Start Snakemake as `snakemake` does, without waiting for it."""
    command = [sys.executable, "-m", "snakemake", *options(folder, configs, *arguments, **changes)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def options(folder: Path, configs: list[Path], *arguments: str, **changes: Any) -> list[str]:
    """The options of such a run; write `changes` to a file in the folder."""
    if changes:
        overlay = folder / "overlay.yaml"
        overlay.write_text(yaml.safe_dump({"overwrite": True} | changes))
        configs = [*configs, overlay]
    # A copy of the checkout runs its own workflow.
    snakefile = next(each for each in (folder, ROOT) if (each / "Snakefile").exists()) / "Snakefile"
    places = ["--snakefile", str(snakefile), "--directory", str(folder)]
    return ["--configfile", *map(str, configs), *places, "--cores", "1", *arguments]


def planned(folder: Path, configs: list[Path], *targets: str, **changes: Any) -> dict[str, int]:
    """Return the number of jobs of each rule in a dry run."""
    done = snakemake(folder, configs, "--dry-run", *targets, **changes)
    assert done.returncode == 0, done.stdout
    stats = re.search(r"Job stats:\n.*\n[- ]+\n((?:\w+ +\d+\n)*)", done.stdout)
    if stats is None:
        assert "Nothing to be done" in done.stdout
        return {}
    counts = {rule: int(jobs) for rule, jobs in map(str.split, stats[1].splitlines())}
    return {rule: jobs for rule, jobs in counts.items() if rule not in ("all", "total")}


def study_of(configs: list[Path]) -> Study:
    """Return the study that these configs describe."""
    return load_study(read_configs([*map(str, configs)]))


def each_method_once() -> dict[str, Any]:
    """`changes` that leave a table of the paper's study: all methods, one data set and seed."""
    tables = yaml.safe_load(PAPER[-1].read_text())["tables"]

    def every(key: str) -> list[str]:
        return [*dict.fromkeys(value for table in tables.values() for value in table.get(key, ()))]

    axes = {
        title: names for table in tables.values() for title, names in table.get("axes", {}).items()
    }
    main = {"datasets": ["industrial"], "backbones": ["qwen2-0.5b"], "seeds": [0]}
    main |= {"methods": every("methods"), "figures": every("figures"), "axes": axes}
    return {"tables": dict.fromkeys([*tables, "others"]) | {"main": main}}


def checkout(folder: Path) -> Path:
    """Copy what a study needs of the repository to a folder; return it."""
    for name in ("workflow", "rere", "envs", "profiles", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def write_raw(folder: Path) -> None:
    """Write events of 60 users, who go through 40 items in steps of one to three, as u.data."""
    folder.mkdir()
    events = [
        (user, (user + step * (1 + user % 3)) % 40, 100 * step + user)
        for user in range(60)
        for step in range(12)
    ]
    rows = [f"{user}\t{item}\t5\t{time}\n" for user, item, time in events]
    (folder / "u.data").write_text("".join(rows))
    titles = [f"{i}|Part {i // 8} of series {i % 8} (1995)|||{'|0' * 19}\n" for i in range(40)]
    (folder / "u.item").write_text("".join(titles))
