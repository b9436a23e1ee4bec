"""Item-based nearest neighbours (Sarwar et al., "Item-Based Collaborative Filtering Recommendation
Algorithms", WWW 2001; Deshpande & Karypis, ACM TOIS 2004).

The similarity of two items is the cosine of their columns in a binary matrix. An item's score is
the sum of its similarities to the items of the history. A row of the matrix is a training row with
its history and target, where the papers use a user's whole profile. Training rows overlap, so items
that are close in time share more of them.
"""

import numpy as np
import polars as pl
from scipy import sparse

ROWS_PER_BATCH = 512


def item_knn(
    neighbours: int, items: pl.DataFrame, train: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The `length` items with the highest sums of similarities to the history of each of `rows`.

    Each distinct item of a history adds its similarity to its `neighbours` most similar items, not
    to itself. Ties, mostly between items with a sum of 0, go to the more popular item, then to the
    lower item_id. `items` and the splits are those of `rere.data.dataset`. Returns ranked items and
    their scores, one list per row, best first.
    """
    similarities = keep_nearest(cosines(baskets(train, len(items), target=True)), neighbours)
    popular = np.argsort(-items["count"].to_numpy(), kind="stable")  # ties to the lower item_id
    histories = baskets(rows, len(items))
    ranked, scores = [], []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        sums = (histories[start : start + ROWS_PER_BATCH] @ similarities).toarray()  # (rows, items)
        # Columns are in order of popularity, so a stable sort breaks ties by popularity.
        order = popular[np.argsort(-sums[:, popular], axis=1, kind="stable")[:, :length]]
        ranked += order.tolist()
        scores += np.take_along_axis(sums, order, axis=1).tolist()
    return ranked, scores


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
