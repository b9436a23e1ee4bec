"""Advantages: how much better than its group a candidate did."""

from torch import Tensor


def grpo(reward: Tensor, exists: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) over each group, std unbiased; 0 where no candidate exists.

    reward (B, G) f32, exists (B, G) bool -> (B, G) f32. Shao et al. 2024 (arXiv 2402.03300),
    section 4.1, with the small constant of the usual implementations.
    """
    count = exists.sum(-1, keepdim=True)
    reward = reward * exists
    mean = reward.sum(-1, keepdim=True) / count
    deviation = (reward - mean) * exists
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return deviation / (variance.sqrt() + 1e-4)


def silent(advantage: Tensor) -> Tensor:
    """Groups that teach nothing, every advantage being exactly 0: (B, G) -> (B,) bool."""
    return (advantage == 0).all(-1)
