"""What all baselines share: scores of all items, and the ranking by them.

B histories of a batch, N items
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

ROWS_PER_BATCH = 512


class Model(Protocol):
    """A fitted baseline."""

    @property
    def max_history(self) -> int | None:
        """How many of a history's latest items it reads; None: all."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What it learned, for a file; C-contiguous."""

    def score_items(self, histories: pl.Series) -> Any:
        """Scores of all items after each history: (B,) lists -> (B, N), a new array or tensor."""

    def top(self, scores: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The best min(length, N) items of each row of scores (B, N), best first, and theirs."""


class CountedModel:
    """The base class of the models whose ties are broken by popularity.

    `counts` (N,) has the items' numbers of training targets.
    """

    max_history: int | None = None

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts.astype(float)
        self.popular = np.argsort(-counts, kind="stable")  # ties to the lower item_id

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    def top(self, scores: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Model.top`; ties go to the more popular item, then to the lower item_id."""
        # Columns are in order of popularity, so a stable sort breaks ties by popularity.
        order = np.argsort(-scores[:, self.popular], axis=1, kind="stable")[:, :length]
        items = self.popular[order]
        return items, np.take_along_axis(scores, items, axis=1)


def rank_top(
    model: Model,
    histories: pl.Series,
    length: int,
    forbidden: Sequence[int] | np.ndarray = (),
    excluded: Sequence[Collection[int]] = (),
    batch_size: int = ROWS_PER_BATCH,
) -> tuple[np.ndarray, np.ndarray]:
    """The `length` best items after each history, best first, and their scores.

    `forbidden` items, and those that `excluded` has for a history, score -inf: they come last.
    Returns two arrays (histories, min(length, N)). There is at least one history.
    """
    best = []
    for start in range(0, len(histories), batch_size):
        scores = model.score_items(histories[start : start + batch_size])
        if len(forbidden):
            scores[:, forbidden] = -np.inf
        for row, items in enumerate(excluded[start : start + batch_size]):
            if items:
                scores[row, [*items]] = -np.inf
        best.append(model.top(scores, length))
    items, scores = zip(*best, strict=True)
    return np.concatenate(items), np.concatenate(scores)
