"""Fixtures that several tests of the engine share."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from tiny_models import FAMILIES, precise
from transformers import PreTrainedModel

from rere.engine.model import forward


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each supported architecture."""
    return precise(request.param)


@pytest.fixture
def compute_padding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes later passes compute padding, too."""
    return lambda: monkeypatch.setattr(forward, "own_attention", lambda model: nullcontext(False))
