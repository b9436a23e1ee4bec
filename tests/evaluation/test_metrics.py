"""Metrics against hand-computed numbers and a slow implementation in plain Python."""

import json
from math import log2
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_frames import items_frame, split_frame, users_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_data

from rere.config.evaluation import CUTOFFS
from rere.config.run import Run
from rere.data.dataset import read_items, read_split
from rere.errors import InputError
from rere.evaluation.metrics import (
    ITEM_METRICS,
    METRICS,
    coverage,
    drop_duplicates,
    is_hit,
    metrics,
    metrics_from_ranks,
    pad_lists,
    popularity,
    row_metrics,
    target_ranks,
    title_codes,
)
from rere.evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    RawIds,
    read_predictions,
    read_raw_ids,
    write_predictions,
)

RUN = Run(dataset="toy", backbone="none", method="popularity", seed=3)


def as_rows(ranked, targets):
    """A frame like that of `read_test_predictions`."""
    columns = {
        "row_id": range(len(ranked)),
        "user_id": range(len(ranked)),
        "target": targets,
        "items": ranked,
        "repeat": [False] * len(ranked),
    }
    return pl.DataFrame(columns, schema_overrides=PREDICTIONS_SCHEMA)


# --------------------------------------------------------------------------- ranks and metrics


def test_a_hit_is_an_equal_title():
    titles = np.array([[4, 7, 4], [1, 2, 3]])
    expected = [[True, False, True], [False, False, False]]
    assert is_hit(titles, np.array([4, 9])).tolist() == expected


def test_target_ranks_count_from_one_and_are_zero_where_absent():
    ranked = np.array([[5, 3, 8], [5, 3, 8], [5, 3, 8], [5, 3, -1]])
    assert target_ranks(ranked, np.array([5, 8, 1, 3])).tolist() == [1, 3, 0, 2]


def test_drop_duplicates_keeps_first_appearances_in_order():
    ranked = np.array([[7, 7, 2, 7, 1], [0, 1, 2, 3, 4], [3, 1, 3, -1, -1]])
    expected = [[7, 2, 1, -1, -1], [0, 1, 2, 3, 4], [3, 1, -1, -1, -1]]
    assert drop_duplicates(ranked).tolist() == expected


