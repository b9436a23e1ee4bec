"""Two rankings without training, which a trained method should beat."""

import numpy as np
import polars as pl


def popularity(
    items: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The `length` items that are most often training targets, the same for each of `rows`.

    `items` is the catalogue of `rere.data.dataset`. An item's score is its count; ties go to the
    lower item_id. Returns ranked items and their scores, one list per row, best first.
    """
    ranked, counts = most_popular(items, length)
    return [ranked] * len(rows), [counts] * len(rows)


def repeat_last(
    items: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The distinct items of each row's history, latest first, then the others by popularity.

    An item's score is its count. The d history items score the highest count plus 1 to d, with d
    for the latest. Returns ranked items and their scores, one list per row, best first.
    """
    popular, counts = most_popular(items, length)
    count_of = dict(zip(popular, counts, strict=True))
    ranked, scores = [], []
    for history in rows["history"].to_list():
        latest_first = dict.fromkeys(reversed(history))
        others = [item for item in popular if item not in latest_first]
        repeats = [counts[0] + rank for rank in range(len(latest_first), 0, -1)]
        ranked.append([*latest_first, *others][:length])
        scores.append([*repeats, *(count_of[item] for item in others)][:length])
    return ranked, scores


def most_popular(items: pl.DataFrame, length: int) -> tuple[list[int], list[float]]:
    """The `length` item_ids with the highest counts, ties to the lower id, and their counts."""
    counts = items["count"].to_numpy()  # (items,), in the order of item_id
    order = np.argsort(-counts, kind="stable")[:length]
    return order.tolist(), counts[order].astype(float).tolist()
