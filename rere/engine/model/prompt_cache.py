"""Prompts that are computed once, for a search and for the training pass behind it.

The policy that is trained is the one that was searched: what its search begins with, the keys and
values of the prompts, its training pass would compute again. Kept with their gradient, they are
what the candidates of that pass hang from (`rere.engine.candidates.scoring.token_scores`).
"""

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rere.engine.model.activation_reuse import Recall
from rere.engine.model.attention import in_rows


class KeptPrompts(list[list[int]]):
    """Prompts, token ids, of which a search keeps what it computes.

    That holds the activations of a training pass over them until its gradient is computed, which
    can be once, and until that pass what layers gave of the tokens fed behind them. Ways to
    candidates without a search of ours keep nothing.
    """

    cache: Cache | None = None  # (B, H, S, D) a layer
    opening: Tensor | None = None  # (X,) i64, tokens behind each that were computed with them
    keep: int = 0  # after how many of the last tokens there were logits
    recall: Recall | None = None  # of what was fed behind them

    def __getitem__(self, index):
        """All of them, as a slice, are themselves: a batch that is not cut keeps its prompts."""
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return super().__getitem__(index)

    @property
    def num_before(self) -> int:
        """The tokens before each one's last, from which its candidates grow."""
        return sum(map(len, self)) - len(self)

    def behind(self) -> Cache:
        """What a pass starts with that computes their last tokens, and what follows these."""
        width = max(map(len, self)) - 1
        cache = PromptCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[:, :, :width], layer.values[:, :, :width], number)
        return cache


class PromptCache(Cache):
    """A cache that gradients flow through, of a pass with padding or without."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=PromptLayer)


class PromptLayer(DynamicLayer):
    def update(self, key_states, value_states, *_, **__):
        return super().update(in_rows(key_states), in_rows(value_states))
