"""What the networks of sequential recommendation share: items in, states, item scores out.

    B histories in a batch, T items in the longest, D hidden size, N items

Each network turns a history into one state after each of its items, reading no later one, and an
item's score is the dot product of a state with the item's embedding, the same that is read. So
one training loop, one loss and one ranking serve them all.
"""

import torch
from torch import nn

from rere.config.baselines import Sequential


class Network(nn.Module):
    """Histories of item ids to states, states to item scores.

    Histories are padded on the left with the id `padding`, which is the number of items. The
    `forward` of each network takes (B, T) integers, T at most `max_history`, and returns the states
    after each item, (B, T, D). No state of an item depends on how much padding is before it.
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
    """Small normal weights and zero biases, so that training starts near the uniform softmax."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
