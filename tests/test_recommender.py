"""A held model recommends from what is allowed, as if the catalogue had nothing else."""

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import polars as pl
import pytest
from ranking_data import HEAT_ITEMS, ITEM_TITLES, brute_force_scores, build_catalogue
from tiny_models import write_fixed_model

from rere import Recommender
from rere.catalogue import CATALOGUE
from rere.config.evaluation import BeamSearch
from rere.errors import InputError
from rere.recommender import closest_titles
from rere.tokenization import INSTRUCTIONS

HISTORY = ["Toy Story (1995)", "Heat"]
SCORINGS = ["catalogue", "vocabulary"]
HISTORIES = [["Heat"], HISTORY, ["raw3"], ["raw20", "raw21", "Heat"], ["raw1", "raw2"]]


def brute_force(scoring, history, items):
    """(id, title, score) of these items of ITEM_TITLES, best first, ties by item id."""
    titles = [ITEM_TITLES[item] for item in items]
    scores = brute_force_scores(scoring, INSTRUCTIONS[0], history, titles)
    order = sorted(range(len(items)), key=lambda n: (-scores[titles.index(titles[n])], items[n]))
    return [(f"raw{items[n]}", titles[n], scores[titles.index(titles[n])]) for n in order]


def assert_same(actual, expected, tolerance=1e-3):
    assert [tuple(each[:2]) for each in actual] == [each[:2] for each in expected]
    assert [each[2] for each in actual] == pytest.approx([e[2] for e in expected], abs=tolerance)


# ---------------------------------------------------------------------------- lists are exact


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_list_equals_brute_force(model_with_catalogue, scoring):
    recommender = Recommender(model_with_catalogue, BeamSearch(scoring=scoring))
    expected = brute_force(scoring, HISTORY, range(len(ITEM_TITLES)))
    assert_same(recommender.recommend(HISTORY, top=99), expected)
    assert_same(recommender.recommend(HISTORY, top=4), expected[:4])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_seen_items_are_left_out_as_if_the_catalogue_lacked_them(model_with_catalogue, scoring):
    recommender = Recommender(model_with_catalogue, BeamSearch(scoring=scoring))
    seen = {ITEM_TITLES.index("Toy Story (1995)"), *HEAT_ITEMS}
    items = [item for item in range(len(ITEM_TITLES)) if item not in seen]
    ranked = recommender.recommend(HISTORY, top=99, exclude_seen=True)
    assert_same(ranked, brute_force(scoring, HISTORY, items))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("items", [[5], [0, 1], [2, 9, 24], [*range(0, 25, 2)], [*range(12, 25)]])
def test_the_list_has_allowed_items_only(model_with_catalogue, scoring, items):
    recommender = Recommender(model_with_catalogue, BeamSearch(scoring=scoring))
    within = {f"raw{item}" for item in items}
    ranked = recommender.recommend(HISTORY, top=99, within=within)
    assert_same(ranked, brute_force(scoring, HISTORY, items))
    seen = {ITEM_TITLES.index("Toy Story (1995)"), *HEAT_ITEMS}
    ranked = recommender.recommend(HISTORY, top=99, within=within, exclude_seen=True)
    if left := [item for item in items if item not in seen]:
        assert_same(ranked, brute_force(scoring, HISTORY, left))
    else:
        assert ranked == []


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_limit_within_another(model_with_catalogue, scoring):
    recommender = Recommender(model_with_catalogue, BeamSearch(scoring=scoring))
    limited = recommender.within([f"raw{item}" for item in range(5, 25)])
    within = [f"raw{item}" for item in range(0, 25, 2)]
    expected = brute_force(scoring, HISTORY, [*range(6, 25, 2)])
    assert_same(limited.recommend(HISTORY, top=99, within=within), expected)
    assert_same(limited.within(within).recommend(HISTORY, top=99), expected)


def test_fewer_beams_give_the_list_of_a_new_catalogue_at_the_same_width(tmp_path, recommender):
    items = [item for item in range(25) if item % 3]
    folder = write_fixed_model(tmp_path / "model")
    build_catalogue([ITEM_TITLES[item] for item in items]).save(folder / CATALOGUE)
    narrow = BeamSearch(num_beams=2)
    whole = Recommender(folder, narrow)
    limited = Recommender(recommender.folder, narrow).within([f"raw{item}" for item in items])
    for top in (1, 2, 5):
        expected = whole.recommend(["Item number 1"], top)
        actual = limited.recommend(["Item number 1"], top)
        assert [each.title for each in actual] == [each.title for each in expected]
        assert [each.score for each in actual] == [each.score for each in expected]


