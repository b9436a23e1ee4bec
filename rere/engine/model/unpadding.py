"""Compute the tokens of a padded batch without their padding.

Rows of unequal length are padded to a common width. All layers but attention handle tokens one by
one, so they get the tokens of all rows as one long row; attention restores the rows
(`rere.engine.model.attention`).

B rows, Q columns, T tokens in them, N of these with logits, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class UnpaddedTokens(NamedTuple):
    """The tokens of a padded batch, and which of them need logits.

    Logits are needed after the tokens in the last `logits_to_keep` columns of each row. The counts
    are given, so that no pass waits for the device to learn them.
    """

    is_token: Tensor  # (B, Q) bool
    num_tokens: int  # T
    logits_to_keep: int
    num_logits: int  # N

    @property
    def token_index(self) -> Tensor:
        """Indices of the tokens in the flattened batch, (T,) i64 in [0, B Q).

        Tokens without logits come first, then those with logits, each in row order.
        """
        column = torch.arange(self.is_token.shape[1], device=self.is_token.device)
        needs_logits = column >= self.is_token.shape[1] - self.logits_to_keep
        group = torch.where(self.is_token, needs_logits.int(), 2).flatten()
        return group.argsort(stable=True)[: self.num_tokens]

    @property
    def logits_index(self) -> Tensor:
        """Which of the N logits belongs to each of the last columns, (B, logits_to_keep) i64.

        Arbitrary where a column has no token.
        """
        is_token = self.is_token[:, -self.logits_to_keep :]
        return (is_token.flatten().cumsum(0) - 1).clamp(min=0).view_as(is_token)

    def drop_padding(self, logits: Tensor) -> Tensor:
        """The logits (N, V) of tokens, out of those of all last columns (B, logits_to_keep, V)."""
        logits = logits.flatten(0, 1)
        if self.num_logits == len(logits):
            return logits
        is_padding = ~self.is_token[:, -self.logits_to_keep :]
        return logits[is_padding.flatten().int().argsort(stable=True)[: self.num_logits]]
