"""Advantages: how much better than others a candidate did.

B prompts, G candidates of each. `reward` (B, G) f32 and `exists` (B, G) bool, which is false in
places that a catalogue smaller than G left empty; they count for nothing and get 0. An invalid
candidate exists, with its reward of 0.
"""

from torch import Tensor


def grpo(reward: Tensor, exists: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) over each group, std unbiased; (B, G) f32.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1, with the small constant of the usual
    implementations.
    """
    deviation, count = centred(reward, exists)
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return deviation / (variance.sqrt() + 1e-4)


def dr_grpo(reward: Tensor, exists: Tensor) -> Tensor:
    """r - mean over each group, (B, G) f32.

    GRPO's division by the standard deviation gives most weight to groups that differ least; Liu
    et al. 2025 (arXiv 2503.20783) leave it out.
    """
    return centred(reward, exists)[0]


def rloo(reward: Tensor, exists: Tensor) -> Tensor:
    """r less the mean of the others in its group, which is n / (n - 1) (r - mean); (B, G) f32.

    An unbiased baseline where candidates are drawn independently. Kool, van Hoof & Welling,
    "Buy 4 REINFORCE samples, get a baseline for free!" (2019); Ahmadian et al. 2024 (arXiv
    2402.14740).
    """
    deviation, count = centred(reward, exists)
    return deviation * count / (count - 1).clamp(min=1)


def global_baseline(reward: Tensor, exists: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) over all candidates of all B prompts, std unbiased; (B, G) f32.

    The B prompts are those of a whole step, of all its passes and devices: rewards of one pass
    alone would have another baseline. A group whose rewards are all equal has an advantage, too.
    REINFORCE++, Hu et al. 2025 (arXiv 2501.03262), whose only baseline is the batch.
    """
    return grpo(reward.reshape(1, -1), exists.reshape(1, -1)).view_as(reward)


ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "global": global_baseline}


def has_zero_advantage(advantage: Tensor) -> Tensor:
    """Groups that teach nothing, every advantage being exactly 0: (B, G) -> (B,) bool.

    Those that DAPO draws anew, and whose training pass may be left out where there is no KL.
    """
    return (advantage == 0).all(-1)


def centred(reward: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards less their group's mean (B, G), and how many candidates that is of (B, 1).

    Exactly 0 in a group whose rewards are all equal, where the mean's rounding would not be.
    """
    count = exists.sum(-1, keepdim=True)
    reward = reward * exists
    mean = reward.sum(-1, keepdim=True) / count
    highest = reward.masked_fill(~exists, -float("inf")).amax(-1, keepdim=True)
    lowest = reward.masked_fill(~exists, float("inf")).amin(-1, keepdim=True)
    return ((reward - mean) * exists).masked_fill(highest <= lowest, 0.0), count
