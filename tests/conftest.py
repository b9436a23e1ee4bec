"""Data that several test modules share, and one thread a test process."""

import os
from pathlib import Path

# Before torch is imported: several test processes share the machine, and more threads than
# processors slow each other down many times over. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from rere.data.fetch import fetch
from rere.errors import InputError


# Deadlines would fail on a busy machine. `make fuzz` takes the second profile.
settings.register_profile("rere", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("rere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no process waits for one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ml_100k_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of MovieLens-100K, fetched once; skips where they cannot be."""
    return fetched("ml-100k", tmp_path_factory)


@pytest.fixture(scope="session")
def ml_1m_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of MovieLens-1M, likewise."""
    return fetched("ml-1m", tmp_path_factory)


def fetched(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(source) / "raw"
    try:
        fetch(source, folder)
    except InputError as error:
        pytest.skip(f"{source} could not be fetched: {error}")
    return folder
