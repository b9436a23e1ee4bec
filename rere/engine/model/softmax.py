"""The softmax over a vocabulary, some rows of logits at a time, in float32 at least.

A pass over a vocabulary's logits is as fast as memory unless the rows stay in a cache between its
operations. R rows, V vocabulary, U pairs of a row and a token.
"""

from typing import Any

import torch
from torch import Tensor

AT_ONCE = {"cpu": 2**19}
"""Logits that are taken at a time, by device: as many as its cache holds."""
AT_ONCE_ELSEWHERE = 2**26


def upcast(logits: Tensor) -> Tensor:
    """Logits in float32 at least; half precision is too coarse to add log-probabilities up."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature, in float32 at least; no copy where there is nothing to do."""
    return upcast(logits) if temperature == 1 else upcast(logits) / temperature


def rows_at_once(logits: Tensor) -> int:
    return max(1, AT_ONCE.get(logits.device.type, AT_ONCE_ELSEWHERE) // logits.shape[-1])


def logsumexp_of_rows(logits: Tensor, temperature: float) -> Tensor:
    """The logarithm of the vocabulary's sum, of logits (R, V), (R,), without gradient."""
    highest, total = sums(logits, temperature)
    return (highest + total.log())[:, 0]


@torch.no_grad()
def sums(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The highest of each row of logits (R, V), and the sum of powers relative to it, (R, 1)."""
    parts = logits.split(rows_at_once(logits))
    # The same room for all: whatever is allocated anew may be new to the cache, too.
    room = torch.empty_like(parts[0], dtype=upcast(logits[:0]).dtype)
    highest, total = [], []
    for part in parts:
        scaled = scale_by_temperature(part, temperature)
        highest.append(scaled.amax(-1, keepdim=True))
        power = torch.sub(scaled, highest[-1], out=room[: len(part)]).exp_()
        total.append(power.sum(-1, keepdim=True))
    return torch.cat(highest), torch.cat(total)


@torch.no_grad()
def entropy(logits: Tensor, temperature: float) -> Tensor:
    """The entropy in nats of each row of logits (R, V), (R,), without gradient."""
    entropies = []
    for part in logits.split(rows_at_once(logits)):
        log_prob = scale_by_temperature(part, temperature).log_softmax(-1)
        # A token that is ruled out counts for nothing: its 0 times infinity is no number.
        entropies.append(-log_prob.exp().mul_(log_prob).nansum(-1))
    return torch.cat(entropies)


class LogSoftmaxAt(torch.autograd.Function):
    """The log-softmax of logits at some places. The pairs of source and target differ.

    Beside the logits nothing is as large: their gradient takes their place.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, source: Tensor, target: Tensor, temperature: float
    ) -> Tensor:
        """logits (R, V), source and target (U,) -> (U,)."""
        highest, total = sums(logits, temperature)
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
        # In their place: nobody else asks for them, and autograd raises if anyone does.
        parts = (x.split(rows_at_once(logits)) for x in (logits, highest, -weight[:, None] / total))
        for part, part_highest, factor in zip(*parts, strict=True):
            scaled = scale_by_temperature(part, ctx.temperature)
            part.copy_(scaled.sub_(part_highest).exp_().mul_(factor))
        # At a target two numbers that may be almost equal are subtracted: before rounding.
        at_target = gradient - weight[source] * log_prob.exp()
        logits[source, target] = at_target.to(logits.dtype)
        return logits, None, None, None
