"""Rankings of the models without a network equal plain formulas, to the last bit."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rere.baselines.item_knn import ItemKnnModel
from rere.baselines.ranking import rank_top
from rere.baselines.trivial import PopularityModel, RepeatLastModel

NUM_ITEMS = 7
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5), min_size=1, max_size=9)
COUNTS = st.lists(st.integers(0, 3), min_size=NUM_ITEMS, max_size=NUM_ITEMS)


def lists(histories: list[list[int]]) -> pl.Series:
    return pl.Series("history", histories, dtype=pl.List(pl.Int32))


def best_first(scores: list[float], counts: list[int], allowed: set[int]) -> list[int]:
    """The allowed items by score, then by count, then by item_id."""
    return sorted(allowed, key=lambda item: (-scores[item], -counts[item], item))


def plain_scores(name: str, history: list[int], counts: list[int], model: ItemKnnModel):
    if name == "item_knn":
        similarities = model.similarities.toarray()
        return [sum(similarities[i, item] for i in sorted({*history})) for item in range(NUM_ITEMS)]
    scores = [float(count) for count in counts]
    if name == "repeat_last":
        latest_first = dict.fromkeys(reversed(history))
        for place, item in enumerate(latest_first):
            scores[item] = float(max(counts) + len(latest_first) - place)
    return scores


@pytest.mark.parametrize("name", ["popularity", "repeat_last", "item_knn"])
@given(HISTORIES, COUNTS, st.sets(st.integers(0, NUM_ITEMS - 1)), st.integers(1, 9), st.data())
def test_rankings_equal_plain_formulas(name, histories, counts, forbidden, length, data):
    items = pl.DataFrame({"count": counts})
    train = pl.DataFrame({"history": lists([[0, 1, 2], [2, 3], [5, 2], *histories])})
    train = train.with_columns(target=pl.lit(4, pl.Int32))
    knn = ItemKnnModel.fit(3, items, train)
    models = {
        "popularity": PopularityModel(np.array(counts)),
        "repeat_last": RepeatLastModel(np.array(counts)),
        "item_knn": knn,
    }
    excluded = [data.draw(st.sets(st.integers(0, NUM_ITEMS - 1))) for _ in histories]
    ranked, values = rank_top(
        models[name], lists(histories), length, sorted(forbidden), excluded, batch_size=4
    )
    for row, history in enumerate(histories):
        scores = plain_scores(name, history, counts, knn)
        allowed = {*range(NUM_ITEMS)} - forbidden - excluded[row]
        expected = best_first(scores, counts, allowed)[:length]
        assert ranked[row, : len(expected)].tolist() == expected
        assert values[row, : len(expected)].tolist() == [scores[item] for item in expected]
        assert (values[row, len(expected) :] == -np.inf).all()


def test_a_network_ranks_the_allowed_items(short_sasrec):
    histories = lists([[1, 2, 3], [4], [5, 6]])
    scores = short_sasrec.score_items(histories).numpy()
    ranked, values = rank_top(short_sasrec, histories, 99, [0, 7], [{3}, set(), {1, 2}])
    for row, (without, order) in enumerate(zip([{3}, set(), {1, 2}], ranked, strict=True)):
        left = 12 - len({0, 7} | without)
        allowed = set(range(12)) - {0, 7} - without
        assert order[:left].tolist() == sorted(allowed, key=lambda item: -scores[row, item])
        assert values[row, :left].tolist() == scores[row, order[:left]].tolist()
