"""Networks and data of the baselines."""

from pathlib import Path

import pytest
from data_frames import items_frame, split_frame
from untrained_networks import NETWORKS, untrained

from rere.baselines.network import Network


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
    histories = [[row % 30, (row + 1) % 30] for row in range(90)]
    frame = split_frame(histories, [(row + 2) % 30 for row in range(90)])
    for name in ("train", "valid", "test"):
        frame.write_parquet(folder / f"{name}.parquet")
    return folder
