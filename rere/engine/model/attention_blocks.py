"""Blocks of tokens that attend together, each over the keys that it can see.

Most pairs of a query and a key in a batch of trees are masked: those with padding, with tokens that
no path follows any more, and with other branches. In depth-first order neighbouring tokens share
most of their ancestors, so a block of them sees few keys and attends to these alone.

B rows, Q columns, T tokens in them, S columns that are seen, n tokens of a block, m keys it sees.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_SIZE = 64
"""Tokens per block."""
BLOCK_COST = {"cpu": 5e6}
"""Overhead of a block in multiplications, by device; other devices attend to whole rows."""


class AttentionBlock(NamedTuple):
    """Tokens of one row that attend together."""

    row: int
    token: Tensor  # (n,) i64, which of the T they are
    column: Tensor  # (n,) i64, their columns, in [0, Q)
    seen: Tensor  # (m,) i64, the columns in [0, S) that any of them sees


class AttentionBlocks:
    """All blocks of a forward pass."""

    def __init__(self, blocks: list[AttentionBlock]) -> None:
        self.blocks = blocks
        self.masks: dict[tuple[Tensor, int], list[Tensor]] = {}
        self.token = torch.cat([block.token for block in blocks])
        self.row = torch.cat([torch.full_like(block.seen, block.row) for block in blocks])
        self.seen = torch.cat([block.seen for block in blocks])
        self.is_in_order = torch.equal(self.token, torch.arange(len(self.token)))
        self.num_tokens = [len(block.token) for block in blocks]
        self.num_seen = [len(block.seen) for block in blocks]

    def select_masks(self, mask: Tensor, repeats: int) -> list[Tensor]:
        """Each block's part of a pass's mask (B, 1, Q, S), as (1, 1, repeats n, m)."""
        if (mask, repeats) not in self.masks:  # tensors are equal as keys only to themselves
            self.masks[mask, repeats] = [
                mask[row, :, column][None, :, :, seen].repeat(1, 1, repeats, 1)
                for row, _, column, seen in self.blocks
            ]
        return self.masks[mask, repeats]

    def starting_at(self, first: int) -> "AttentionBlocks":
        """The blocks of the tokens from number `first` on."""
        blocks = []
        for row, token, column, seen in self.blocks:
            is_chosen = token >= first
            if is_chosen.any():
                blocks.append(AttentionBlock(row, token[is_chosen], column[is_chosen], seen))
        return AttentionBlocks(blocks)


def make_blocks(index: Tensor, visible: Tensor, width: int) -> AttentionBlocks | None:
    """Blocks of the tokens at `index` (T,) in (B Q,), which see `visible` (B, Q, S).

    None where they would save less than they cost. `width` is that of all heads together.
    """
    num_rows, num_columns, _ = visible.shape
    cost = BLOCK_COST.get(visible.device.type, torch.inf) / width
    if visible.numel() <= cost * max(num_rows, len(index) / BLOCK_SIZE):
        return None
    row, column = index // num_columns, index % num_columns
    sees = visible[row, column]
    blocks = []
    for token in depth_first_rows(row, sees):
        for part in token.split(BLOCK_SIZE):
            seen = sees[part].any(0).nonzero()[:, 0]
            blocks.append(AttentionBlock(int(row[part[0]]), part, column[part], seen))
    num_pairs = sum(len(block.token) * len(block.seen) for block in blocks)
    is_cheaper = num_pairs + cost * len(blocks) < visible.numel()
    return AttentionBlocks(blocks) if is_cheaper else None


def depth_first_rows(row: Tensor, sees: Tensor) -> list[Tensor]:
    """The tokens of each row, in depth-first order of its tree.

    row (T,) i64 of each token, sees (T, S) bool. Tokens that are in such an order stay in theirs.
    """
    every = torch.arange(len(row))
    runs = every.tensor_split(row.diff().nonzero()[:, 0] + 1)
    if all(is_depth_first(sees[run]) for run in runs):
        return list(runs)
    rows = (every[row == number] for number in row.unique())
    return [token[depth_first_order(sees[token])] for token in rows]


def is_depth_first(sees: Tensor) -> bool:
    """Whether each token's parent is the token before, or an ancestor of it."""
    return bool(((sees[1:] & ~sees[:-1]).sum(-1) == 1).all())


def depth_first_order(sees: Tensor) -> Tensor:
    """A depth-first order (n,) i64 of tokens by what they see, (n, S) bool.

    Sorting the rows as strings of bits puts each token behind its ancestors.
    """
    bits = np.packbits(sees.numpy(), axis=1)
    return torch.from_numpy(bits.view(f"S{bits.shape[1]}")[:, 0].argsort(kind="stable"))
