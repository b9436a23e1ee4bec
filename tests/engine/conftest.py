"""A fixture that several tests of the engine share."""

import pytest
from tiny_models import FAMILIES, precise


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """A tiny model of each supported architecture."""
    return precise(request.param)