def test_an_id_names_one_of_several_items_with_a_title(recommender):
    one = f"raw{HEAT_ITEMS[0]}"
    ranked = recommender.recommend([one], top=99, exclude_seen=True)
    assert {each.id for each in ranked} == {f"raw{item}" for item in range(25)} - {one}
    assert recommender.recommend([one]) == recommender.recommend(["Heat"])


def test_conditions_on_columns(model_with_catalogue):
    shop = pd.DataFrame({"id": [f"raw{item}" for item in range(20)], "stock": range(20)})
    recommender = Recommender(model_with_catalogue, items=shop)
    by_id = recommender.recommend(["Heat"], 99, within=["raw18", "raw19", "raw99"])
    assert {each.id for each in by_id} == {"raw18", "raw19"}
    in_stock = pl.col("stock") > 17  # null for items without a row
    assert recommender.recommend(["Heat"], 99, within=in_stock) == by_id
    assert recommender.recommend(["Heat"], 99, within=lambda items: items["stock"] > 17) == by_id
    with pytest.raises(InputError, match="within: gives 25 values of Int64; it needs a boolean"):
        recommender.recommend(["Heat"], within=pl.col("stock"))
    with pytest.raises(InputError, match="items: id raw0 comes twice"):
        Recommender(model_with_catalogue, items=pd.concat([shop, shop])).items  # noqa: B018
    with pytest.raises(InputError, match="items: has no column id; it has stock"):
        Recommender(model_with_catalogue, items=shop[["stock"]]).items  # noqa: B018


# --------------------------------------------------------------------------------------- many


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_many_lists_equal_single_ones_in_any_order(recommender, batch_size, exclude_seen):
    alone = [recommender.recommend(history, 7, exclude_seen) for history in HISTORIES]
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 37):
        histories = [HISTORIES[n] for n in order]
        many = recommender.recommend_many(histories, 7, exclude_seen, batch_size=batch_size)
        for n, ranked in zip(order, many, strict=True):
            assert_same(ranked, alone[n], 1e-5)


def test_threads_share_a_recommender(recommender):
    alone = [recommender.recommend(history, 7) for history in HISTORIES]
    with ThreadPoolExecutor(4) as pool:
        many = pool.map(lambda history: recommender.recommend(history, 7), HISTORIES * 5)
        assert list(many) == alone * 5


def test_histories_in_a_frame_or_an_iterable(recommender):
    expected = recommender.recommend_many(HISTORIES)
    assert recommender.recommend_many(iter(HISTORIES)) == expected
    assert recommender.recommend_many(pl.DataFrame({"history": HISTORIES})) == expected
    assert recommender.recommend_many(pd.DataFrame({"history": HISTORIES})) == expected
    assert recommender.recommend_many([]) == []
    with pytest.raises(InputError, match="histories: has no column history; it has user"):
        recommender.recommend_many(pl.DataFrame({"user": HISTORIES}))


def test_a_user_who_has_seen_all_gets_an_empty_list(recommender):
    within = recommender.within(["raw3", "raw4"])
    first, second = within.recommend_many([["raw3", "raw4"], ["raw3"]], exclude_seen=True)
    assert first == [] and [each.id for each in second] == ["raw4"]


def test_a_long_history_is_cut_as_in_training_and_said_once(model_with_catalogue, caplog):
    recommender = Recommender(model_with_catalogue)
    long = ["raw5"] * 10_000 + ["raw3", "Heat", "raw20"]
    with caplog.at_level(logging.WARNING):
        assert recommender.recommend(long) == recommender.recommend(long[-3:])
        recommender.recommend(long)
    assert caplog.messages == ["histories are cut to their latest 3 items, as in training"]
    ranked = recommender.recommend(long, 99, exclude_seen=True)
    assert "raw5" not in {each.id for each in ranked}


def test_unknown_ids_are_left_out_and_said_once(model_with_catalogue, caplog):
    recommender = Recommender(model_with_catalogue)
    with caplog.at_level(logging.WARNING):
        ranked = recommender.recommend(["Heat"], 99, within=["raw7", "x", "raw3", "y", "x"])
        recommender.within(["raw5", "z"]).recommend(["Heat"])
    assert ranked == recommender.recommend(["Heat"], 99, within=["raw3", "raw7"])
    assert caplog.messages == [
        "within: ids that are not in the catalogue are left out: 2, such as 'x'"
    ]


