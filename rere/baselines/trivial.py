"""Two rankings without training, which a trained method should beat."""

import numpy as np
import polars as pl

from rere.baselines.ranking import CountedModel


class PopularityModel(CountedModel):
    """The same ranking after each history: an item's score is its count."""

    def score_items(self, histories: pl.Series) -> np.ndarray:
        return np.tile(self.counts, (len(histories), 1))


class RepeatLastModel(CountedModel):
    """The distinct items of a history, latest first, then the others by popularity.

    An item's score is its count. The d history items score the highest count plus 1 to d, with d
    for the latest.
    """

    def score_items(self, histories: pl.Series) -> np.ndarray:
        scores = np.tile(self.counts, (len(histories), 1))
        for row, history in enumerate(histories.to_list()):
            latest_first = [*dict.fromkeys(reversed(history))]
            scores[row, latest_first] = self.counts.max() + np.arange(len(latest_first), 0, -1)
        return scores
