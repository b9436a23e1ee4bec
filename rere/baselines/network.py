"""The base class of the sequential networks: from histories to states to item scores.

    B histories of a batch, T items of the longest, D hidden size, N items

A network computes a state after each item of a history, from that item and earlier ones. An item's
score is the dot product of a state with the item's input embedding. All networks therefore share
one training loop, the losses and the ranking.
"""

import torch
from torch import nn

from rere.config.baselines import Sequential


class Network(nn.Module):
    """A network whose `forward` maps histories, (B, T) item ids, to states, (B, T, D).

    T is at most `max_history`. Histories are padded on the left with the id `padding`, which is
    the number of items. The amount of padding does not change the states of items.
    """

    def __init__(self, options: Sequential, num_items: int, max_history: int) -> None:
        super().__init__()
        self.padding = num_items
        self.max_history = max_history
        self.items = nn.Embedding(num_items + 1, options.hidden_size, padding_idx=self.padding)

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the next item: (..., D) -> (..., N)."""
        return states @ self.items.weight[: self.padding].T


def initialise(module: nn.Module) -> None:
    """Small normal weights and zero biases, so training starts near the uniform distribution."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
