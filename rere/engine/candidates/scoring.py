"""Log-probabilities of given candidates, with gradient, what they share computed once.

B rows, R places with logits, U predicted tokens, N tokens of all candidates of a row, G
candidates, V vocabulary, E allowed tokens of all places.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.candidates.packing import Allowed, Packed
from rere.engine.model.forward import forward_logits
from rere.engine.model.prompt_cache import KeptPrompts
from rere.engine.model.softmax import LogSoftmaxAt, entropy, scale_by_temperature


class Scores(NamedTuple):
    """What the model says of each candidate's tokens; 0 where `packed.candidate` is padding."""

    log_prob: Tensor  # (B, N) f32
    entropy: Tensor  # (B, N) f32, of the distribution that the token is drawn from; no gradient


def token_log_probs(
    model: PreTrainedModel,
    packed: Packed,
    temperature: float = 1.0,
    prompts: KeptPrompts | None = None,
) -> Tensor:
    """log p(token | prompt, earlier tokens) at a temperature, (B, N) f32.

    Over the whole vocabulary, or among the tokens that `packed` allows. The model may be wrapped
    for several devices or carry adapters. `prompts` are those of `packed` where the model has
    computed and kept them, with the weights that it has now and without dropout.
    """
    return log_probs(logits_at_places(model, packed, prompts), packed, temperature)


def token_scores(
    model: PreTrainedModel,
    packed: Packed,
    temperature: float = 1.0,
    prompts: KeptPrompts | None = None,
) -> Scores:
    """The log-probabilities of `token_log_probs`, and the entropies there."""
    logits = logits_at_places(model, packed, prompts)
    every = log_probs(logits, packed, temperature), entropies(logits, packed, temperature)
    return Scores(*every)


def sum_by_candidate(values: Tensor, packed: Packed) -> Tensor:
    """Token values (B, N) added up candidate by candidate, (B, G)."""
    sums = values.new_zeros(len(values), packed.num_candidates + 1)
    return sums.scatter_add(1, packed.candidate, values)[:, :-1]


def logits_at_places(model: PreTrainedModel, packed: Packed, prompts: KeptPrompts | None) -> Tensor:
    """(R, V), computed with the prompts or behind those that were kept."""
    first, columns = 0, packed.columns
    cache, recalling = {"use_cache": False}, nullcontext()
    if prompts is not None and prompts.cache is not None:
        first, num_tokens = packed.first_node, packed.num_tokens - prompts.num_before
        columns = columns._replace(real=packed.real[:, first:], num_tokens=num_tokens)
        cache = {"past_key_values": prompts.behind()}
        if prompts.recall is not None:
            recalling = prompts.recall.recalling(packed.tree_place, columns)
    with recalling:
        return forward_logits(
            model,
            packed.input_ids[:, first:],
            packed.position_ids[:, first:],
            packed.visible[:, first:],
            packed.position_ids,
            columns,
            **cache,
        )


def log_probs(logits: Tensor, packed: Packed, temperature: float) -> Tensor:
    """By the logits at the places (R, V), whose room their gradient takes, (B, N)."""
    source, target = packed.source, packed.target
    if packed.allowed is None:
        log_prob = LogSoftmaxAt.apply(logits, source, target, temperature)
    else:
        _, highest, total = among_allowed(logits, packed.allowed, temperature)
        norm = highest[source] + total[source].log()
        log_prob = at_tokens(logits, source, target, temperature) - norm
    return by_candidate(log_prob, packed)


@torch.no_grad()
def entropies(logits: Tensor, packed: Packed, temperature: float) -> Tensor:
    """By the logits at the places (R, V), (B, N); no gradient."""
    if packed.allowed is None:
        each = entropy(logits, temperature)
    else:
        relative, _, total = among_allowed(logits, packed.allowed, temperature)
        total = total.clamp(min=1)  # of no tokens, where nothing is predicted
        weighted = relative * relative.exp()
        each = total.log() - add_up(weighted, packed.allowed.source, len(logits)) / total
    return by_candidate(each[packed.source], packed)


def among_allowed(
    logits: Tensor, allowed: Allowed, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of allowed tokens relative to their place's highest, (E,).

    With them the highest at each place and the sum of the powers relative to it, (R,). Only these
    tokens' logits are looked at; no place has room for more of them than it has.
    """
    source, token = allowed
    among = at_tokens(logits, source, token, temperature)
    lowest = among.new_full(logits.shape[:1], -torch.inf)
    highest = lowest.scatter_reduce(0, source, among.detach(), "amax")
    relative = among - highest[source]
    return relative, highest, add_up(relative.exp(), source, len(logits))


def at_tokens(logits: Tensor, source: Tensor, token: Tensor, temperature: float) -> Tensor:
    return scale_by_temperature(logits.flatten()[source * logits.shape[-1] + token], temperature)


def add_up(values: Tensor, source: Tensor, num_places: int) -> Tensor:
    """The sum at each place, (R,)."""
    return values.new_zeros(num_places).index_add(0, source, values)


def by_candidate(values: Tensor, packed: Packed) -> Tensor:
    """Values of the predicted tokens (U,) where candidates have them, (B, N), 0 elsewhere."""
    return pad(values, (0, 1))[packed.prediction]
