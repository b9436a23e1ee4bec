"""Caser: convolutional sequence embedding (Tang & Wang, "Personalized Top-N Sequential
Recommendation via Convolutional Sequence Embedding", WSDM 2018).

    B histories of a batch, T items of the longest, D hidden size, L items of the window,
    F horizontal filters per height, V vertical filters

The paper's network reads the latest L items as an L x D image. Horizontal filters of each height
1 .. L are max-pooled over their positions, vertical filters cover the L items, and a fully
connected layer follows. Three things differ. There is no user embedding, since test users need
not be in the training split. Input and output embeddings are shared, where the paper has two
matrices. And all positions of a history share the convolutions: the windows that end at its items
are views of one sequence.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rere.baselines.network import Network, initialise
from rere.config.baselines import Caser


class CaserModel(Network):
    """Convolutions over the latest items of a history."""

    def __init__(self, options: Caser, num_items: int, max_history: int) -> None:
        super().__init__(options, num_items, max_history)
        width, filters = options.hidden_size, options.horizontal_filters
        self.window = options.window
        self.horizontal = nn.ModuleList(
            nn.Conv1d(width, filters, height) for height in range(1, self.window + 1)
        )
        self.vertical = nn.Conv2d(1, options.vertical_filters, (self.window, 1))
        self.dropout = nn.Dropout(options.dropout)
        features = filters * self.window + options.vertical_filters * width
        self.out = nn.Linear(features, width)
        initialise(self.items)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """States after each item: (B, T) -> (B, T, D); padding has zero embeddings."""
        embedded = self.items(histories)
        embedded = embedded.masked_fill((histories == self.padding)[..., None], 0.0)
        embedded = F.pad(embedded, (0, 0, self.window - 1, 0))  # (B, L - 1 + T, D)
        image = embedded.transpose(1, 2)  # (B, D, L - 1 + T)
        # A filter of height h has L - h + 1 positions in each window.
        horizontal = [
            F.max_pool1d(F.relu(filters(image)), self.window - height + 1, stride=1)  # (B, F, T)
            for height, filters in enumerate(self.horizontal, start=1)
        ]
        vertical = self.vertical(embedded[:, None])  # (B, V, T, D)
        vertical = vertical.transpose(1, 2).flatten(2)  # (B, T, V * D)
        features = torch.cat(horizontal, dim=1).transpose(1, 2)  # (B, T, F * L)
        features = self.dropout(torch.cat([features, vertical], dim=2))
        return F.relu(self.out(features))
