"""Two rankings that learn nothing: what a method must beat to have learnt anything."""

import numpy as np
import polars as pl


def popularity(
    items: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The `length` items that are most often a training target, the same for each of `rows`.

    `items` is the catalogue of `rere.data.splits`; ties go to the lower item_id. An item's score
    is its count. Returns ranked items and their scores, a list a row, best first.
    """
    ranked, counts = most_popular(items, length)
    return [ranked] * len(rows), [counts] * len(rows)


def repeat_last(
    items: pl.DataFrame, rows: pl.DataFrame, length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The row's distinct history items, latest first, then the rest as `popularity` has it.

    An item's score is its count; the d history items have the scores 1 to d above the highest
    count, d for the latest. Returns ranked items and their scores, a list a row, best first.
    """
    popular, counts = most_popular(items, length)
    count_of = dict(zip(popular, counts, strict=True))
    ranked, scores = [], []
    for history in rows["history"].to_list():
        latest_first = dict.fromkeys(reversed(history))
        others = [item for item in popular if item not in latest_first]
        repeats = [counts[0] + place for place in range(len(latest_first), 0, -1)]
        ranked.append([*latest_first, *others][:length])
        scores.append([*repeats, *(count_of[item] for item in others)][:length])
    return ranked, scores


def most_popular(items: pl.DataFrame, length: int) -> tuple[list[int], list[float]]:
    """The first `length` item_ids by falling count, ties by rising item_id, and their counts."""
    counts = items["count"].to_numpy()  # (items,), in the order of item_id
    order = np.argsort(-counts, kind="stable")[:length]
    return order.tolist(), counts[order].astype(float).tolist()
