"""Linear layers that recall, in a training pass, what they gave in the search before it.

The policy that is trained is the one that was searched (`rere.engine.kept_prompts`), and its
training pass is over tokens that the search has fed. What a linear layer gives of one is the same
in every pass. So those of the training pass take it from the search, and compute gradients alone.

T tokens of a pass, B rows, Q columns, D wide. A token is known by its row and its place in the
catalogue's tree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from rere.engine.columns import Columns
from rere.engine.linear import gradients


class Recall:
    """What linear layers gave of the tokens of passes without padding."""

    def __init__(self, layers: list[nn.Linear], num_places: int) -> None:
        self.num_places = num_places
        self.results: dict[nn.Linear, list[Tensor]] = {layer: [] for layer in layers}
        self.tokens: list[Tensor] = []

    @contextmanager
    def recording(self, row: Tensor, place: Tensor, columns: Columns) -> Iterator[None]:
        """Keep the results of a pass over the tokens `place` (B, Q) i64 of the rows `row` (B,)."""
        given: dict[nn.Linear, list[Tensor]] = {layer: [] for layer in self.results}
        hooks = [
            layer.register_forward_hook(lambda layer, _, result: given[layer].append(result))
            for layer in given
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.tokens.append(self._numbers(row, place).flatten()[columns.index])
        for layer, results in given.items():
            # Layers that share weights give several, those of an expert only some tokens'.
            if [result.shape[:-1].numel() for result in results] == [columns.num_real]:
                self.results[layer].append(results[0].flatten(0, -2))
            else:
                del self.results[layer]

    @contextmanager
    def recalling(self, place: Tensor, columns: Columns) -> Iterator[None]:
        """For a pass over tokens `place` (B, Q) i64, -1 for others; that forgets all results.

        Tokens that were not fed are computed.
        """
        results, tokens = self.results, self.tokens
        self.results, self.tokens = {}, []
        if not tokens:
            yield
            return
        rows = torch.arange(len(place), device=place.device)
        token = self._numbers(rows, place).flatten()[columns.index]
        source, is_known = find(torch.cat(tokens), token)
        unknown = (~is_known).nonzero()[:, 0]
        layers = list(results)
        for layer in layers:
            layer.forward = partial(recalled, layer, results, source, unknown)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def _numbers(self, row: Tensor, place: Tensor) -> Tensor:
        """A number for each token, -1 where `place` is."""
        return torch.where(place < 0, -1, row[:, None] * self.num_places + place)


def recall_of(model: PreTrainedModel, num_places: int) -> Recall | None:
    """To keep what the linear layers of a model give of a tree's tokens, of `num_places`.

    None in half precision: there, what a layer gives of a token differs from pass to pass by enough
    to make the KL to itself more than 0.
    """
    if torch.finfo(model.dtype).bits < 32 or torch.is_autocast_enabled(model.device.type):
        return None
    layers = model.get_decoder().modules()
    free = [x for x in layers if type(x) is nn.Linear and "forward" not in vars(x)]
    return Recall(free, num_places)


def find(every: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where in `every` (N,) the numbers `wanted` (T,) are, any where they are not; which are."""
    ascending, order = every.sort()
    at = torch.searchsorted(ascending, wanted).clamp(max=len(every) - 1)
    return order[at], ascending[at] == wanted


def recalled(
    layer: nn.Linear,
    results: dict[nn.Linear, list[Tensor]],
    source: Tensor,
    unknown: Tensor,
    states: Tensor,
) -> Tensor:
    """What the layer gives of states (..., D)."""
    if states.shape[:-1].numel() != len(source):  # the last one's, which may leave tokens out
        return linear(states, layer.weight, layer.bias)
    known = torch.cat(results.pop(layer))
    return RecalledLinear.apply(states, layer.weight, layer.bias, known, source, unknown)


class RecalledLinear(torch.autograd.Function):
    """A linear layer whose result is there, but for some tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        known: Tensor,
        source: Tensor,
        unknown: Tensor,
    ) -> Tensor:
        """States (..., D) of T tokens, `source` (T,) which of `known` (N, V) they have."""
        ctx.save_for_backward(states, weight)
        result = known.index_select(0, source)
        result[unknown] = linear(states.flatten(0, -2)[unknown], weight, bias)
        return result.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, gradient), None, None, None
