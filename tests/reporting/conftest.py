"""Small runs with their tables and logs."""

from pathlib import Path

import polars as pl
import pytest
from reported_runs import (
    DATASETS,
    SKILL,
    make_data,
    make_run,
    planned_runs,
    training_log,
    write_log,
)

from rere.config.run import Run
from rere.config.study import Comparison
from rere.files import write_json
from rere.reporting.tables import table


@pytest.fixture(scope="session")
def tabled_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Path]]:
    """The root, and the folders of data sets and runs in it; the runs' table is in `tables`."""
    root = tmp_path_factory.mktemp("study")
    data = [make_data(root / "data" / name, seed) for seed, name in enumerate(DATASETS)]
    runs = [make_run(root, run) for run in planned_runs()]
    write_json(runs[0] / "run.json", {"seconds": 2.5, "peak_memory_mb": 640.0, "host": "x"})
    epochs = [f'{{"epoch": 1, "loss": 2.0, "valid_NDCG@10": {score}}}\n' for score in (0.25, 0.125)]
    (runs[0] / "log.jsonl").write_text("".join(epochs))
    (runs[2] / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    table(runs, data, root / "tables" / "main.csv", Comparison(reference="sft"))
    return root, data, runs


@pytest.fixture(scope="session")
def main_table(tabled_runs: tuple[Path, list[Path], list[Path]]) -> pl.DataFrame:
    """The table of `tabled_runs`."""
    return pl.read_csv(tabled_runs[0] / "tables" / "main.csv")


@pytest.fixture
def planned_pair(tmp_path: Path) -> tuple[Path, Path, list[Run]]:
    """A root, the folder of a small data set in it, and two runs that could be made on it."""
    data = make_data(tmp_path / "data" / "toys_", 0)
    runs = [Run(dataset="toys_", backbone="tiny", method=name, seed=0) for name in SKILL]
    return tmp_path, data, runs[1:]


@pytest.fixture
def logged_runs(tmp_path: Path) -> list[Path]:
    """Folders with logs of two methods with two seeds each; only the first logs a KL."""
    folders = [("rere", 0), ("rere", 1), ("rule", 0), ("rule", 1)]
    return [
        write_log(
            tmp_path / "d" / "tiny" / method / f"seed{seed}",
            training_log(**({"kl": 0.01} if method == "rere" else {})),
        )
        for method, seed in folders
    ]
