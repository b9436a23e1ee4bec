"""Objectives: what a policy update minimises, given log-probabilities and advantages.

B prompts of a pass, G candidates each, N candidate tokens a row. All objectives take the same:

    log_prob   (B, N) of the candidates' tokens under the policy, with gradient
    advantage  (B, G)
    kl         (B, N), a token's estimate of KL(policy || reference), or None; beta its weight
    count      what the loss is divided by, a scalar; None for the candidates or tokens of the
               pass. Losses of several passes add up to that of one pass with all their prompts
               if each is given the count of the whole step, which `Objective.count` tells
    old        (B, N), log_prob of the policy that rolled out, without gradient; None for the
               policy itself, whose ratio is 1 (one update a rollout, clipping never acts)
    clip       how far the ratio may fall below 1, and rise above it, and still have a gradient

and return a scalar. Padded places of (B, N) count for nothing, whatever they hold.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import sum_by_candidate

# ------------------------------------------------------------------------------------------- KL


def k1(log_prob: Tensor, reference: Tensor) -> Tensor:
    """A token's estimate of KL(policy || reference): -d, d = reference - log_prob, both (B, N).

    Unbiased, of either sign, and no use as a loss: the mean of its gradient is 0. Schulman,
    "Approximating KL divergence" (2020); of the gradients, here and below, Tang & Munos 2025
    (arXiv 2506.09477).
    """
    return log_prob - reference


def k2(log_prob: Tensor, reference: Tensor) -> Tensor:
    """A token's estimate of KL(policy || reference): d^2 / 2, d = reference - log_prob, (B, N).

    Never negative, biased; the mean of its gradient is the gradient of KL(policy || reference).
    Schulman 2020.
    """
    return (reference - log_prob).square() / 2


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """A token's estimate of KL(policy || reference): exp(d) - d - 1, d = reference - log_prob.

    Never negative, unbiased; the mean of its gradient is that of KL(reference || policy).
    Schulman 2020; ReRe's.
    """
    difference = reference - log_prob
    return difference.exp() - difference - 1


KL = {"k1": k1, "k2": k2, "k3": k3}

# ----------------------------------------------------------------------------------- objectives


def grpo(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor | None = None,
    old: Tensor | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
) -> Tensor:
    """The mean over sequences of the mean over their tokens.

    A token adds -min(r A, clip(r) A) + beta KL, with its own ratio r = exp(log_prob - old). Shao
    et al. 2024 (arXiv 2402.03300), equation 3; without `old` it is ReRe's.
    """
    loss = clipped(token_ratio(log_prob, old), advantage, packed, clip)
    return mean_of_sequences(penalised(loss, kl, beta), packed, count)


def dapo(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor | None = None,
    old: Tensor | None = None,
    clip: tuple[float, float] = (0.2, 0.28),
) -> Tensor:
    """The mean over tokens, whichever sequence they are of; the ratio may rise further than fall.

    A token adds what it does in `grpo`. Yu et al. 2025 (arXiv 2503.14476), section 3, who write
    the mean for one group and take it over the batch, and who leave the KL out; that a batch holds
    no silent group (`rere.training.advantages.silent`) is for the loop.
    """
    loss = clipped(token_ratio(log_prob, old), advantage, packed, clip)
    return mean_of_tokens(penalised(loss, kl, beta), packed, count)


def gspo(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor | None = None,
    old: Tensor | None = None,
    clip: tuple[float, float] = (3e-4, 4e-4),
) -> Tensor:
    """The mean over sequences, each with one ratio.

    A sequence y adds -min(s A, clip(s) A), with s the exponential of its tokens' mean
    log_prob - old, the ratio of its likelihoods to the power 1 / |y|, and its tokens' mean KL.
    Zheng et al. 2025 (arXiv 2507.18071), equation 5, clipped as in their section 5.1.
    """
    loss = clipped(sequence_ratio(log_prob, old, packed), advantage, packed, clip)
    return mean_of_sequences(penalised(loss, kl, beta), packed, count)


def dr_grpo(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor,
    old: Tensor | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
) -> Tensor:
    """The sum over tokens divided by a constant: a token weighs the same in long and short titles.

    `count` is sequences times the longest one's tokens, the same whatever was drawn; it has no
    default. A token adds what it does in `grpo`. Liu et al. 2025 (arXiv 2503.20783), whose other
    half is the advantage of that name.
    """
    loss = clipped(token_ratio(log_prob, old), advantage, packed, clip)
    return mean_of_tokens(penalised(loss, kl, beta), packed, count)


def released_token_mean(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor | None = None,
    old: Tensor | None = None,
) -> Tensor:
    """What ReRe's released code calls DAPO: `grpo` without clipping, the mean over tokens.

    Its ratio is that of the policy to itself, 1, whatever `old` is.
    """
    loss = unclipped(token_ratio(log_prob, None), advantage, packed)
    return mean_of_tokens(penalised(loss, kl, beta), packed, count)


def released_sequence_mean(
    log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor | None,
    beta: float,
    packed: PackedBatch,
    count: Tensor | None = None,
    old: Tensor | None = None,
) -> Tensor:
    """What ReRe's released code calls GSPO: one ratio a sequence, without clipping.

    Its ratio is that of the policy to itself, 1, whatever `old` is, so that value and gradient
    are those of `grpo` without `old`.
    """
    loss = unclipped(sequence_ratio(log_prob, None, packed), advantage, packed)
    return mean_of_sequences(penalised(loss, kl, beta), packed, count)


# --------------------------------------------------------------------------------------- counts


def sequences(length: Tensor, longest: int) -> Tensor:
    """Candidates with a token: length (B, G) tokens of each, 0 where there is none -> ()."""
    return (length > 0).sum()


def tokens(length: Tensor, longest: int) -> Tensor:
    """Tokens of all candidates: length (B, G) -> ()."""
    return length.sum()


def places(length: Tensor, longest: int) -> Tensor:
    """Tokens that the candidates would have if all were as long as the `longest`: (B, G) -> ()."""
    return sequences(length, longest) * longest


class Objective(NamedTuple):
    """A loss, and what it is a mean over."""

    loss: Callable[..., Tensor]
    count: Callable[[Tensor, int], Tensor]


OBJECTIVES = {
    "grpo": Objective(grpo, sequences),
    "dapo": Objective(dapo, tokens),
    "gspo": Objective(gspo, sequences),
    "dr_grpo": Objective(dr_grpo, places),
    "released_token_mean": Objective(released_token_mean, tokens),
    "released_sequence_mean": Objective(released_sequence_mean, sequences),
}

# ---------------------------------------------------------------------- what they are made of


def lengths(packed: PackedBatch) -> Tensor:
    """Tokens of each candidate, 0 where there is none, (B, G) i64."""
    return sum_by_candidate(torch.ones_like(packed.candidate), packed)


def by_token(values: Tensor, packed: PackedBatch) -> Tensor:
    """Values of candidates (B, G) given to each of their tokens, 0 where padded, (B, N)."""
    return torch.cat([values, values.new_zeros(len(values), 1)], 1).gather(1, packed.candidate)


def token_ratio(log_prob: Tensor, old: Tensor | None) -> Tensor:
    """Each token's probability over what it was, (B, N)."""
    return (log_prob - (log_prob.detach() if old is None else old)).exp()


