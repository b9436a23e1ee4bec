"""Choose the tokens that a search's forward pass feeds, and assign them to columns.

B rows, K paths, M of them feeding tokens, Q columns of a pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

MAX_CHAIN = 64
"""Most tokens of an edge that a pass feeds under `vocabulary` scoring."""

FULL_PASS = {"cpu": (768, 1.75e10)}
"""Up to so many tokens, and tokens times parameters, a pass takes about as long as for fewer."""
FULL_PASS_ELSEWHERE = (1024, 1e12)


class Layout(NamedTuple):
    """Columns of a forward pass: which token of which path each holds."""

    path: Tensor  # (B, Q) i64, which of the M feeding paths
    offset: Tensor  # (B, Q) i64, which of the tokens that the path feeds
    is_token: Tensor  # (B, Q) bool, False in padding
    first: Tensor  # (B, M) i64, column of the path's first token
    last: Tensor  # (B, M) i64, column of its last token


def full_pass_tokens(model: PreTrainedModel) -> int:
    """Number of tokens up to which a forward pass takes about as long as for fewer."""
    return full_pass_of(model.device, model.num_parameters())


def full_pass_of(device: torch.device, num_parameters: int) -> int:
    """`full_pass_tokens` of a model with so many parameters on a device."""
    tokens, work = FULL_PASS.get(device.type, FULL_PASS_ELSEWHERE)
    return min(tokens, int(work / num_parameters))


def limit_chains(left: Tensor, max_tokens: int) -> Tensor:
    """How many of the `left` (B, K) tokens of its edge each path feeds, (B, K).

    At least one where any is left, then as many as fit in `max_tokens` over all rows. Feeding
    several saves passes; it is wasted where a path is pruned within the edge.
    """
    best_first = left.T.flatten()
    chain = torch.arange(1, MAX_CHAIN + 1, device=left.device)
    total = torch.minimum(best_first[:, None], chain).sum(0)  # (MAX_CHAIN,) tokens, by chain limit
    longest = (total <= max_tokens).sum().clamp(min=1)
    count = torch.minimum(best_first, longest)
    # Spend what that leaves on one more token for each of the best paths.
    has_more = (best_first > count) & (longest < MAX_CHAIN)
    count = count + (has_more & (has_more.cumsum(0) <= max_tokens - count.sum()))
    return count.view_as(left.T).T


def lay_out_columns(count: Tensor, num_columns: int) -> Layout:
    """Columns for `count` (B, M) tokens per path, path after path."""
    stop = count.cumsum(-1)
    column = torch.arange(num_columns, device=count.device).repeat(len(count), 1)
    path = torch.searchsorted(stop, column, right=True).clamp(max=count.shape[1] - 1)
    first = stop - count
    return Layout(
        path=path,
        offset=column - first.gather(1, path),
        is_token=column < stop[:, -1:],
        first=first,
        last=(stop - 1).clamp(min=0),
    )


def lay_out_last_tokens_last(count: Tensor, num_earlier: int) -> Layout:
    """Columns for `count` (B, M) tokens per path, the last token of every path at the end.

    Then `logits_to_keep` = M computes logits for the last tokens only. `num_earlier` columns hold
    the other tokens.
    """
    earlier = lay_out_columns((count - 1).clamp(min=0), num_earlier)
    path = torch.arange(count.shape[1], device=count.device).repeat(len(count), 1)
    return Layout(
        path=torch.cat([earlier.path, path], dim=1),
        offset=torch.cat([earlier.offset, count - 1], dim=1),
        is_token=torch.cat([earlier.is_token, count > 0], dim=1),
        first=earlier.first,
        last=num_earlier + path,
    )


def same_edge_mask(layout: Layout) -> Tensor:
    """Which columns (B, Q, Q) hold the column's own token or an earlier one of the same path."""
    path, offset = layout.path, layout.offset
    is_same = path[:, :, None] == path[:, None, :]
    is_earlier = offset[:, :, None] >= offset[:, None, :]
    return is_same & is_earlier & layout.is_token[:, None, :]
