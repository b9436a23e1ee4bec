"""Columns of a search's forward pass, by hand."""

import pytest
import torch

from rere.engine.search.layout import (
    MAX_CHAIN,
    lay_out_columns,
    lay_out_last_tokens_last,
    limit_chains,
    same_edge_mask,
)

# Of two rows, the first feeds paths of 3, 1 and 2 tokens, the second one path of 2 tokens.
COUNT = torch.tensor([[3, 1, 2], [2, 0, 0]])


def test_path_after_path_by_hand():
    layout = lay_out_columns(COUNT, 6)
    assert layout.path[0].tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.offset[0].tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.is_token.int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert layout.first.tolist()[0] == [0, 3, 4]
    assert layout.last.tolist() == [[2, 3, 5], [1, 1, 1]]


def test_last_tokens_last_by_hand():
    layout = lay_out_last_tokens_last(COUNT, 3)
    assert layout.path[0].tolist() == [0, 0, 2, 0, 1, 2]
    assert layout.offset[0].tolist() == [0, 1, 0, 2, 0, 1]
    assert layout.is_token.int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0]]
    assert layout.last.tolist() == [[3, 4, 5], [3, 4, 5]]
    assert same_edge_mask(layout)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize(
    "max_tokens, expected",
    [
        (0, [[1, 1, 0], [1, 1, 1]]),
        (7, [[2, 1, 0], [2, 1, 1]]),  # the best paths of both rows, before the second ones
        (8, [[2, 1, 0], [2, 2, 1]]),
        (100, [[3, 1, 0], [5, 4, 9]]),
    ],
)
def test_chain_limits_by_hand(max_tokens, expected):
    left = torch.tensor([[3, 1, 0], [5, 4, 9]])
    assert limit_chains(left, max_tokens).tolist() == expected


def test_no_chain_is_longer_than_the_maximum():
    assert limit_chains(torch.tensor([[100, 3]]), 1000).tolist() == [[MAX_CHAIN, 3]]
