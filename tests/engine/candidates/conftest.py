"""A process group for distributed models."""

from collections.abc import Iterator

import pytest
from torch import distributed


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