# ------------------------------------------------------------------------------------ new items


@pytest.mark.parametrize("scoring", SCORINGS)
def test_new_items_need_no_training(model_with_catalogue, scoring):
    titles = ["Heat 2", "Toy Story 3 (2010)", "Item number 99", "Heat"]
    recommender = Recommender(model_with_catalogue, BeamSearch(scoring=scoring))
    ranked = recommender.with_items(titles).recommend(["Toy Story (1995)", "Heat 2"], 99)
    history = ["Toy Story (1995)", "Heat 2"]
    scores = brute_force_scores(scoring, INSTRUCTIONS[0], history, titles)
    expected = sorted(zip(titles, titles, scores, strict=True), key=lambda each: -each[2])
    assert_same(ranked, expected)
    frame = pl.DataFrame({"id": [1, 2, 3, 4], "title": titles, "new": [True, True, False, False]})
    new = recommender.with_items(frame)
    ranked = new.recommend(["raw3", "2"], 99, within=pl.col("new"), exclude_seen=True)
    assert [tuple(each[:2]) for each in ranked] == [("1", "Heat 2")]


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (
            ["Heat", "toy stroy (1995)"],
            "history: there is no id or title 'toy stroy (1995)'; the closest are "
            "'Toy Story (1995)', 'Toy Story 2 (1999)', ",
        ),
        ([], "history: takes a list of ids or titles, at least one, not []"),
        ("Heat", "history: takes a list of ids or titles, at least one, not 'Heat'"),
        ([None], "history: takes ids and titles, not None"),
        ([["Heat"]], "history: takes ids and titles, not ['Heat']"),
    ],
)
def test_a_wrong_history_is_refused(recommender, history, message):
    with pytest.raises(InputError) as caught:
        recommender.recommend(history)
    assert str(caught.value).startswith(message)


def test_a_text_that_is_an_id_and_another_items_title_is_refused(tmp_path):
    folder = write_fixed_model(tmp_path / "model")
    build_catalogue(["raw1", "Heat", "raw2"]).save(folder / CATALOGUE)
    recommender = Recommender(folder)
    assert recommender.recommend(["raw0"]) != recommender.recommend(["Heat"])
    message = "history: 'raw1' is the id of 'Heat' and the title of 'raw0'; give the id"
    with pytest.raises(InputError, match=message):
        recommender.recommend(["raw1"])


@pytest.mark.parametrize("within", [[], ["raw99"], lambda items: [False] * len(items)])
def test_at_least_one_item_must_be_allowed(recommender, within):
    with pytest.raises(InputError, match="within: allows no item of the catalogue, whose ids"):
        recommender.recommend(["Heat"], within=within)


@pytest.mark.parametrize("top", [0, -1, 1.5])
def test_a_list_has_at_least_one_item(recommender, top):
    with pytest.raises(InputError, match="top: must be a whole number of at least 1"):
        recommender.recommend(["Heat"], top=top)


def test_a_folder_without_a_catalogue_is_refused(fixed_model):
    with pytest.raises(InputError, match=r"catalogue.safetensors: no such file; `rere sft`, "):
        Recommender(fixed_model)


def test_a_catalogue_of_another_tokenizer_is_refused(tmp_path):
    folder = write_fixed_model(tmp_path)
    catalogue = build_catalogue(["a", "b"])
    build_catalogue(["a", "c"]).save(folder / CATALOGUE)
    object.__setattr__(catalogue, "fingerprint", "another")
    catalogue.save(folder / CATALOGUE)
    with pytest.raises(InputError, match=r"catalogue.safetensors: made with another tokenizer"):
        Recommender(folder)


# ---------------------------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("heat", "Heat"),
        ("HEAT_ITEMS", "Heat"),
        ("Item nubmer 7", "Item number 7"),
        ("Toy Story", "Toy Story (1995)"),
        ("x", None),
        ("", None),
    ],
)
def test_closest_titles(name, expected):
    found = closest_titles(name, dict.fromkeys(ITEM_TITLES))
    assert len(found) == len(set(found)) == 3
    assert set(found) <= set(ITEM_TITLES)
    assert expected is None or found[0] == expected


def test_closest_titles_of_two_are_both():
    assert sorted(closest_titles("a", ["b", "c"])) == ["b", "c"]
