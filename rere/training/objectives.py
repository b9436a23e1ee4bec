"""Objectives: what a policy update minimises, given log-probabilities and advantages."""

import torch
from torch import Tensor

from rere.engine.packing import Packed
from rere.engine.scoring import sum_by_candidate


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference), never negative: exp(d) - d - 1, d = ref - lp.

    Schulman, "Approximating KL divergence" (2020), the estimator k3.
    """
    difference = reference - log_prob
    return difference.exp() - difference - 1


def grpo(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: Packed,
    count: Tensor | None = None,
) -> Tensor:
    """The on-policy GRPO loss: mean over sequences of the mean over their tokens, a scalar.

    Every token adds -(exp(lp - stopgrad lp) * A - beta * KL): one update a rollout, so that the
    ratio is 1 and clipping never acts. log_prob (B, N), advantage (B, G), kl (B, N) or None;
    `count` is the sequences of a whole step, for a pass that is part of it. Shao et al. 2024
    (arXiv 2402.03300), equation 3.
    """
    per_token = torch.cat([advantage, advantage.new_zeros(len(advantage), 1)], dim=1)
    per_token = per_token.gather(1, packed.candidate)  # (B, N)
    loss = -(log_prob - log_prob.detach()).exp() * per_token
    if kl is not None:
        loss = loss + beta * kl
    length = sum_by_candidate(torch.ones_like(loss), packed)  # (B, G)
    mean = sum_by_candidate(loss, packed) / length.clamp(min=1)
    return mean.sum() / ((length > 0).sum() if count is None else count)
