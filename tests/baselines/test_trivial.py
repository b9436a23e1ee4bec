"""Popularity and repeat-last on a catalogue that can be ranked by hand."""

import polars as pl
import pytest
from data_frames import items_frame

from rere.baselines.ranking import CountedModel, rank_top
from rere.baselines.trivial import PopularityModel, RepeatLastModel

COUNTS = [2, 5, 5, 0, 1]
"""Training targets of items 0 to 4. By popularity: 1, 2 (tied, lower id first), 0, 4, 3."""

ITEMS = items_frame([f"Item {item}" for item in range(len(COUNTS))], COUNTS)


def rank(model: CountedModel, histories: list[list[int]], length: int):
    """Ranked items and their scores, one list per history."""
    ranked, scores = rank_top(model, pl.Series(histories, dtype=pl.List(pl.Int32)), length)
    return ranked.tolist(), scores.tolist()


def popularity(histories: list[list[int]], length: int):
    return rank(PopularityModel(ITEMS["count"].to_numpy()), histories, length)


def repeat_last(histories: list[list[int]], length: int):
    return rank(RepeatLastModel(ITEMS["count"].to_numpy()), histories, length)


def test_popularity_breaks_ties_by_item_id_and_scores_by_count():
    ranked, scores = popularity([[0], [1, 2]], 10)
    assert ranked == [[1, 2, 0, 4, 3]] * 2
    assert scores == [[5.0, 5.0, 2.0, 1.0, 0.0]] * 2


def test_popularity_limits_the_list():
    assert popularity([[0]], 3) == ([[1, 2, 0]], [[5.0, 5.0, 2.0]])


@pytest.mark.parametrize(
    ("history", "ranked", "scores"),
    [
        # Two distinct items, so 5 + 2 for the latest and 5 + 1 for the one before.
        ([3, 4], [4, 3, 1, 2, 0], [7, 6, 5, 5, 2]),
        # Item 0 counts once, at its latest position; d = 2.
        ([0, 3, 0], [0, 3, 1, 2, 4], [7, 6, 5, 5, 1]),
        # A popular item of the history moves to the front; d = 1.
        ([2], [2, 1, 0, 4, 3], [6, 5, 2, 1, 0]),
        ([], [1, 2, 0, 4, 3], [5, 5, 2, 1, 0]),
    ],
)
def test_repeat_last_ranks_the_history_latest_first(history, ranked, scores):
    assert repeat_last([history], 10) == ([ranked], [scores])


def test_repeat_last_limits_the_combined_list():
    # d = 3: 5 + 3, 5 + 2, and the third history item falls off a list of two.
    assert repeat_last([[4, 0, 3]], 2) == ([[3, 0]], [[8.0, 7.0]])
    # The two most popular items are the history and appear once.
    assert repeat_last([[1, 2]], 3) == ([[2, 1, 0]], [[7.0, 6.0, 2.0]])
