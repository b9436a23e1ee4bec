"""Which tokens attend together, by hand; test_engine_columns.py shows that it changes nothing."""

import pytest
import torch

from rere.engine.model import attention_blocks as engine_parts
from rere.engine.model.attention import seen_states
from rere.engine.model.attention_blocks import parts_of, walk

# A prompt of two tokens, 0 and 1, and behind it the tree 2 -> 4, 2 -> 5, 3 -> 6, by levels.
PATHS = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 2, 4], [0, 1, 2, 5], [0, 1, 3, 6]]


def visible(paths):
    sees = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for token, path in enumerate(paths):
        sees[token, path] = True
    return sees


@pytest.fixture
def pairs(monkeypatch):
    """Parts of two tokens, which cost nothing."""
    monkeypatch.setattr(engine_parts, "SIZE", 2)
    monkeypatch.setitem(engine_parts.COST, "cpu", 0)


def test_walk_is_depth_first():
    order = walk(visible(PATHS)).tolist()
    assert order == [0, 1, 3, 6, 2, 5, 4]  # each branch whole, before or behind the other


def test_parts_by_hand(pairs):
    # The second row has two tokens alone, in columns 1 and 2.
    sees = torch.stack([visible(PATHS), torch.zeros(7, 7, dtype=torch.bool)])
    sees[1, 1, 1], sees[1, 2, 1:3] = True, True
    index = torch.tensor([0, 1, 2, 3, 4, 8, 9, 5, 6])  # the last two of the first row come last
    parts = parts_of(index, sees, width=1)
    assert [part.row for part in parts.parts] == [0, 0, 0, 0, 1]
    assert [part.column.tolist() for part in parts.parts] == [[0, 1], [3, 6], [2, 5], [4], [1, 2]]
    assert [part.token.tolist() for part in parts.parts] == [[0, 1], [3, 8], [2, 7], [4], [5, 6]]
    seen = [[0, 1], [0, 1, 3, 6], [0, 1, 2, 5], [0, 1, 2, 4], [1, 2]]
    assert [part.seen.tolist() for part in parts.parts] == seen
    assert parts.token.tolist() == [0, 1, 3, 8, 2, 7, 4, 5, 6]

    last = parts.since(7)
    assert [part.column.tolist() for part in last.parts] == [[6], [5]]
    assert last.token.tolist() == [8, 7]

    mask = torch.where(sees, 0.0, -1.0)[:, None]
    masks = parts.masks_of(mask, repeats=2)
    assert masks[1].tolist() == [[[[0, 0, 0, -1], [0, 0, 0, 0]] * 2]]
    assert parts.masks_of(mask, repeats=2) is masks
    assert parts.masks_of(mask, repeats=1)[1].tolist() == [[[[0, 0, 0, -1], [0, 0, 0, 0]]]]
    assert parts.masks_of(mask - 1, repeats=2)[1].tolist() == [[[[-1, -1, -1, -2], [-1] * 4] * 2]]


def test_tokens_that_lie_in_the_order_of_walks_stay_as_they_lie(pairs):
    # The same tree, 2 -> 3, 2 -> 4, 5 -> 6, in one row, and a chain in another.
    paths = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5], [0, 1, 5, 6]]
    sees = torch.stack([visible(paths), torch.ones(7, 7, dtype=torch.bool).tril()])
    index = torch.tensor([0, 1, 7, 2, 3, 4, 5, 6, 8, 9])  # prompts, and behind both what follows
    parts = parts_of(index, sees, width=1)
    assert parts.in_order and not parts.since(3).in_order
    assert [part.row for part in parts.parts] == [0, 1, 0, 0, 0, 1]
    tokens = [[0, 1], [2], [3, 4], [5, 6], [7], [8, 9]]
    assert [part.token.tolist() for part in parts.parts] == tokens
    seen = [[0, 1], [0], [0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 5, 6], [0, 1, 2]]
    assert [part.seen.tolist() for part in parts.parts] == seen
    # By levels they are none.
    assert not parts_of(torch.arange(7), visible(PATHS)[None], width=1).in_order


def test_parts_are_made_where_they_pay(monkeypatch):
    monkeypatch.setattr(engine_parts, "SIZE", 2)
    sees, index = visible(PATHS)[None], torch.arange(7)
    # 49 products, or 2 x 2 + 2 x 4 + 2 x 4 + 1 x 4 = 24 in 4 parts; of a width of 8 each.
    monkeypatch.setitem(engine_parts.COST, "cpu", 8 * 25 / 4 - 0.1)
    assert len(parts_of(index, sees, width=8).parts) == 4
    monkeypatch.setitem(engine_parts.COST, "cpu", 8 * 25 / 4)
    assert parts_of(index, sees, width=8) is None
    assert parts_of(index.to("meta"), sees.to("meta"), width=8) is None  # all at once elsewhere


def test_gradients_repeat(pairs):
    """To the last bit: what many parts see gets its gradient from all of them, in one order."""
    paths = torch.ones(1, 512, 512, dtype=torch.bool).tril()
    parts = parts_of(torch.arange(512), paths, width=1)
    states = torch.randn(1, 2, 512, 64, requires_grad=True)
    weight = torch.randn(len(parts.seen), 2, 64)

    def gradient():
        return torch.autograd.grad((seen_states(parts, states) * weight).sum(), states)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(3))
    with torch.no_grad():
        copies = states.detach()
        assert torch.equal(seen_states(parts, copies), seen_states(parts, states))
