"""How passes without padding attend."""

import pytest

from rere.engine.model import attention_blocks


@pytest.fixture
def blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of two tokens, at no cost."""
    monkeypatch.setattr(attention_blocks, "BLOCK_SIZE", 2)
    monkeypatch.setitem(attention_blocks.BLOCK_COST, "cpu", 0)


@pytest.fixture(params=["rows", "blocks"])
def rows_or_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a pass without padding attends to whole rows or to blocks."""
    cost = 0 if request.param == "blocks" else float("inf")
    monkeypatch.setitem(attention_blocks.BLOCK_COST, "cpu", cost)