def test_title_codes_are_equal_where_titles_are():
    codes = title_codes(items_frame(["b", "a", "b", "A", ""]))
    assert codes[0] == codes[2]
    assert len(set(codes.tolist())) == 4
    assert sorted(set(codes.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rank", "hits", "ndcg"),
    [
        # K:    1, 3, 5, 10, 20                 1 / log2(rank + 1) where rank <= K
        (1, [1, 1, 1, 1, 1], [1.0, 1.0, 1.0, 1.0, 1.0]),  # 1 / log2(2) = 1
        (3, [0, 1, 1, 1, 1], [0, 0.5, 0.5, 0.5, 0.5]),  # 1 / log2(4) = 1/2
        (5, [0, 0, 1, 1, 1], [0, 0, 0.386853, 0.386853, 0.386853]),  # 1 / 2.584963
        (10, [0, 0, 0, 1, 1], [0, 0, 0, 0.289065, 0.289065]),  # 1 / 3.459432
        (20, [0, 0, 0, 0, 1], [0, 0, 0, 0, 0.227670]),  # 1 / 4.392317
        (21, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        (0, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_gains_of_a_rank(rank, hits, ndcg):
    assert metrics_from_ranks(np.array([rank]))[0] == pytest.approx(hits + ndcg, abs=1e-6)


def test_duplicate_titles_count_once_at_their_best_rank():
    #        item   0    1    2    3    4
    items = items_frame(["a", "a", "b", "c", "b"])
    ranked = [[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 0], [2, 4, 1]]
    targets = [2, 1, 4, 3]
    # titles: a b c -> b at 2, a at 1; c b a -> b at 2 (item 4 itself absent); b a -> c absent
    # items:  2 at 3, 1 at 2, 4 absent, 3 absent
    rows = row_metrics(as_rows(ranked, targets), items)
    assert rows["NDCG@20"].to_list() == pytest.approx([1 / log2(3), 1, 1 / log2(3), 0])
    assert rows["NDCG@20_item"].to_list() == pytest.approx([1 / log2(4), 1 / log2(3), 0, 0])
    assert rows["HR@1"].to_list() == [0, 1, 0, 0]
    assert rows["HR@3_item"].to_list() == [1, 1, 0, 0]


def test_duplicate_titles_are_dropped_before_the_cut_off():
    # Items 0 .. 20 share a title, so the target, item 21 of the list, is its second title.
    items = items_frame(["same"] * 21 + ["target"])
    rows = row_metrics(as_rows([list(range(22))], [21]), items)
    assert rows["HR@3"].item() == 1
    assert rows["HR@20_item"].item() == 0


def slow_metrics(ranked, target):
    """The metrics of one row, found by walking the list."""
    seen = []
    for value in ranked:
        if value not in seen:
            seen.append(value)
    rank = seen.index(target) + 1 if target in seen else None
    hits = [1.0 if rank is not None and rank <= k else 0.0 for k in CUTOFFS]
    return hits + [hit / log2(rank + 1) if hit else 0.0 for hit in hits]


@st.composite
def rankings(draw):
    titles = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40))
    ids = st.integers(0, len(titles) - 1)
    ranked = draw(
        st.lists(st.lists(ids, min_size=1, max_size=40, unique=True), min_size=1, max_size=6)
    )
    targets = draw(st.lists(ids, min_size=len(ranked), max_size=len(ranked)))
    return titles, ranked, targets


@given(rankings())
@settings(max_examples=150, deadline=None)
def test_row_metrics_equal_the_slow_ones(case):
    titles, ranked, targets = case
    rows = row_metrics(as_rows(ranked, targets), items_frame(titles))
    for index, (row, target) in enumerate(zip(ranked, targets, strict=True)):
        title = slow_metrics([titles[item] for item in row], titles[target])
        item = slow_metrics(row, target)
        assert rows.select(METRICS).row(index) == pytest.approx(title)
        assert rows.select(ITEM_METRICS).row(index) == pytest.approx(item)


def test_row_metrics_equal_those_of_ranx():
    # tests/records/ranx_run.py made the record: 200 random rankings, their metrics row by row.
    record = json.loads((Path(__file__).parents[1] / "records" / "ranx.json").read_text())
    items = items_frame([f"title {item}" for item in range(30)])
    rows = row_metrics(as_rows(record["ranked"], record["targets"]), items)
    assert set(record["values"]) == set(METRICS)
    for name, expected in record["values"].items():
        assert 0 < rows[name].mean() < 1
        for column in (name, f"{name}_item"):
            np.testing.assert_allclose(rows[column], expected, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- coverage and popularity


def test_coverage_counts_items_of_the_top_20():
    ranked = pad_lists(pl.Series([list(range(25)), [24, 0]], dtype=pl.List(pl.Int32)))
    # 0 .. 19 from the first row, 24 and 0 from the second: 21 of 30 items.
    assert coverage(ranked, 30) == pytest.approx(21 / 30)


def test_popularity_is_the_mean_percentile():
    # Counts 5 0 5 9, percentiles (fewer + half of as many) / 4: 2/4, 0.5/4, 2/4, 3.5/4.
    counts = np.array([5, 0, 5, 9])
    ranked = np.array([[3, 1], [0, -1]])
    # Rows: (0.875 + 0.125) / 2 = 0.5 and 0.5.
    assert popularity(ranked, counts) == pytest.approx(0.5)
    assert popularity(np.array([[3, 0]]), counts) == pytest.approx((0.875 + 0.5) / 2)


def test_popularity_of_the_whole_catalogue_is_one_half():
    counts = np.array([3, 3, 0, 8, 1, 1])
    assert popularity(np.arange(6)[None], counts) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------ the stage


def written(folder):
    metrics(folder / "predictions.parquet", folder / "toy", RUN, folder / "metrics.json")
    return json.loads((folder / "metrics.json").read_text())


def test_metrics_of_a_run(small_run):
    values = written(small_run)
    assert list(values)[:6] == ["dataset", "backbone", "method", "seed", "evaluation", "rows"]
    assert [values[key] for key in list(values)[:6]] == ["toy", "none", "popularity", 3, "", 4]
    # Title ranks 1, 1, 1 (item 0 is an "a" as the target, item 2), absent; item ranks 1, 1, 2, -.
    assert values["HR@1"] == pytest.approx(3 / 4)
    assert values["HR@1_item"] == pytest.approx(2 / 4)
    assert values["NDCG@20_item"] == pytest.approx((1 + 1 + 1 / log2(3)) / 4)
    # Without row 101: ranks 1, 1, absent. Row 102 repeats a title, not an item, and stays.
    assert values["HR@1_norepeat"] == pytest.approx(2 / 3)
    # Items 0, 1, 2 of 4 are shown.
    assert values["coverage@20"] == pytest.approx(3 / 4)
    # Percentiles 3.5/4, 2/4, 0.5/4, 2/4: rows .6875, .3125, .5, .5.
    assert values["popularity@20"] == pytest.approx((0.6875 + 0.3125 + 0.5 + 0.5) / 4)
    for name in METRICS:
        assert 0 <= values[f"{name}_low"] <= values[name] <= values[f"{name}_high"] <= 1


def test_metrics_do_not_depend_on_the_order_of_rows(small_run):
    values = written(small_run)
    path = small_run / "predictions.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    assert written(small_run) == values


def test_norepeat_metrics_are_null_if_every_row_repeats(small_run):
    test = pl.read_parquet(small_run / "toy" / "test.parquet")[1:2]
    test.write_parquet(small_run / "toy" / "test.parquet")
    write_predictions(small_run / "predictions.parquet", test, [[1]], [[0.0]])
    assert written(small_run)["HR@20_norepeat"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"row_id": pl.lit(99, pl.Int64)},
        {"target": pl.lit(0, pl.Int32)},
        {"user_id": pl.lit(1, pl.Int64)},
    ],
)
def test_rows_outside_the_test_split_are_refused(small_run, change):
    path = small_run / "predictions.parquet"
    pl.read_parquet(path)[2:3].with_columns(**change).write_parquet(path)
    with pytest.raises(InputError, match=r"row_id \d+ is not in .*test\.parquet"):
        written(small_run)


@pytest.mark.parametrize("item", [4, -1])
def test_items_outside_the_catalogue_are_refused(small_run, item):
    test = pl.read_parquet(small_run / "toy" / "test.parquet")[:1]
    write_predictions(small_run / "predictions.parquet", test, [[1, item]], [[2.0, 1.0]])
    with pytest.raises(InputError, match=r"row_id 100 ranks an item not in .*items\.parquet"):
        written(small_run)


# --------------------------------------------------------------------------- predictions format

TEST = split_frame([[0], [1]], [1, 0], users=[7, 8], first_row=100)
FAULTY = {
    "row_id 100 ranks an item twice": ([[1, 1], [2]], [[1.0, 0.0], [1.0]]),
    "row_id 101 has no items": ([[1], []], [[1.0], []]),
    "row_id 101 has a different number of scores": ([[1], [2]], [[1.0], [1.0, 0.0]]),
    "row_id 100 has a score that is not finite": ([[1], [2]], [[float("nan")], [1.0]]),
    "row_id 101 has a score above": ([[1], [2, 3]], [[1.0], [0.0, 1.0]]),
    "row_id 100 has a null": ([[None], [2]], [[1.0], [1.0]]),
}


def test_predictions_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "predictions.parquet"
    write_predictions(path, TEST, [[2, 1], [0]], [[0.5, 0.5], [-1.0]])
    frame = read_predictions(path)
    assert dict(frame.schema) == PREDICTIONS_SCHEMA
    assert frame.rows() == [(100, 7, 1, [2, 1], [0.5, 0.5]), (101, 8, 0, [0], [-1.0])]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_raw_ids_are_written_and_need_not_be_read(tmp_path):
    old, new, again = (tmp_path / f"{name}.parquet" for name in ("old", "new", "again"))
    lists = [[2, 1], [0]], [[0.5, 0.5], [-1.0]]
    raw_ids = RawIds(pl.Series([f"u{i}" for i in range(9)]), pl.Series(["a", "b", "c"]))
    write_predictions(old, TEST, *lists)
    write_predictions(new, TEST, *lists, raw_ids)
    frame = pl.read_parquet(new)
    assert frame.select("raw_user_id", "raw_target", "raw_items").rows() == [
        ("u7", "b", ["c", "b"]),
        ("u8", "a", ["a"]),
    ]
    assert frame.select(*PREDICTIONS_SCHEMA).equals(pl.read_parquet(old))
    assert read_predictions(new).equals(read_predictions(old))
    pl.Series(["c", "z", "a"]).cast(pl.Categorical)  # which polars numbers for the whole process
    write_predictions(again, TEST, *lists, raw_ids)
    assert again.read_bytes() == new.read_bytes()


def test_raw_items_have_a_dictionary(tmp_path):
    items = [f"a long id of the raw data {i}" for i in range(20)]
    test = split_frame([[0]] * 500, [0] * 500)
    raw_ids = RawIds(users_frame(500)["raw_id"], pl.Series(items))
    ranked = [[(row + i) % 20 for i in range(10)] for row in range(500)]
    write_predictions(tmp_path / "p", test, ranked, [[0.0] * 10] * 500, raw_ids)
    pl.read_parquet(tmp_path / "p").write_parquet(tmp_path / "plain", compression="uncompressed")
    assert (tmp_path / "plain").read_bytes().count(items[7].encode()) == 1


@pytest.mark.parametrize(
    ("users", "fault"),
    [
        (users_frame(3), "lacks user_id 3; make it again: `rere preprocess`"),
        (users_frame(4)[::-1], "row at position 0 has another user_id"),
        (users_frame(4).with_columns(raw_id=pl.lit(None, pl.String)), "0 has no raw_id"),
    ],
)
def test_users_without_raw_ids_are_refused(tmp_path, users, fault):
    data = write_data(tmp_path, ["a", "b"], test=[([0], 1)] * 4)
    users.write_parquet(data / "users.parquet")
    with pytest.raises(InputError, match=fault):
        read_raw_ids(data, read_split(data, "test"), read_items(data))


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_predictions_are_neither_written_nor_read(tmp_path, fault):
    items, scores = FAULTY[fault]
    path = tmp_path / "predictions.parquet"
    with pytest.raises(AssertionError, match=fault):
        write_predictions(path, TEST, items, scores)
    assert not path.exists()
    TEST.select("row_id", "user_id", "target").with_columns(
        pl.Series("items", items, PREDICTIONS_SCHEMA["items"]),
        pl.Series("scores", scores, PREDICTIONS_SCHEMA["scores"]),
    ).write_parquet(path)
    with pytest.raises(InputError, match=fault) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_predictions_with_a_repeated_row_or_no_rows_are_refused(tmp_path):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(InputError, match="no such file"):
        read_predictions(path)
    with pytest.raises(AssertionError, match="row_id 100 comes twice"):
        write_predictions(path, TEST[[0, 0]], [[1], [1]], [[0.0], [0.0]])
    write_predictions(path, TEST[:0], [], [])
    with pytest.raises(InputError, match="has no rows"):
        read_predictions(path)
    TEST.write_parquet(path)
    with pytest.raises(InputError, match="has no column items; make it again: `rere recommend`"):
        read_predictions(path)
