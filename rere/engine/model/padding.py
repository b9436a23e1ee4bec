"""Rows of unequal length as one padded tensor.

B rows, L tokens of the longest.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompt ids (B, L) i64, padded with 0 on the left, and which are tokens, (B, L) bool."""
    length = [len(prompt) for prompt in prompts]
    is_token = torch.arange(max(length)) >= max(length) - torch.tensor(length)[:, None]
    ids = torch.zeros(is_token.shape, dtype=torch.long)
    flat = np.fromiter(itertools.chain.from_iterable(prompts), np.int64)
    return ids.masked_scatter(is_token, torch.from_numpy(flat)), is_token


def right_pad(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of ids as one tensor (B, L) i64, padded with `fill` on the right."""
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.long)


def token_positions(is_token: Tensor) -> Tensor:
    """Positions (B, L) i64 that count the tokens of each row from 0.

    Models with learned positions depend on them.
    """
    return (is_token.cumsum(-1) - 1).clamp(min=0)
