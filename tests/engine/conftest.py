"""Fixtures that several tests of the engine share."""

import pytest
from tiny_models import FAMILIES, precise
from torch import distributed


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """A tiny model of each supported architecture."""
    return precise(request.param)


@pytest.fixture
def process_group():
    """A process group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
