"""Advantages: how much better a candidate's reward is than a baseline.

B prompts, G candidates per prompt. `reward` is (B, G) f32. `exists` (B, G) bool is false in the
empty slots of a group whose catalogue has fewer than G titles: their advantage is 0, and they
change no other. A non-item exists, with reward 0.
"""

from torch import Tensor


def grpo(reward: Tensor, exists: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) over each group, std unbiased; (B, G) f32.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1, with the small constant of the usual
    implementations.
    """
    deviation, count = subtract_group_mean(reward, exists)
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return deviation / (variance.sqrt() + 1e-4)


def dr_grpo(reward: Tensor, exists: Tensor) -> Tensor:
    """r - mean over each group, (B, G) f32.

    Liu et al. 2025 (arXiv 2503.20783) drop GRPO's division by the standard deviation, which gives
    most weight to the groups that differ least.
    """
    return subtract_group_mean(reward, exists)[0]


def rloo(reward: Tensor, exists: Tensor) -> Tensor:
    """r minus the mean of the others in its group, which is n / (n - 1) (r - mean); (B, G) f32.

    An unbiased baseline for independently sampled candidates. Kool, van Hoof & Welling, "Buy 4
    REINFORCE samples, get a baseline for free!" (2019); Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    deviation, count = subtract_group_mean(reward, exists)
    return deviation * count / (count - 1).clamp(min=1)


def global_baseline(reward: Tensor, exists: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) over all candidates of all B prompts, std unbiased; (B, G) f32.

    Pass all prompts of a step at once. A group with equal rewards can have an advantage, too. The
    baseline of REINFORCE++, Hu et al. 2025 (arXiv 2501.03262).
    """
    return grpo(reward.reshape(1, -1), exists.reshape(1, -1)).view_as(reward)


ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "global": global_baseline}


def has_zero_advantage(advantage: Tensor) -> Tensor:
    """Which groups have only advantages of exactly 0: (B, G) -> (B,) bool.

    Without a KL such a group has no gradient.
    """
    return (advantage == 0).all(-1)


def subtract_group_mean(reward: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Each reward minus its group's mean (B, G), and the group's number of candidates (B, 1).

    Exactly 0 in a group with equal rewards, whose mean may be rounded.
    """
    count = exists.sum(-1, keepdim=True)
    reward = reward * exists
    mean = reward.sum(-1, keepdim=True) / count
    highest = reward.masked_fill(~exists, -float("inf")).amax(-1, keepdim=True)
    lowest = reward.masked_fill(~exists, float("inf")).amin(-1, keepdim=True)
    return ((reward - mean) * exists).masked_fill(highest <= lowest, 0.0), count
