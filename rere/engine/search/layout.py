"""Which tokens of which paths a forward pass of a search feeds, and in which columns.

B rows, K paths, M of them feeding, Q tokens fed by a pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_CHAIN = 64
"""Tokens of an edge that a pass feeds under `vocabulary` at most."""


class Layout(NamedTuple):
    """Which tokens of which paths are in the columns of a pass."""

    owner: Tensor  # (B, Q) i64, which of the M feeding paths
    place: Tensor  # (B, Q) i64, which of its tokens
    exists: Tensor  # (B, Q) bool
    start: Tensor  # (B, M) i64, the column of a path's first token
    end: Tensor  # (B, M) i64, and of its last


def look_ahead(left: Tensor, room: int) -> Tensor:
    """How many of the tokens `left` (B, K) of their edges paths feed: at least one, if any is left.

    A path may be pruned on an edge whose tokens are fed already. But up to `room` tokens of all
    rows cost next to nothing.
    """
    best_first = left.T.flatten()
    chain = torch.arange(1, MAX_CHAIN + 1, device=left.device)
    total = torch.minimum(best_first[:, None], chain).sum(0)  # (MAX_CHAIN,), with chains so long
    longest = (total <= room).sum().clamp(min=1)
    count = torch.minimum(best_first, longest)
    # One more for the best paths of all rows, out of what that leaves.
    more = (best_first > count) & (longest < MAX_CHAIN)
    count = count + (more & (more.cumsum(0) <= room - count.sum()))
    return count.view_as(left.T).T


def lay_out(count: Tensor, num_columns: int) -> Layout:
    """`count` (B, M) tokens a path, one path after the other."""
    stop = count.cumsum(-1)
    column = torch.arange(num_columns, device=count.device).repeat(len(count), 1)
    owner = torch.searchsorted(stop, column, right=True).clamp(max=count.shape[1] - 1)
    start = stop - count
    return Layout(
        owner=owner,
        place=column - start.gather(1, owner),
        exists=column < stop[:, -1:],
        start=start,
        end=(stop - 1).clamp(min=0),
    )


def lay_out_apart(count: Tensor, num_earlier: int) -> Layout:
    """The same, but the last tokens of all paths behind all others.

    So one `logits_to_keep` can leave out the others.
    """
    earlier = lay_out((count - 1).clamp(min=0), num_earlier)
    last = torch.arange(count.shape[1], device=count.device).repeat(len(count), 1)
    return Layout(
        owner=torch.cat([earlier.owner, last], dim=1),
        place=torch.cat([earlier.place, count - 1], dim=1),
        exists=torch.cat([earlier.exists, count > 0], dim=1),
        start=earlier.start,
        end=num_earlier + last,
    )


def own_edge(layout: Layout) -> Tensor:
    """Which tokens of a pass each one follows on its own edge, itself included, (B, Q, Q)."""
    owner, place, exists = layout.owner, layout.place, layout.exists
    follows = place[:, :, None] >= place[:, None, :]
    return (owner[:, :, None] == owner[:, None, :]) & follows & exists[:, None, :]
