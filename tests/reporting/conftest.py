"""Small runs with their tables and logs."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from browser import Page, browser
from data_frames import items_frame, split_frame, users_frame
from reported_runs import (
    DATASETS,
    HOSTILE,
    SKILL,
    make_data,
    make_run,
    planned_runs,
    training_log,
    write_log,
    write_run,
)

from rere.config.run import NO_BACKBONE, Run
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


@pytest.fixture
def explored(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A data set of ten items and four test rows, and the runs of two methods on it.

    Items 8 and 9 share a title, item 0 is the head, and train does not know item 7.
    """
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    titles = ["Heat", HOSTILE, *(f"t{item}" for item in range(2, 8)), "Same", "Same"]
    counts = [9, 5, 5, 1, 1, 1, 1, 0, 0, 0]
    items_frame(titles, counts).write_parquet(data / "items.parquet")
    users_frame(3).write_parquet(data / "users.parquet")
    train = split_frame([[8], [9, 3], [4]], [0, 1, 2], [0, 0, 1])
    pl.concat([train, split_frame([[5]], [6], [2], 3)]).write_parquet(data / "train.parquet")
    test = split_frame([[3], [3, 1, 4, 1], [2] * 7, [*range(1, 7)] * 2], [0, 1, 7, 9], [0, 1, 2, 2])
    test.write_parquet(data / "test.parquet")
    rere = [[0, 1, 2], [2, 3, 4, 1], [1, 2, 3], [8, 9, 1]]
    sft = [[1, 0, 2], [2, 3], [8, 9, 7], [0, 1, 2]]
    runs = [
        write_run(
            tmp_path, Run(dataset="tiny", backbone=NO_BACKBONE, method=name, seed=0), test, lists
        )
        for name, lists in (("sft", sft), ("rere", rere))
    ]
    return data, runs


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a headless browser."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened
