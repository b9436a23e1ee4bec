"""Which tokens attend together, by hand; test_unpadding.py shows that this changes nothing."""

import torch

from rere.engine.model import attention_blocks
from rere.engine.model.attention import gather_seen
from rere.engine.model.attention_blocks import depth_first_order, make_blocks

# A prompt of two tokens, 0 and 1, and behind it the tree 2 -> 4, 2 -> 5, 3 -> 6, by levels.
PATHS = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 2, 4], [0, 1, 2, 5], [0, 1, 3, 6]]


def visible(paths):
    sees = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for token, path in enumerate(paths):
        sees[token, path] = True
    return sees


def test_order_is_depth_first():
    order = depth_first_order(visible(PATHS)).tolist()
    assert order == [0, 1, 3, 6, 2, 5, 4]  # each branch whole, before or behind the other


def test_blocks_by_hand(blocks_of_two):
    # The second row has two tokens alone, in columns 1 and 2.
    sees = torch.stack([visible(PATHS), torch.zeros(7, 7, dtype=torch.bool)])
    sees[1, 1, 1], sees[1, 2, 1:3] = True, True
    index = torch.tensor([0, 1, 2, 3, 4, 8, 9, 5, 6])  # the last two of the first row come last
    blocks = make_blocks(index, sees, width=1)
    assert [block.row for block in blocks.blocks] == [0, 0, 0, 0, 1]
    assert [block.column.tolist() for block in blocks.blocks] == [
        [0, 1],
        [3, 6],
        [2, 5],
        [4],
        [1, 2],
    ]
    assert [block.token.tolist() for block in blocks.blocks] == [
        [0, 1],
        [3, 8],
        [2, 7],
        [4],
        [5, 6],
    ]
    seen = [[0, 1], [0, 1, 3, 6], [0, 1, 2, 5], [0, 1, 2, 4], [1, 2]]
    assert [block.seen.tolist() for block in blocks.blocks] == seen
    assert blocks.token.tolist() == [0, 1, 3, 8, 2, 7, 4, 5, 6]

    last = blocks.starting_at(7)
    assert [block.column.tolist() for block in last.blocks] == [[6], [5]]
    assert last.token.tolist() == [8, 7]

    mask = torch.where(sees, 0.0, -1.0)[:, None]
    masks = blocks.select_masks(mask, repeats=2)
    assert masks[1].tolist() == [[[[0, 0, 0, -1], [0, 0, 0, 0]] * 2]]
    assert blocks.select_masks(mask, repeats=2) is masks
    assert blocks.select_masks(mask, repeats=1)[1].tolist() == [[[[0, 0, 0, -1], [0, 0, 0, 0]]]]
    assert blocks.select_masks(mask - 1, repeats=2)[1].tolist() == [
        [[[-1, -1, -1, -2], [-1] * 4] * 2]
    ]


def test_tokens_in_depth_first_order_stay_in_theirs(blocks_of_two):
    # The same tree, 2 -> 3, 2 -> 4, 5 -> 6, in one row, and a chain in another.
    paths = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5], [0, 1, 5, 6]]
    sees = torch.stack([visible(paths), torch.ones(7, 7, dtype=torch.bool).tril()])
    index = torch.tensor([0, 1, 7, 2, 3, 4, 5, 6, 8, 9])  # both prompts, then what follows them
    blocks = make_blocks(index, sees, width=1)
    assert blocks.is_in_order and not blocks.starting_at(3).is_in_order
    assert [block.row for block in blocks.blocks] == [0, 1, 0, 0, 0, 1]
    tokens = [[0, 1], [2], [3, 4], [5, 6], [7], [8, 9]]
    assert [block.token.tolist() for block in blocks.blocks] == tokens
    seen = [[0, 1], [0], [0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 5, 6], [0, 1, 2]]
    assert [block.seen.tolist() for block in blocks.blocks] == seen
    # Level by level they are in another order.
    assert not make_blocks(torch.arange(7), visible(PATHS)[None], width=1).is_in_order


def test_blocks_are_made_where_they_pay(monkeypatch):
    monkeypatch.setattr(attention_blocks, "BLOCK_SIZE", 2)
    sees, index = visible(PATHS)[None], torch.arange(7)
    # 49 products, or 2 x 2 + 2 x 4 + 2 x 4 + 1 x 4 = 24 in 4 blocks; of a width of 8 each.
    monkeypatch.setitem(attention_blocks.BLOCK_COST, "cpu", 8 * 25 / 4 - 0.1)
    assert len(make_blocks(index, sees, width=8).blocks) == 4
    monkeypatch.setitem(attention_blocks.BLOCK_COST, "cpu", 8 * 25 / 4)
    assert make_blocks(index, sees, width=8) is None
    assert make_blocks(index.to("meta"), sees.to("meta"), width=8) is None  # whole rows elsewhere


def test_gradients_repeat(blocks_of_two):
    """To the last bit: keys that many blocks see get their gradients added up in one order."""
    paths = torch.ones(1, 512, 512, dtype=torch.bool).tril()
    blocks = make_blocks(torch.arange(512), paths, width=1)
    states = torch.randn(1, 2, 512, 64, requires_grad=True)
    weight = torch.randn(len(blocks.seen), 2, 64)

    def gradient():
        return torch.autograd.grad((gather_seen(blocks, states) * weight).sum(), states)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(3))
    with torch.no_grad():
        copies = states.detach()
        assert torch.equal(gather_seen(blocks, copies), gather_seen(blocks, states))
