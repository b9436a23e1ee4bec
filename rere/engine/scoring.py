"""Log-probabilities of given candidates, with gradient, what they share computed once.

B rows, R places with logits, U predicted tokens, N tokens of all candidates of a row, G
candidates, V vocabulary, E allowed tokens of all places.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.forward import logits_of
from rere.engine.packing import Packed, upcast

AT_ONCE = {"cpu": 2**19}
"""Logits whose probabilities are held at a time, by device: as many as its cache holds."""
AT_ONCE_ELSEWHERE = 2**26


class Scores(NamedTuple):
    """What the model says of each candidate's tokens; 0 where `packed.candidate` is padding."""

    log_prob: Tensor  # (B, N) f32
    entropy: Tensor  # (B, N) f32, of the distribution that the token is drawn from; no gradient


def token_log_probs(model: PreTrainedModel, packed: Packed, temperature: float = 1.0) -> Tensor:
    """The log-probabilities of `token_scores`, (B, N) f32."""
    return token_scores(model, packed, temperature).log_prob


def token_scores(model: PreTrainedModel, packed: Packed, temperature: float = 1.0) -> Scores:
    """log p(token | prompt, earlier tokens) and the entropy there, at a temperature.

    Over the whole vocabulary, or among the tokens that `packed` allows. The model may be wrapped
    for several devices or carry adapters.
    """
    position = packed.position_ids
    logits = logits_of(
        model,
        packed.input_ids,
        position,
        packed.visible,
        position,
        packed.columns,
        use_cache=False,
    )  # (R, V)
    if packed.allowed is None:
        log_prob, entropy = LogSoftmaxAt.apply(logits, packed.source, packed.target, temperature)
    else:
        log_prob, entropy = among_allowed(logits, packed, temperature)
    scores = (log_prob, entropy[packed.source])
    return Scores(*(pad(x, (0, 1))[packed.prediction] for x in scores))


def sum_by_candidate(values: Tensor, packed: Packed) -> Tensor:
    """Token values (B, N) added up candidate by candidate, (B, G)."""
    sums = values.new_zeros(len(values), packed.num_candidates + 1)
    return sums.scatter_add(1, packed.candidate, values)[:, :-1]


def among_allowed(logits: Tensor, packed: Packed, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (U,) of targets among the allowed tokens, and each place's entropy (R,).

    Only these tokens' logits are looked at; no place has room for more of them than it has.
    """
    source, token = packed.allowed
    chosen, among = (
        heated(logits.flatten()[at * logits.shape[-1] + token], temperature)
        for at, token in ((packed.source, packed.target), (source, token))
    )
    lowest = among.new_full(logits.shape[:1], -torch.inf)
    highest = lowest.scatter_reduce(0, source, among.detach(), "amax")
    relative = among - highest[source]
    total = torch.zeros_like(highest).index_add(0, source, relative.exp())
    norm = highest[packed.source] + total[packed.source].log()
    with torch.no_grad():
        total = total.clamp(min=1)  # of no tokens, where nothing is predicted
        weighted = torch.zeros_like(total).index_add(0, source, relative * relative.exp())
        entropy = total.log() - weighted / total
    return chosen - norm, entropy


class LogSoftmaxAt(torch.autograd.Function):
    """The log-softmax of logits at some places, and the entropy of each row, in float32.

    Rows are taken some at a time, so that beside the logits only their gradient is as large, in
    their own type. The pairs of source and target differ.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, source: Tensor, target: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """logits (R, V), source and target (U,) -> (U,) and (R,), the latter without gradient."""
        norms, entropies = [], []
        for part in logits.split(rows_at_once(logits)):
            scaled = heated(part, temperature)
            probability = scaled.softmax(-1)
            norms.append(scaled.amax(-1) - probability.amax(-1).log())
            # A token that is ruled out counts for nothing: its 0 times infinity is no number.
            entropies.append(norms[-1] - probability.mul_(scaled).nansum(-1))
        norm, entropy = torch.cat(norms), torch.cat(entropies)
        log_prob = heated(logits[source, target], temperature) - norm[source]
        ctx.temperature = temperature
        ctx.save_for_backward(logits, source, target, log_prob)
        ctx.mark_non_differentiable(entropy)
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, source, target, log_prob = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        weight = gradient.new_zeros(len(logits)).index_add_(0, source, gradient)
        # In their place: nobody else asks for them, and autograd raises if anyone does.
        parts = (x.split(rows_at_once(logits)) for x in (logits, weight[:, None]))
        for part, part_weight in zip(*parts, strict=True):
            probability = heated(part, ctx.temperature).softmax(-1)
            torch.mul(probability, -part_weight, out=part)
        # At a target two numbers that may be almost equal are subtracted: before rounding.
        at_target = gradient - weight[source] * log_prob.exp()
        logits[source, target] = at_target.to(logits.dtype)
        return logits, None, None, None


def heated(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature, in float32 at least; no copy where there is nothing to do."""
    return upcast(logits) if temperature == 1 else upcast(logits) / temperature


def rows_at_once(logits: Tensor) -> int:
    return max(1, AT_ONCE.get(logits.device.type, AT_ONCE_ELSEWHERE) // logits.shape[-1])
