"""Networks and data of the baselines."""

from collections.abc import Callable
from pathlib import Path

import pytest
from data_frames import items_frame, split_frame, users_frame
from untrained_networks import NETWORKS, untrained

from rere.baselines.baseline import baseline
from rere.baselines.network import Network
from rere.config.baselines import Caser, Gru4rec, ItemKnn, Popularity, RepeatLast, Sasrec
from rere.config.evaluation import Evaluation

SIZE = {"hidden_size": 8, "batch_size": 64, "epochs": 2}
BASELINES = {
    each.model: each
    for each in (Popularity(), RepeatLast(), ItemKnn(neighbours=3), Gru4rec(**SIZE), Caser(**SIZE))
} | {"sasrec": Sasrec(num_layers=1, **SIZE)}


@pytest.fixture(params=NETWORKS)
def any_network(request: pytest.FixtureRequest) -> Network:
    """An untrained network of each sequential baseline."""
    return untrained(request.param)


@pytest.fixture
def short_sasrec() -> Network:
    """An untrained SASRec for histories of at most 8 items."""
    return untrained("sasrec", max_history=8)


@pytest.fixture
def successor_data(tmp_path: Path) -> Path:
    """A data folder of 30 items, in which each item i is followed by i + 1.

    The catalogue says that item i has i training targets. All splits have the same rows.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    items = items_frame([str(item) for item in range(30)], range(30))
    items.write_parquet(folder / "items.parquet")
    users_frame(90).write_parquet(folder / "users.parquet")
    histories = [[row % 30, (row + 1) % 30] for row in range(90)]
    frame = split_frame(histories, [(row + 2) % 30 for row in range(90)])
    for name in ("train", "valid", "test"):
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def run_of(successor_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function from a baseline's name to its run folder on that data, with lists of all items."""

    def run(name: str) -> Path:
        folder = tmp_path / name
        evaluation = Evaluation(rows=None, list_length=30)
        baseline(BASELINES[name], evaluation, successor_data, 0, folder / "predictions.parquet")
        return folder

    return run


@pytest.fixture(params=BASELINES)
def baseline_run(request: pytest.FixtureRequest, run_of: Callable[[str], Path]) -> Path:
    """The run folder of each baseline."""
    return run_of(request.param)
