"""Linear layers that recall, in a training pass, what they gave in the search before it.

The policy that is trained is the one that was searched (`rere.engine.model.prompt_cache`), and its
training pass is over tokens that the search has fed. What a linear layer gives of one is the same
in every pass, but for rounding. So those of the training pass take it from the search, and compute
gradients alone.

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

from rere.engine.model.linear_layers import gradients, instead, is_plain
from rere.engine.model.unpadding import UnpaddedTokens


class RecordedActivations:
    """What linear layers gave of the tokens of passes without padding."""

    def __init__(self, layers: list[nn.Linear], rows: Tensor, num_places: int) -> None:
        self.rows, self.num_places = rows, num_places  # (B,) i64, those that go on
        self.results: dict[nn.Linear, list[Tensor]] = {layer: [] for layer in layers}
        self.recorded: list[Tensor] = []

    def select(self, rows: Tensor) -> None:
        """Go on with the rows `rows` (N,) alone."""
        self.rows = self.rows[rows]

    @contextmanager
    def record(self, place: Tensor, tokens: UnpaddedTokens) -> Iterator[None]:
        """Keep the results of a pass over the tokens `place` (B, Q) i64 of the rows that go on."""
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
        self.recorded.append(self._numbers(self.rows, place).flatten()[tokens.index])
        for layer, results in given.items():
            # Layers that share weights give several, those of an expert only some tokens'.
            if [result.shape[:-1].numel() for result in results] == [tokens.num_tokens]:
                self.results[layer].append(results[0].flatten(0, -2))
            else:
                del self.results[layer]

    @contextmanager
    def replay(self, place: Tensor, tokens: UnpaddedTokens) -> Iterator[None]:
        """For a pass over tokens `place` (B, Q) i64, -1 for others; that forgets all results.

        Tokens that were not fed are computed.
        """
        results, recorded = self.results, self.recorded
        self.results, self.recorded = {}, []
        if not recorded:
            yield
            return
        rows = torch.arange(len(place), device=place.device)
        wanted = self._numbers(rows, place).flatten()[tokens.index]
        sources = [found(fed, wanted) for fed in recorded]
        is_new = torch.ones_like(wanted, dtype=torch.bool)
        is_new[torch.cat([at for at, _ in sources])] = False
        new = is_new.nonzero()[:, 0]
        with instead({layer: partial(replayed, layer, results, sources, new) for layer in results}):
            yield

    def _numbers(self, row: Tensor, place: Tensor) -> Tensor:
        """A number for each token, -1 where `place` is."""
        return torch.where(place < 0, -1, row[:, None] * self.num_places + place)


def start_recording(
    model: PreTrainedModel, num_rows: int, num_places: int
) -> RecordedActivations | None:
    """To keep what a model's linear layers give of a tree's tokens, of `num_places`, by row.

    None where rounding is coarse.
    """
    if uses_half_precision(model):
        return None
    layers = [layer for layer in model.get_decoder().modules() if is_plain(layer)]
    return RecordedActivations(layers, torch.arange(num_rows, device=model.device), num_places)


def uses_half_precision(model: PreTrainedModel) -> bool:
    """Whether what it computes in half precision differs from pass to pass by more than next to 0.

    Then a policy is at no KL from where it started only if both are computed in the same passes.
    """
    is_half = torch.finfo(model.dtype).bits < 32
    return is_half or torch.is_autocast_enabled(model.device.type)


def found(fed: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the numbers `wanted` (T,) are among `fed` (N,), and which of those each one is."""
    ascending, order = fed.sort()
    at = torch.searchsorted(ascending, wanted).clamp(max=len(fed) - 1)
    is_there = (ascending[at] == wanted).nonzero()[:, 0]
    return is_there, order[at[is_there]]


def replayed(
    layer: nn.Linear,
    results: dict[nn.Linear, list[Tensor]],
    sources: list[tuple[Tensor, Tensor]],
    new: Tensor,
    states: Tensor,
) -> Tensor:
    """What the layer gives of states (..., D).

    Of those `new` (N,) it computes it; `sources` say where the others' is, pass by pass.
    """
    num_replayed = sum(len(at) for at, _ in sources)
    if states.shape[:-1].numel() != num_replayed + len(new):  # the last layer may leave some out
        return linear(states, layer.weight, layer.bias)
    given = results.pop(layer)
    return ReplayedLinear.apply(states, layer.weight, layer.bias, given, sources, new)


class ReplayedLinear(torch.autograd.Function):
    """A linear layer whose result is there, but for some tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        given: list[Tensor],
        sources: list[tuple[Tensor, Tensor]],
        new: Tensor,
    ) -> Tensor:
        """States (..., D), `given` (N, V) a pass."""
        ctx.save_for_backward(states, weight)
        flat = states.flatten(0, -2)
        result = flat.new_empty(len(flat), len(weight))
        # Pass by pass: of all passes joined, the copy would be as large as the result.
        for each, (at, source) in zip(given, sources, strict=True):
            result.index_copy_(0, at, each.index_select(0, source))
        result[new] = linear(flat[new], weight, bias)
        return result.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, gradient), None, None, None
