"""Data that several test modules share, and one thread a test process."""

import os
from pathlib import Path

# Before torch is imported: several test processes share the machine, and more threads than
# processors slow each other down many times over. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from rere.data.fetch import fetch
from rere.errors import InputError


@pytest.fixture(scope="session")
def ml_100k_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of MovieLens-100K, fetched once; skips where they cannot be."""
    folder = tmp_path_factory.mktemp("ml-100k") / "raw"
    try:
        fetch("ml-100k", folder)
    except InputError as error:
        pytest.skip(f"MovieLens-100K could not be fetched: {error}")
    return folder
