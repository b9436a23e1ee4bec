"""Key-value caches: of a search, with gradient, and of prompts that search and training share.

B rows, H heads, S tokens, D wide; states are (B, H, S, D) per layer.
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rere.engine.model.attention import in_rows


class GrowingLayer(DynamicLayer):
    """A cache layer with spare capacity, so that a pass copies nothing but its own tokens.

    transformers' layer copies the whole cache in every pass. Sliding windows are left to the mask,
    since a token that is out of one path's window may be in another's.
    """

    length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        key_states, value_states = in_rows(key_states), in_rows(value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = (self._grow(x, end) for x in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, start: int, kept: Tensor) -> None:
        """Drop all tokens behind the first `start` but `kept` (B, N)."""
        self.length = start + kept.shape[1]
        at = (start + kept)[:, None, :, None]
        for states in (self.keys, self.values):
            index = at.expand(-1, states.shape[1], -1, states.shape[-1])
            states[:, :, start : self.length] = states.gather(2, index)

    def _grow(self, states: Tensor, end: int) -> Tensor:
        batch, heads, _, width = states.shape
        grown = states.new_empty(batch, heads, end + end // 2, width)
        grown[:, :, : self.length] = states[:, :, : self.length]
        return grown

    def get_seq_length(self) -> int:
        return self.length


class DifferentiableCache(Cache):
    """A key-value cache that gradients flow through, for passes with or without padding."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DifferentiableLayer)


class DifferentiableLayer(DynamicLayer):
    def update(self, key_states, value_states, *_, **__):
        return super().update(in_rows(key_states), in_rows(value_states))


class PromptCache:
    """Prompts of an RL step, computed once for its rollout and its update.

    The update trains the policy that the rollout has searched, so its forward pass would compute
    the keys and values of the prompts again. A search that gets a `PromptCache` keeps them there,
    with their graph; the candidates of the update continue from them
    (`rere.engine.candidates.scoring`). A cache is filled by one search and serves one backward
    pass, until which it holds the activations of the prompts.
    """

    states: Cache | None = None  # (B, H, S, D) per layer
    prompts: Sequence[Sequence[int]] = ()
    opening: Tensor | None = None  # (X,) i64, tokens that were computed behind each prompt
    logits_to_keep: int = 0  # last tokens of each row whose logits were computed

    @property
    def is_filled(self) -> bool:
        return self.states is not None

    @property
    def num_reused(self) -> int:
        """Prompt tokens that a training pass leaves out: all but the last of each prompt."""
        return sum(map(len, self.prompts)) - len(self.prompts)

    def without_last_tokens(self) -> Cache:
        """The states before each prompt's last token, from which its candidates grow."""
        width = max(map(len, self.prompts)) - 1
        cache = DifferentiableCache()
        for number, layer in enumerate(self.states.layers):
            cache.update(layer.keys[:, :, :width], layer.values[:, :, :width], number)
        return cache
