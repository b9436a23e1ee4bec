"""Log-probabilities of given candidates, with gradient, by one forward pass over a packed batch.

B rows, R logits, U predicted tokens, N tokens of all candidates of a row, G candidates per row, V
vocabulary, E allowed tokens of all R logits (`rere.engine.candidates.packing`).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.candidates.packing import AllowedTokens, PackedBatch
from rere.engine.model.forward import forward_logits
from rere.engine.model.softmax import LogSoftmaxAt, entropy, scale_by_temperature


class TokenScores(NamedTuple):
    """Log-probability and entropy of each candidate token; 0 in padding."""

    log_prob: Tensor  # (B, N) f32
    entropy: Tensor  # (B, N) f32, of the distribution of the token, without gradient


def token_log_probs(
    model: PreTrainedModel, packed: PackedBatch, temperature: float = 1.0
) -> Tensor:
    """log p(token | prompt, earlier tokens) of each candidate token at a temperature, (B, N) f32.

    Normalised over the whole vocabulary, or over the tokens that `packed` allows. The model may be
    wrapped for several devices or carry adapters.
    """
    return gather_log_probs(logits_of_candidates(model, packed), packed, temperature)


def token_scores(
    model: PreTrainedModel, packed: PackedBatch, temperature: float = 1.0
) -> TokenScores:
    """The log-probabilities of `token_log_probs`, and the entropies of their distributions."""
    logits = logits_of_candidates(model, packed)
    return TokenScores(
        gather_log_probs(logits, packed, temperature), gather_entropies(logits, packed, temperature)
    )


def sum_by_candidate(values: Tensor, packed: PackedBatch) -> Tensor:
    """The sum of each candidate's token values (B, N), (B, G)."""
    sums = values.new_zeros(len(values), packed.num_candidates + 1)
    return sums.scatter_add(1, packed.candidate, values)[:, :-1]


def logits_of_candidates(model: PreTrainedModel, packed: PackedBatch) -> Tensor:
    """Logits (R, V) of a packed batch."""
    return forward_logits(
        model,
        packed.input_ids,
        packed.position_ids,
        packed.visible,
        packed.position_ids,
        packed.tokens,
        use_cache=False,
    )


def gather_log_probs(logits: Tensor, packed: PackedBatch, temperature: float) -> Tensor:
    """Log-probabilities (B, N) of candidate tokens by logits (R, V).

    The gradient overwrites the logits.
    """
    index, token = packed.logits_index, packed.token
    if packed.allowed is None:
        # torch leaves `apply` without types.
        log_prob: Tensor = LogSoftmaxAt.apply(logits, index, token, temperature)  # type: ignore[no-untyped-call]
    else:
        _, highest, total = normalise_allowed(logits, packed.allowed, temperature)
        norm = highest[index] + total[index].log()
        log_prob = gather_logits(logits, index, token, temperature) - norm
    return repeat_by_candidate(log_prob, packed)


@torch.no_grad()
def gather_entropies(logits: Tensor, packed: PackedBatch, temperature: float) -> Tensor:
    """Entropies (B, N) in nats at candidate tokens by logits (R, V), without gradient."""
    if packed.allowed is None:
        each = entropy(logits, temperature)
    else:
        relative, _, total = normalise_allowed(logits, packed.allowed, temperature)
        total = total.clamp(min=1)  # it is 0 where nothing is predicted
        weighted = relative * relative.exp()
        mean = sum_by_index(weighted, packed.allowed.logits_index, len(logits)) / total
        each = total.log() - mean
    return repeat_by_candidate(each[packed.logits_index], packed)


def normalise_allowed(
    logits: Tensor, allowed: AllowedTokens, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax over allowed tokens, in three parts, from these tokens' logits alone.

    Returns the allowed logits minus the highest one of the same softmax (E,), that highest logit
    (R,), and the sum of the exponentials of the differences (R,).
    """
    index, token = allowed
    chosen = gather_logits(logits, index, token, temperature)
    lowest = chosen.new_full(logits.shape[:1], -torch.inf)
    highest = lowest.scatter_reduce(0, index, chosen.detach(), "amax")
    relative = chosen - highest[index]
    return relative, highest, sum_by_index(relative.exp(), index, len(logits))


def gather_logits(logits: Tensor, index: Tensor, token: Tensor, temperature: float) -> Tensor:
    """logits[index, token] / temperature, shaped as `index`."""
    return scale_by_temperature(logits.flatten()[index * logits.shape[-1] + token], temperature)


def sum_by_index(values: Tensor, index: Tensor, num_logits: int) -> Tensor:
    """The sum of the values of each index, (R,)."""
    return values.new_zeros(num_logits).index_add(0, index, values)


def repeat_by_candidate(values: Tensor, packed: PackedBatch) -> Tensor:
    """Values (U,) of predicted tokens, for every candidate that has the token: (B, N), else 0."""
    return pad(values, (0, 1))[packed.prediction]
