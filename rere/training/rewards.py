"""Rewards of a group of candidates: pure functions of hits and log-probabilities.

B prompts, G candidates of each. `hit` (B, G) bool says which candidate has the target's title,
`log_prob` (B, G) holds the candidates' sequence log-probabilities, -inf where a catalogue smaller
than G left a place empty.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rule(hit: Tensor, log_prob: Tensor) -> Tensor:
    """1 for the target, else 0; (B, G) f32."""
    return hit.float()


def ranking(hit: Tensor, log_prob: Tensor) -> Tensor:
    """The better a wrong candidate ranks, the more it costs; (B, G) f32.

    With rank k = 1 .. G by falling log-probability, whatever order the candidates came in, the
    reward is -(1 / log2(k + 1)) / sum_j (1 / log2(j + 1)), the sum over all G ranks; it is 0 for
    the target, for an empty place, and everywhere in a group without the target (ReRe, arXiv
    2510.12211, as released: with penalties in such groups training was seen to collapse).
    """
    order = log_prob.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, hit.shape[-1] + 1, device=hit.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, ranks)
    discount = 1 / (rank + 1).float().log2()
    penalty = -discount / discount.sum(-1, keepdim=True)
    return penalty.masked_fill(hit | ~hit.any(-1, keepdim=True) | log_prob.isneginf(), 0.0)


REWARDS = {"rule": rule, "ranking": ranking}


def total_reward(names: Sequence[str], hit: Tensor, log_prob: Tensor) -> Tensor:
    """The named rewards added up, (B, G) f32."""
    return torch.stack([REWARDS[name](hit, log_prob) for name in names]).sum(0)
