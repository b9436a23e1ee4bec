"""Attention in parts: tokens that see alike, each part over what it sees.

Of the products of all tokens of a batch with all others, a mask throws most away: those with
padding, with tokens that no path follows any more, and with other branches of a tree. Here the
tokens of a row are taken in the order of a walk through its tree, so that some in a row see little
together, and each part of them attends to that alone.

B rows, Q columns, T tokens in them, S columns that are seen, n tokens of a part, m seen by it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE = 64
"""Tokens of a part."""
COST = {"cpu": 5e6}
"""Multiplications that a part costs beside its own, by device; elsewhere all is done at once."""


class Part(NamedTuple):
    """Tokens of one row that attend together."""

    row: int
    token: Tensor  # (n,) i64, which of the T they are
    column: Tensor  # (n,) i64, and where in the Q columns
    seen: Tensor  # (m,) i64, which of the S some of them sees


class Parts:
    """All parts of a pass."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts, self.masks = parts, {}
        self.token = torch.cat([part.token for part in parts])
        self.row = torch.cat([torch.full_like(part.seen, part.row) for part in parts])
        self.seen = torch.cat([part.seen for part in parts])
        self.in_order = torch.equal(self.token, torch.arange(len(self.token)))  # T of them, then
        self.num_tokens = [len(part.token) for part in parts]
        self.num_seen = [len(part.seen) for part in parts]

    def masks_of(self, mask: Tensor, repeats: int) -> list[Tensor]:
        """What a mask (B, 1, Q, S) of the pass says of each, (1, 1, repeats n, m)."""
        if (mask, repeats) not in self.masks:  # the same tensor, not an equal one
            self.masks[mask, repeats] = [
                mask[row, :, column][None, :, :, seen].repeat(1, 1, repeats, 1)
                for row, _, column, seen in self.parts
            ]
        return self.masks[mask, repeats]

    def since(self, first: int) -> "Parts":
        """Those of the tokens from number `first` on."""
        parts = []
        for row, token, column, seen in self.parts:
            is_in = token >= first
            if is_in.any():
                parts.append(Part(row, token[is_in], column[is_in], seen))
        return Parts(parts)


def parts_of(index: Tensor, visible: Tensor, width: int) -> Parts | None:
    """The parts of the tokens at `index` (T,) in (B Q,), of which `visible` (B, Q, S) are seen.

    None where they save less than they cost; `width` is that of all heads.
    """
    num_rows, num_columns, _ = visible.shape
    cost = COST.get(visible.device.type, torch.inf) / width
    if visible.numel() <= cost * max(num_rows, len(index) / SIZE):
        return None
    row, column = index // num_columns, index % num_columns
    sees = visible[row, column]
    parts = []
    for token in walks(row, sees):
        for some in token.split(SIZE):
            seen = sees[some].any(0).nonzero()[:, 0]
            parts.append(Part(int(row[some[0]]), some, column[some], seen))
    left = sum(len(part.token) * len(part.seen) for part in parts)
    return Parts(parts) if left + cost * len(parts) < visible.numel() else None


def walks(row: Tensor, sees: Tensor) -> list[Tensor]:
    """The T tokens, those of a row (T,) in the order of a walk by what they see, (T, S) bool.

    As they lie, where that is the order of walks.
    """
    every = torch.arange(len(row))
    runs = every.tensor_split(row.diff().nonzero()[:, 0] + 1)
    if all(is_walk(sees[run]) for run in runs):
        return list(runs)
    rows = (every[row == number] for number in row.unique())
    return [token[walk(sees[token])] for token in rows]


def is_walk(sees: Tensor) -> bool:
    """Whether each token goes on from the one before, or from one that this sees."""
    return bool(((sees[1:] & ~sees[:-1]).sum(-1) == 1).all())


def walk(sees: Tensor) -> Tensor:
    """The order (n,) of tokens, depth first: what they see, (n, S) bool, as strings of bits."""
    bits = np.packbits(sees.numpy(), axis=1)
    return torch.from_numpy(bits.view(f"S{bits.shape[1]}")[:, 0].argsort(kind="stable"))
