"""How many tokens a pass of a search feeds."""

import pytest

from rere.engine.search import path_scorer


@pytest.fixture(params=["short chains", "long chains"])
def chain_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many forced tokens a pass may feed, which changes no result."""
    full = 0 if request.param == "short chains" else 10**6
    monkeypatch.setattr(path_scorer, "full_pass_tokens", lambda model: full)
