"""How many tokens a pass of a search feeds, and the device that this is chosen for."""

from collections.abc import Callable, Iterator

import pytest
import torch

from rere.engine.search import path_scorer, sizes

CHAINS = {"short chains": 0, "long chains": 10**6}
"""How many forced tokens a pass may feed, which changes no result."""


@pytest.fixture(params=CHAINS)
def chain_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of CHAINS."""
    monkeypatch.setattr(path_scorer, "full_pass_tokens", lambda model: CHAINS[request.param])


@pytest.fixture
def chain_lengths(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Iterator[str]]:
    """A function that sets one of CHAINS after the other, for a test with a slow reference."""

    def set_each() -> Iterator[str]:
        for name, tokens in CHAINS.items():
            monkeypatch.setattr(path_scorer, "full_pass_tokens", lambda model, full=tokens: full)
            yield name

    return set_each


@pytest.fixture
def timed_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that passes are timed on, with 80 GiB left."""
    monkeypatch.setattr(sizes, "is_accelerator", lambda device: True)
    monkeypatch.setattr(sizes, "available_memory", lambda device: 80 << 30)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