def sequence_ratio(log_prob: Tensor, old: Tensor | None, packed: PackedBatch) -> Tensor:
    """Each candidate's geometric mean of its tokens' ratios, given to each of them, (B, N)."""
    difference = log_prob - (log_prob.detach() if old is None else old)
    mean = sum_by_candidate(difference, packed) / lengths(packed).clamp(min=1)
    return by_token(mean.exp(), packed)


def unclipped(ratio: Tensor, advantage: Tensor, packed: PackedBatch) -> Tensor:
    """-r A of each token, (B, N)."""
    return -ratio * by_token(advantage, packed)


def clipped(
    ratio: Tensor, advantage: Tensor, packed: PackedBatch, clip: tuple[float, float]
) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) of each token, (B, N).

    No gradient where the ratio is further from 1 than it may be, and further would be better.
    """
    low, high = clip
    return torch.maximum(
        unclipped(ratio, advantage, packed),
        unclipped(ratio.clamp(1 - low, 1 + high), advantage, packed),
    )


def penalised(loss: Tensor, kl: Tensor | None, beta: float) -> Tensor:
    """Each token's loss with its KL, (B, N)."""
    return loss if kl is None else loss + beta * kl


def mean_of_sequences(loss: Tensor, packed: PackedBatch, count: Tensor | None) -> Tensor:
    """The candidates' mean loss a token (B, N), added up and divided by `count`."""
    length = lengths(packed)
    total = (sum_by_candidate(loss, packed) / length.clamp(min=1)).sum()
    return total / (sequences(length, 0) if count is None else count)


def mean_of_tokens(loss: Tensor, packed: PackedBatch, count: Tensor | None) -> Tensor:
    """All candidates' loss (B, N) added up and divided by `count`."""
    length = lengths(packed)
    return sum_by_candidate(loss, packed).sum() / (tokens(length, 0) if count is None else count)
