"""Rows of unequal length as one tensor, and the positions of their tokens.

B rows, L tokens of the longest.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompt ids (B, L) i64, padded with 0 on the left, and where they are real (B, L) bool."""
    length = [len(prompt) for prompt in prompts]
    real = torch.arange(max(length)) >= max(length) - torch.tensor(length)[:, None]
    ids = torch.zeros(real.shape, dtype=torch.long)
    flat = np.fromiter(itertools.chain.from_iterable(prompts), np.int64)
    return ids.masked_scatter(real, torch.from_numpy(flat)), real


def right_pad(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor (B, longest) i64."""
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.long)


def prompt_positions(real: Tensor) -> Tensor:
    """Positions (B, L) i64 that count real tokens from 0; learned positions depend on them."""
    return (real.cumsum(-1) - 1).clamp(min=0)
