"""Item-based nearest neighbours (Sarwar et al., "Item-Based Collaborative Filtering Recommendation
Algorithms", WWW 2001; Deshpande & Karypis, ACM TOIS 2004).

The similarity of two items is the cosine of their columns in a binary matrix. An item's score is
the sum of its similarities to the items of the history. A row of the matrix is a training row with
its history and target, where the papers use a user's whole profile. Training rows overlap, so items
that are close in time share more of them.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import polars as pl
from scipy import sparse

from rere.baselines.ranking import CountedModel


class ItemKnnModel(CountedModel):
    """Each distinct item of a history adds its similarities to the scores of its neighbours.

    `similarities` is (items, items): a row has those of an item to its neighbours, without itself.
    Ties are mostly between items with a score of 0.
    """

    def __init__(self, counts: np.ndarray, similarities: sparse.csr_array) -> None:
        super().__init__(counts)
        self.similarities = similarities

    @classmethod
    def fit(cls, neighbours: int, items: pl.DataFrame, train: pl.DataFrame) -> Self:
        """The model with the `neighbours` most similar items of each, in the rows of `train`.

        `items` and the split are those of `rere.data.dataset`.
        """
        similarities = cosines(baskets(train, len(items), target=True))
        return cls(items["count"].to_numpy(), keep_nearest(similarities, neighbours))

    @classmethod
    def load(cls, counts: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Self:
        """The model with these `arrays`; raises KeyError or ValueError if they are of no model."""
        num_items = len(counts)
        value, column, edge = (arrays[name] for name in ("value", "column", "edge"))
        if not (
            [value.dtype, column.dtype, edge.dtype] == [np.float64, np.int32, np.int64]
            and len(arrays) == 3
            and edge.shape == (num_items + 1,)
            and value.shape == column.shape == (edge[-1],)
            and edge[0] == 0
            and (edge[1:] >= edge[:-1]).all()
            and ((column >= 0) & (column < num_items)).all()
            and (np.isfinite(value) & (value > 0)).all()
        ):
            raise ValueError("not the similarities of these items")
        row = np.repeat(np.arange(num_items), np.diff(edge))
        if not (np.diff(row * num_items + column) > 0).all():
            raise ValueError("an item is twice among the neighbours of another")
        shape = (num_items, num_items)
        return cls(counts, sparse.csr_array((value, column, edge), shape=shape))

    def arrays(self) -> dict[str, np.ndarray]:
        """The similarities in compressed sparse rows: neighbours in the order of item_id."""
        matrix = self.similarities
        return {
            "value": matrix.data,
            "column": matrix.indices.astype(np.int32),
            "edge": matrix.indptr.astype(np.int64),
        }

    def score_items(self, histories: pl.Series) -> np.ndarray:
        members = baskets(histories.alias("history").to_frame(), len(self.counts))
        return (members @ self.similarities).toarray()


def baskets(rows: pl.DataFrame, num_items: int, target: bool = False) -> sparse.csr_array:
    """Which items are in each row's history (or target, with `target`): (rows, items), 0 or 1."""
    members = rows.select(item="history").with_row_index("row").explode("item").drop_nulls()
    if target:
        targets = rows.select(item="target").with_row_index("row")
        members = pl.concat([members, targets])
    members = members.unique(maintain_order=True)
    index = (members["row"].to_numpy(), members["item"].to_numpy())
    return sparse.csr_array((np.ones(len(members)), index), shape=(len(rows), num_items))


def cosines(matrix: sparse.csr_array) -> sparse.coo_array:
    """Cosine similarities of different columns of a binary matrix, (columns, columns)."""
    shared = (matrix.T @ matrix).tocoo()  # rows that hold both items
    held = matrix.sum(axis=0)
    row, column = shared.coords
    others = row != column
    row, column = row[others], column[others]
    values = shared.data[others] / np.sqrt(held[row] * held[column])
    return sparse.coo_array((values, (row, column)), shape=shared.shape)


def keep_nearest(similarities: sparse.coo_array, neighbours: int) -> sparse.csr_array:
    """The matrix with only the `neighbours` highest values per row, ties to the lower column."""
    row, column = similarities.coords
    order = np.lexsort((column, -similarities.data, row))
    first = np.searchsorted(row[order], row[order])  # where the values of the row begin
    kept = order[np.arange(len(order)) - first < neighbours]
    return sparse.csr_array(
        (similarities.data[kept], (row[kept], column[kept])), shape=similarities.shape
    )
