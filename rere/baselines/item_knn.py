"""Item-based nearest neighbours (Sarwar et al., "Item-Based Collaborative Filtering Recommendation
Algorithms", WWW 2001; Deshpande & Karypis, ACM TOIS 2004).

Two items are as similar as the cosine of their columns in a binary matrix, and an item's score is
the sum of its similarities to the items of the history. A row of the matrix is a training row, its
history and target, where the papers have a user's whole profile: rows overlap, so that items close
in time share more of them.
"""

import numpy as np
import polars as pl
from scipy import sparse

ROWS_A_PASS = 512


def item_knn(
    neighbours: int, items: pl.DataFrame, train: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The `length` items with the highest sums of similarities to the history of each of `rows`.

    Each distinct item of a history votes for its `neighbours` most similar ones, never for itself.
    Ties, most of them of items without a vote, go to the more popular item, then to the lower
    item_id. `items` and the splits are those of `rere.data.splits`. Returns ranked items and their
    scores, a list a row, best first.
    """
    similarities = nearest(cosines(baskets(train, len(items), target=True)), neighbours)
    popular = np.argsort(-items["count"].to_numpy(), kind="stable")  # ties to the lower item_id
    histories = baskets(rows, len(items))
    ranked, scores = [], []
    for start in range(0, len(rows), ROWS_A_PASS):
        sums = (histories[start : start + ROWS_A_PASS] @ similarities).toarray()  # (rows, items)
        # In the order of popularity, a stable sort leaves ties to the more popular item.
        order = popular[np.argsort(-sums[:, popular], axis=1, kind="stable")[:, :length]]
        ranked += order.tolist()
        scores += np.take_along_axis(sums, order, axis=1).tolist()
    return ranked, scores


def baskets(rows: pl.DataFrame, num_items: int, target: bool = False) -> sparse.csr_array:
    """Which items are in each row's history, or are its target: (rows, items), zeros and ones."""
    members = rows.select(item="history").with_row_index("row").explode("item").drop_nulls()
    if target:
        targets = rows.select(item="target").with_row_index("row")
        members = pl.concat([members, targets])
    members = members.unique(maintain_order=True)
    index = (members["row"].to_numpy(), members["item"].to_numpy())
    return sparse.csr_array((np.ones(len(members)), index), shape=(len(rows), num_items))


def cosines(matrix: sparse.csr_array) -> sparse.coo_array:
    """Cosines of the columns of a binary matrix, those of a column with itself left out."""
    shared = (matrix.T @ matrix).tocoo()  # rows that hold both items
    held = matrix.sum(axis=0)
    row, column = shared.coords
    others = row != column
    row, column = row[others], column[others]
    values = shared.data[others] / np.sqrt(held[row] * held[column])
    return sparse.coo_array((values, (row, column)), shape=shared.shape)


def nearest(similarities: sparse.coo_array, neighbours: int) -> sparse.csr_array:
    """The highest values of each row, `neighbours` of them, ties to the lower column."""
    row, column = similarities.coords
    order = np.lexsort((column, -similarities.data, row))
    first = np.searchsorted(row[order], row[order])  # where the values of the same row begin
    kept = order[np.arange(len(order)) - first < neighbours]
    return sparse.csr_array(
        (similarities.data[kept], (row[kept], column[kept])), shape=similarities.shape
    )
