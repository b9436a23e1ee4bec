"""The base class of the sequential networks: from histories to states to item scores.

    B histories of a batch, T items of the longest, D hidden size, N items

A network computes a state after each item of a history, from that item and earlier ones. An item's
score is the dot product of a state with the item's input embedding. All networks therefore share
one training loop, the losses and the ranking.
"""

import numpy as np
import polars as pl
import torch
from torch import nn

from rere.baselines.ranking import ROWS_PER_BATCH
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

    @torch.no_grad()
    def last_states(self, histories: pl.Series) -> torch.Tensor:
        """The state after each history, (rows, D) on the model's device.

        The model reads the latest `max_history` items.
        """
        self.eval()
        batches = pad_left(histories, self.max_history, self.padding).split(ROWS_PER_BATCH)
        return torch.cat([self(batch.to(self.items.weight.device))[:, -1] for batch in batches])

    @torch.no_grad()
    def score_items(self, histories: pl.Series) -> torch.Tensor:
        """Logits of all items after each history, (rows, N) on the model's device."""
        return self.scores(self.last_states(histories))

    def top(self, scores: torch.Tensor, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each row of scores (rows, N), int64, and their logits, float32."""
        best = scores.topk(min(length, scores.shape[1]))
        return best.indices.cpu().numpy(), best.values.cpu().numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        weights = self.state_dict()
        return {name: np.ascontiguousarray(each.cpu().numpy()) for name, each in weights.items()}


def pad_left(histories: pl.Series, width: int, padding: int) -> torch.Tensor:
    """The latest `width` items of each history, padded on the left: (rows, width) int32."""
    latest = histories.list.tail(width)
    lengths = latest.list.len().to_numpy()
    array = np.full((len(latest), width), padding, dtype=np.int32)
    array[np.arange(width) >= width - lengths[:, None]] = latest.explode().drop_nulls().to_numpy()
    return torch.from_numpy(array)


def initialise(module: nn.Module) -> None:
    """Small normal weights and zero biases, so training starts near the uniform distribution."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
