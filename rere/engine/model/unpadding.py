"""UnpaddedTokens of a batch without their padding.

Rows of unequal length are padded to a common one. But layers take tokens one by one, save for
attention (`rere.engine.model.attention`): they get the real tokens of all rows as one row.

B rows, Q columns, T of B Q with a token, N of these with logits, H heads, D wide, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class UnpaddedTokens(NamedTuple):
    """Which columns have a token. Logits are asked for after the last `keep` of each row."""

    real: Tensor  # (B, Q) bool
    num_tokens: int  # T
    keep: int
    num_logits: int  # N

    @property
    def index(self) -> Tensor:
        """Where in (B Q,) the tokens are, (T,) i64: row by row, those with logits last."""
        is_kept = torch.arange(self.real.shape[1], device=self.real.device)
        is_kept = is_kept >= self.real.shape[1] - self.keep
        order = torch.where(self.real, is_kept.int(), 2).flatten()
        return order.argsort(stable=True)[: self.num_tokens]

    @property
    def place(self) -> Tensor:
        """Which of the N each of the last columns is, (B, keep) i64; any where there is none."""
        kept = self.real[:, -self.keep :]
        return (kept.flatten().cumsum(0) - 1).clamp(min=0).view_as(kept)

    def of_kept(self, logits: Tensor) -> Tensor:
        """The logits (N, V) of all those of the last columns, (B, keep, V)."""
        logits = logits.flatten(0, 1)
        if self.num_logits == len(logits):
            return logits
        missing = ~self.real[:, -self.keep :]
        return logits[missing.flatten().int().argsort(stable=True)[: self.num_logits]]
