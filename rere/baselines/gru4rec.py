"""GRU4Rec: recurrent sequential recommendation (Hidasi et al., "Session-based Recommendations with
Recurrent Neural Networks", ICLR 2016).

    B histories of a batch, T items of the longest, D hidden size

The paper's network: item embeddings, GRU layers, a feed-forward layer, item scores. Three things
differ. Input and output embeddings are shared (the constrained embedding of the authors' later
code), which halves the parameters. The losses are those of `rere.baselines.sequential`, where the
paper samples negatives from the mini-batch. And every training row is a separate history, where
the paper carries states over from batch to batch.
"""

import torch
from torch import nn

from rere.baselines.network import Network, initialise
from rere.config.baselines import Gru4rec


class Gru4recModel(Network):
    """A recurrence over the items of a history."""

    def __init__(self, options: Gru4rec, num_items: int, max_history: int) -> None:
        super().__init__(options, num_items, max_history)
        width, layers = options.hidden_size, options.num_layers
        self.dropout = nn.Dropout(options.dropout)
        between = options.dropout if layers > 1 else 0.0
        self.gru = nn.GRU(width, width, layers, batch_first=True, dropout=between)
        self.out = nn.Linear(width, width)
        initialise(self.items)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """States after each item: (B, T) -> (B, T, D); before the first item, the state is zero."""
        padded = histories == self.padding
        # Move the padding behind the items, where it does not change their states.
        length = histories.shape[1]
        shift = padded.sum(dim=1, keepdim=True)  # (B, 1)
        positions = torch.arange(length, device=histories.device)
        leftwards = ((positions + shift) % length)[..., None]  # (B, T, 1)
        rightwards = ((positions - shift) % length)[..., None]
        embedded = self.dropout(self.items(histories))  # (B, T, D)
        states, _ = self.gru(embedded.take_along_dim(leftwards, dim=1))
        states = states.take_along_dim(rightwards, dim=1)
        return self.out(states.masked_fill(padded[..., None], 0.0))
