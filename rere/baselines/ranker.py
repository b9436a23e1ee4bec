"""Rank items after histories with a fitted baseline."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch

from rere.baselines.model_folder import FittedBaseline, load_baseline
from rere.baselines.ranking import ROWS_PER_BATCH, Model, rank_top
from rere.errors import InputError, out_of_memory
from rere.evaluation.ranking import Ranking


@dataclass(frozen=True)
class BaselineRanker:
    """A baseline and the items that may be ranked; a `rere.evaluation.ranking.Ranker`."""

    name: str
    model: Model
    is_allowed: np.ndarray  # (items,) bool

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> tuple[Self, FittedBaseline]:
        """The ranker of all items, and what is in the folder; raises InputError as that does."""
        with out_of_memory(f"{folder} does not fit; take another device"):
            fitted = load_baseline(folder, device)
        everything = np.ones(len(fitted.items), dtype=bool)
        return cls(fitted.options.model, fitted.model, everything), fitted

    def only(self, items: Sequence[int]) -> Self:
        is_allowed = np.zeros_like(self.is_allowed)
        is_allowed[items] = True
        return replace(self, is_allowed=is_allowed)

    def with_titles(self, titles: Sequence[str]) -> Self:
        """Raises InputError: a baseline knows nothing of new items, such as their counts."""
        raise InputError(
            f"with_items: {self.name} ranks only the items of its data set; "
            "add the new ones there and make the model again"
        )

    def numbers_of(self, items: Sequence[int]) -> np.ndarray:
        """The items themselves, (items,) i64; -1 for those not allowed."""
        wanted = np.asarray(items, dtype=np.int64)
        return np.where(self.is_allowed[wanted], wanted, -1)

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        excluded: Sequence[Collection[int]],
        top: int,
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, Ranking]]:
        """As `Ranker.rank`; scores are the baseline's own."""
        if not histories:
            return
        batch_size = batch_size or ROWS_PER_BATCH
        with out_of_memory(f"lower batch_size (now {batch_size} rows per pass)"):
            ranked, scores = rank_top(
                self.model,
                pl.Series(histories, dtype=pl.List(pl.Int32)),
                top,
                np.flatnonzero(~self.is_allowed),
                excluded,
                batch_size,
            )
        num_allowed = int(self.is_allowed.sum())
        for row, without in enumerate(excluded):
            left = num_allowed - int((self.numbers_of([*without]) >= 0).sum())
            yield row, (ranked[row, :left].tolist(), scores[row, :left].tolist())
