"""Softmax over the vocabulary, in float32 at least, a few rows of logits at a time.

Several operations run over the same logits. They are memory-bound unless the rows stay in the
processor's cache in between.

R rows, V vocabulary, U pairs of a row and a token.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_IN_CACHE = {"cpu": 2**19}
"""Logits that are processed at a time, by device: as many as its cache holds."""
LOGITS_IN_CACHE_ELSEWHERE = 2**26


def upcast(logits: Tensor) -> Tensor:
    """Logits in float32 at least; half precision is too coarse to add up log-probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, in float32 at least; the same tensor where that changes nothing."""
    return upcast(logits) if temperature == 1 else upcast(logits) / temperature


def rows_at_once(logits: Tensor) -> int:
    """How many rows of logits (R, V) are processed at a time."""
    limit = LOGITS_IN_CACHE.get(logits.device.type, LOGITS_IN_CACHE_ELSEWHERE)
    return max(1, limit // logits.shape[-1])


def logsumexp_of_rows(logits: Tensor, temperature: float) -> Tensor:
    """The log-sum-exp of each row of logits (R, V), (R,), without gradient."""
    highest, total = max_and_sum(logits, temperature)
    return (highest + total.log())[:, 0]


@torch.no_grad()
def max_and_sum(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The maximum m of each row of scaled logits (R, V), and sum(exp(logit - m)), both (R, 1)."""
    chunks = logits.split(rows_at_once(logits))
    # One buffer for all chunks: newly allocated memory is not in the cache.
    buffer = torch.empty_like(chunks[0], dtype=upcast(logits[:0]).dtype)
    highest, total = [], []
    for chunk in chunks:
        scaled = scale_by_temperature(chunk, temperature)
        highest.append(scaled.amax(-1, keepdim=True))
        power = torch.sub(scaled, highest[-1], out=buffer[: len(chunk)]).exp_()
        total.append(power.sum(-1, keepdim=True))
    return torch.cat(highest), torch.cat(total)


@torch.no_grad()
def entropy(logits: Tensor, temperature: float) -> Tensor:
    """The entropy in nats of each row of logits (R, V), (R,), without gradient."""
    entropies = []
    for chunk in logits.split(rows_at_once(logits)):
        log_prob = scale_by_temperature(chunk, temperature).log_softmax(-1)
        # A token of probability 0 adds nothing, but 0 times its -inf is NaN.
        entropies.append(-log_prob.exp().mul_(log_prob).nansum(-1))
    return torch.cat(entropies)


class LogSoftmaxAt(torch.autograd.Function):
    """The log-softmax of logits, at some (row, token) pairs, all of them different.

    The gradient overwrites the logits, so that no second tensor of their size is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, source: Tensor, target: Tensor, temperature: float
    ) -> Tensor:
        """logits (R, V), rows `source` and tokens `target` (U,) i64 -> (U,)."""
        highest, total = max_and_sum(logits, temperature)
        norm = (highest + total.log())[:, 0]
        log_prob = scale_by_temperature(logits[source, target], temperature) - norm[source]
        ctx.temperature = temperature
        ctx.save_for_backward(logits, highest, total, source, target, log_prob)
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, highest, total, source, target, log_prob = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        weight = gradient.new_zeros(len(logits)).index_add_(0, source, gradient)
        # In place: nothing else reads the logits, and autograd raises if something does.
        factors = -weight[:, None] / total
        chunks = (x.split(rows_at_once(logits)) for x in (logits, highest, factors))
        for chunk, chunk_highest, factor in zip(*chunks, strict=True):
            scaled = scale_by_temperature(chunk, ctx.temperature)
            chunk.copy_(scaled.sub_(chunk_highest).exp_().mul_(factor))
        # At a target almost equal numbers may be subtracted: do it before rounding.
        at_target = gradient - weight[source] * log_prob.exp()
        logits[source, target] = at_target.to(logits.dtype)
        return logits, None, None, None
