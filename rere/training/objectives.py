"""Policy-gradient objectives: the loss of an update, given log-probabilities and advantages.

B prompts per pass, G candidates per prompt, N candidate tokens per prompt.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import sum_by_candidate


class Objective(NamedTuple):
    """A clipped policy-gradient loss: -min(r A, clip(r, 1 - low, 1 + high) A), averaged.

    r is the probability under the policy over that under the policy that rolled out. A is the
    advantage of the candidate.
    """

    ratio: Literal["token", "sequence"]
    """Each token's own r, or one per candidate: the geometric mean over its tokens."""

    clip: tuple[float, float] | None
    """(low, high); None does not clip."""

    mean: Literal["sequences", "tokens", "constant"]
    """A mean over candidates of the means over their tokens, a mean over all tokens, or the sum
    over all tokens divided by the number of candidates times the longest title's tokens."""

    def divisor(self, length: Tensor, longest: int) -> Tensor:
        """The divisor of the mean, a scalar.

        length (B, G) is the number of tokens per candidate, 0 in an empty slot; longest that of
        the longest title.
        """
        match self.mean:
            case "sequences":
                return (length > 0).sum()
            case "tokens":
                return length.sum()
            case "constant":
                return (length > 0).sum() * longest


OBJECTIVES = {
    # Shao et al. 2024 (arXiv 2402.03300), equation 3. ReRe's, with one update per rollout.
    "grpo": Objective("token", (0.2, 0.2), "sequences"),
    # Yu et al. 2025 (arXiv 2503.14476), section 3, who take the mean over the batch and use no KL.
    # Their other parts are the options beta: 0.0 and dynamic_sampling.
    "dapo": Objective("token", (0.2, 0.28), "tokens"),
    # Zheng et al. 2025 (arXiv 2507.18071), equation 5, clipped as in section 5.1.
    "gspo": Objective("sequence", (3e-4, 4e-4), "sequences"),
    # Liu et al. 2025 (arXiv 2503.20783): a token has the same weight in long and short titles.
    # Their other part is the advantage dr_grpo.
    "dr_grpo": Objective("token", (0.2, 0.2), "constant"),
    # What ReRe's released code calls DAPO and GSPO. They never clip, with one update per rollout.
    "released_token_mean": Objective("token", None, "tokens"),
    "released_sequence_mean": Objective("sequence", None, "sequences"),
}


def policy_loss(
    objective: Objective,
    log_prob: Tensor,
    old: Tensor | None,
    advantage: Tensor,
    penalty: Tensor | None,
    packed: PackedBatch,
    count: Tensor,
) -> Tensor:
    """The loss of the candidates in `packed`, a scalar.

    log_prob (B, N) of the candidates' tokens has the gradient. `old` (B, N) is that under the
    policy that rolled out, None if it is the policy itself, whose ratio is 1. advantage (B, G).
    penalty (B, N) is added to each token's loss. Values at padding do not matter. `count` is the
    divisor for the whole step (`Objective.divisor`), so the losses of its passes add up.
    """
    length = sum_by_candidate(torch.ones_like(packed.candidate), packed).clamp(min=1)  # (B, G)
    log_ratio = log_prob - (log_prob.detach() if old is None else old)
    if objective.ratio == "token":
        ratio = log_ratio.exp()
    else:
        mean = sum_by_candidate(log_ratio, packed) / length
        ratio = spread_to_tokens(mean.exp(), packed)
    advantage = spread_to_tokens(advantage, packed)
    loss = -ratio * advantage
    if objective.clip is not None:
        low, high = objective.clip
        loss = torch.maximum(loss, -ratio.clamp(1 - low, 1 + high) * advantage)
    if penalty is not None:
        loss = loss + penalty
    total = sum_by_candidate(loss, packed)
    if objective.mean == "sequences":
        total = total / length
    return total.sum() / count


def spread_to_tokens(values: Tensor, packed: PackedBatch) -> Tensor:
    """Each token gets its candidate's value: (B, G) -> (B, N), 0 at padding."""
    return torch.cat([values, values.new_zeros(len(values), 1)], 1).gather(1, packed.candidate)


def k2(log_prob: Tensor, reference: Tensor) -> Tensor:
    """d^2 / 2, an estimate of KL(policy || reference); (B, N).

    d = reference - log_prob is a token's log-ratio in nats, positive where the reference likes it
    better.

    Biased, never negative. Its expected gradient is that of KL(policy || reference). Schulman,
    "Approximating KL divergence" (2020); on gradients, here and below, Tang & Munos 2025 (arXiv
    2506.09477).
    """
    return (reference - log_prob).square() / 2


MAX_LOG_RATIO = 20.0
"""The |d| of a token, in nats, beyond which k3 is linear. In float32 exp(d) overflows at 89."""


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with the d of `k2`, an estimate of KL(policy || reference); (B, N).

    Unbiased, never negative. Its expected gradient is that of KL(reference || policy). Schulman
    2020; ReRe's. Where |d| is above MAX_LOG_RATIO the loss follows the tangent there, so its
    gradient grows no further.
    """
    difference = reference - log_prob
    inside = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    exact, edge = inside.exp() - inside - 1, inside.detach()
    tangent = edge.exp() - edge - 1 + edge.expm1() * (difference - edge)
    return torch.where(is_linear(log_prob, reference), tangent, exact)


def is_linear(log_prob: Tensor, reference: Tensor) -> Tensor:
    """For which tokens k3 is linear, (B, N) bool."""
    return (reference - log_prob).abs() > MAX_LOG_RATIO


KL = {"k2": k2, "k3": k3}
