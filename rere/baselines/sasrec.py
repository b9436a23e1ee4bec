"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).

    B histories of a batch, T items of the longest, D hidden size, H heads

The paper's network: item embeddings plus learned positions, then blocks of causal self-attention
and a point-wise feed-forward layer of the same width, with layer normalisation before each. An
item's score is the dot product of the last state with its embedding. Two things differ. Padding
has an id and is masked, where the released code finds it by a sum of zero. And positions count
backwards from the latest item, so that padding does not change an item's position.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rere.baselines.network import Network, initialise
from rere.config.baselines import Sasrec


class SasrecModel(Network):
    """Causal self-attention over the items of a history."""

    def __init__(self, options: Sasrec, num_items: int, max_history: int) -> None:
        super().__init__(options, num_items, max_history)
        self.positions = nn.Embedding(max_history, options.hidden_size)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.num_layers))
        self.norm = nn.LayerNorm(options.hidden_size)
        self.apply(initialise)

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """States after each item: (B, T) integers, T <= max_history -> (B, T, D)."""
        length = histories.shape[1]
        ages = torch.arange(length - 1, -1, -1, device=histories.device)  # (T,), 0 the latest
        states = self.dropout(self.items(histories) + self.positions(ages))  # (B, T, D)
        visible = visible_keys(histories == self.padding)
        for block in self.blocks:
            states = block(states, visible)
        return self.norm(states)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, with pre-normalisation and residuals."""

    def __init__(self, options: Sasrec) -> None:
        super().__init__()
        width = options.hidden_size
        self.num_heads = options.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, width),
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, states: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """(B, T, D) states and (B, 1, T, T) visible keys -> (B, T, D)."""
        projected = self.queries_keys_values(self.attention_norm(states))  # (B, T, 3D)
        split = projected.unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, D/H)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=visible,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).flatten(2)  # (B, T, D)
        states = states + self.dropout(self.attention_out(attended))
        return states + self.dropout(self.feed_forward(states))


def visible_keys(padded: torch.Tensor) -> torch.Tensor:
    """The keys that each query may attend to: (B, T), True where padded -> (B, 1, T, T)."""
    length = padded.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=padded.device).tril()
    # Padding attends to itself, since a softmax over no keys would be NaN.
    itself = torch.eye(length, dtype=torch.bool, device=padded.device)
    return (causal & ~padded[:, None, None, :]) | itself
