"""Item-based neighbours on rows small enough to count by hand."""

from math import sqrt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.baselines.item_knn import ItemKnnModel, baskets, cosines, keep_nearest
from rere.baselines.ranking import rank_top

HISTORY = {"history": pl.List(pl.Int32), "target": pl.Int32}


def rows(histories: list[list[int]], targets: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"history": histories, "target": targets}, schema=HISTORY)


def catalogue(counts: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": range(len(counts)), "count": counts})


TRAIN = rows([[0], [0, 1, 0], [3, 1]], [1, 2, 0])
"""The baskets 01, 012, 013: items 0 and 1 are in 3, items 2 and 3 in 1, item 4 in none."""

ITEMS = catalogue([1, 1, 1, 0, 7])


def item_knn(neighbours: int, history: list[int], length: int) -> tuple[list[int], list[float]]:
    """The items that TRAIN ranks after a history, and their scores."""
    model = ItemKnnModel.fit(neighbours, ITEMS, TRAIN)
    (ranked,), (scores,) = rank_top(model, rows([history], [0])["history"], length)
    return ranked.tolist(), scores.tolist()


def test_baskets_hold_each_item_once():
    assert baskets(TRAIN, 4, target=True).toarray().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 1],
    ]
    empty = rows([[], [2, 2]], [0, 1])
    assert baskets(empty, 4).toarray().tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_sums_of_cosines_by_hand():
    # cos(0, 1) = 3 / sqrt(3 * 3) = 1; cos(0, 2) = cos(0, 3) = cos(1, 2) = cos(1, 3) = 1 / sqrt(3);
    # cos(2, 3) = 0. After 0 and 2: item 0 gets cos(2, 0), item 1 cos(0, 1) + cos(2, 1), item 2
    # cos(0, 2), item 3 cos(0, 3) and item 4 nothing. The tied items 0, 2 and 3 have 1, 1 and 0
    # training targets: more popular items come first, then lower ids.
    ranked, scores = item_knn(10, [0, 2, 0], 5)
    assert ranked == [1, 0, 2, 3, 4]
    third = 1 / sqrt(3)
    assert scores == pytest.approx([1 + third, third, third, third, 0])
    assert item_knn(10, [0, 2, 0], 2)[0] == [1, 0]


def test_an_item_adds_only_to_its_nearest_items():
    # 0 adds to 1, and 1 to 0. For 2, the items 0 and 1 are tied, and the lower id wins.
    for item, scored in ((0, [0, 1, 0, 0, 0]), (1, [1, 0, 0, 0, 0]), (2, [3**-0.5, 0, 0, 0, 0])):
        ranked, scores = item_knn(1, [item], 5)
        assert dict(zip(ranked, scores, strict=True)) == pytest.approx(dict(enumerate(scored)))


def test_items_without_a_score_are_ranked_by_popularity():
    # Item 4 is in no basket; like an empty history, it adds to no item.
    for history in ([4], []):
        assert item_knn(10, history, 5) == ([4, 0, 1, 2, 3], [0.0] * 5)


@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_similarities_equal_a_dense_computation(histories):
    train = rows(histories, [history[0] for history in histories])
    dense = baskets(train, 8, target=True).toarray()
    lengths = np.maximum(np.linalg.norm(dense, axis=0), 1e-9)
    expected = (dense / lengths).T @ (dense / lengths) * (1 - np.eye(8))
    similarities = cosines(baskets(train, 8, target=True))
    np.testing.assert_allclose(similarities.toarray(), expected, atol=1e-12)
    three = keep_nearest(similarities, 3).toarray()
    np.testing.assert_allclose(np.sort(three)[:, -3:], np.sort(expected)[:, -3:], atol=1e-12)
    assert ((three > 0).sum(axis=1) <= 3).all()
