"""A held baseline recommends what its predictions rank, of the allowed items."""

import json
import logging

import polars as pl
import pytest

from rere import Recommender
from rere.baselines.model_folder import ARRAYS, load_baseline
from rere.cli import parse
from rere.config.evaluation import BeamSearch
from rere.data.dataset import read_split
from rere.errors import InputError
from rere.evaluation.predictions import read_predictions

NETWORKS = ("gru4rec", "caser", "sasrec")


def raw(items):
    return [f"raw{item}" for item in items]


def histories_of(data):
    return [raw(history) for history in read_split(data, "test")["history"].to_list()]


def test_lists_are_the_predictions(baseline_run, successor_data):
    recommender = Recommender(baseline_run / "model", device="cpu")
    predictions = read_predictions(baseline_run / "predictions.parquet")
    ranked = recommender.recommend_many(histories_of(successor_data), top=99)
    assert [[each.id for each in row] for row in ranked] == [
        raw(items) for items in predictions["items"].to_list()
    ]
    scores = pl.Series([[each.score for each in row] for row in ranked], dtype=pl.List(pl.Float32))
    assert scores.to_list() == predictions["scores"].to_list()
    assert ranked[0][0].title == ranked[0][0].id.removeprefix("raw")
    short = recommender.recommend_many(histories_of(successor_data), top=3)
    assert short == [row[:3] for row in ranked]


@pytest.mark.parametrize("allowed", [range(30), [3, 4, 5, 29], [7], range(0, 30, 2)])
def test_forbidden_items_are_left_out_and_no_list_runs_short(baseline_run, successor_data, allowed):
    recommender = Recommender(baseline_run / "model", device="cpu")
    fitted = load_baseline(baseline_run / "model")
    histories = read_split(successor_data, "test")["history"]
    scores = fitted.model.score_items(histories).tolist()
    counts = fitted.items["count"].to_list()
    limited = recommender.within(raw(allowed))
    ranked = limited.recommend_many(histories_of(successor_data), 99, exclude_seen=True)
    for row, history in enumerate(histories.to_list()):
        left = sorted(
            {*allowed} - {*history}, key=lambda item: (-scores[row][item], -counts[item], item)
        )
        assert [(each.id, each.score) for each in ranked[row]] == [
            (f"raw{item}", scores[row][item]) for item in left
        ]


def test_one_history_and_small_batches(baseline_run, successor_data):
    recommender = Recommender(baseline_run / "model", device="cpu")
    histories = histories_of(successor_data)[:5]
    together = recommender.recommend_many(histories, 99)
    for batch_size in (1, 2):
        parts = recommender.recommend_many(histories, 99, batch_size=batch_size)
        for one, other in zip(parts, together, strict=True):
            # Rounding may exchange items whose scores are equal but for it.
            assert [each.score for each in one] == pytest.approx(
                [each.score for each in other], abs=1e-6
            )
    assert recommender.recommend_many([]) == []


def test_a_limit_within_another(baseline_run):
    limited = Recommender(baseline_run / "model").within(raw([3, 4, 5, 29])).within(raw([4, 5, 6]))
    assert {each.id for each in limited.recommend(["raw3"])} == {"raw4", "raw5"}
    first, second = limited.recommend_many([raw([4, 5]), raw([3, 4])], exclude_seen=True)
    assert first == [] and [each.id for each in second] == ["raw5"]
    with pytest.raises(InputError, match="within: allows no item of the catalogue"):
        limited.within(["raw6"])


def test_titles_and_conditions(run_of):
    shop = pl.DataFrame({"id": raw(range(30)), "price": range(30)})
    recommender = Recommender(run_of("popularity") / "model", items=shop)
    ranked = recommender.recommend(["3", "raw29"], 2, exclude_seen=True, within=pl.col("price") > 7)
    assert ranked == [("raw28", "28", 28.0), ("raw27", "27", 27.0)]
    with pytest.raises(InputError, match="there is no id or title 'raw30'; the closest are"):
        recommender.recommend(["raw30"])


def test_only_networks_cut_a_history(baseline_run, caplog):
    recommender = Recommender(baseline_run / "model", device="cpu")
    long = raw([9, 8, 7, 1, 2])
    with caplog.at_level(logging.WARNING):
        ranked = recommender.recommend(long, 99)
    if baseline_run.name in NETWORKS:
        assert ranked == recommender.recommend(long[-2:], 99)
        assert caplog.messages == ["histories are cut to their latest 2 items, as in training"]
    else:
        assert not caplog.messages
    if baseline_run.name == "repeat_last":
        assert [each.id for each in ranked[:5]] == long[::-1]
    assert not {each.id for each in recommender.recommend(long, 99, exclude_seen=True)} & {*long}


def test_new_items_are_refused(baseline_run):
    recommender = Recommender(baseline_run / "model")
    message = f"^with_items: {baseline_run.name} ranks only the items of its data set; add the new"
    with pytest.raises(InputError, match=message):
        recommender.with_items(["Another"])


def test_options_of_a_search_are_refused(run_of):
    folder = run_of("item_knn") / "model"
    message = "^num_beams: for the search of a language model; .*/model has a baseline, so leave it"
    with pytest.raises(InputError, match=message):
        Recommender(folder, BeamSearch(num_beams=9))
    arguments = ["--model", str(folder), "--history", "raw1"]
    with pytest.raises(InputError, match=message):
        parse("recommend --history", [*arguments, "--num-beams", "9"]).run()


def test_the_server_gets_only_options_that_are_given(run_of, monkeypatch):
    given = []
    monkeypatch.setattr("rere.serve.server.serve", lambda *arguments: given.append(arguments[1]))
    folder = str(run_of("item_knn") / "model")
    parse("serve", ["--model", folder]).run()
    parse("serve", ["--model", folder, "--num-beams", "9"]).run()
    assert given == [None, BeamSearch(num_beams=9)]


def test_a_damaged_folder_is_a_baseline_still(run_of):
    folder = run_of("item_knn") / "model"
    (folder / "baseline.json").unlink()
    with pytest.raises(InputError, match=r"baseline\.json: no such file; `rere baseline` writes"):
        Recommender(folder)
    (folder / ARRAYS).unlink()
    with pytest.raises(InputError, match="cannot load a language model"):
        Recommender(folder)


def test_the_command_prints_the_lists(run_of, tmp_path, capsys):
    folder = run_of("item_knn") / "model"
    expected = Recommender(folder).recommend(["raw1", "2"], 3, exclude_seen=True)
    arguments = ["--model", str(folder), "--top", "3", "--exclude-seen"]
    parse("recommend --history", [*arguments, "--history", "raw1", "2"]).run()
    assert capsys.readouterr().out.splitlines() == [
        f"{rank}  {each.score:8.3f}  {each.id:5}  {each.title}"
        for rank, each in enumerate(expected, start=1)
    ]
    (tmp_path / "histories").write_text('["raw1", "2"]\n')
    parse("recommend --histories", [*arguments, "--histories", str(tmp_path / "histories")]).run()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == [each._asdict() for each in expected]
