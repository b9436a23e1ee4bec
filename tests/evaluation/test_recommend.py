"""Recommendations against a brute-force ranking of the whole catalogue.

For the rows of a test split, and for one history of titles.
"""

from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import TITLES, causal_lm, tokenizer, write_data, write_fixed_model

from rere.backbones import load_model
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.evaluation import Recommend, Search
from rere.data.splits import read_split
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.evaluation import recommend as module
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import closest, continue_history, recommend
from rere.tokenization import PromptEncoder, choose_instruction, prompt_text, response_text

NAMES = [*TITLES, *(f"Item number {number}" for number in range(12)), "Heat"]
"""25 items; three of them are called Heat."""

HEAT = [item for item, title in enumerate(NAMES) if title == "Heat"]
ROWS = [([item % 25, (3 * item + 1) % 25][: 1 + item % 2], (7 * item) % 25) for item in range(12)]
SEED = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a test split only; nothing else is needed."""
    return write_data(tmp_path_factory.mktemp("data"), NAMES, test=ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scores of any two titles are far apart."""
    return write_fixed_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    encoder = PromptEncoder(tokenizer("qwen2"), NAMES)
    return Catalogue.build(encoder, encoder.responses())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Path:
    """The same model with its catalogue, as training leaves it."""
    folder = write_fixed_model(tmp_path_factory.mktemp("trained"))
    catalogue.save(folder / CATALOGUE)
    return folder


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> pl.DataFrame:
    """All test rows, with more beams than titles."""
    path = tmp_path_factory.mktemp("all") / "predictions.parquet"
    recommend(Recommend(rows=None, num_beams=30), model, data, SEED, path)
    return read_predictions(path)


def predict(tmp_path: Path, model: Path, data: Path, seed: int = SEED, **options) -> pl.DataFrame:
    recommend(Recommend(**options), model, data, seed, tmp_path / "predictions.parquet")
    return read_predictions(tmp_path / "predictions.parquet")


@torch.no_grad()
def scores_by_item(scoring: str, row_id: int, history: list[int]) -> list[float]:
    """log p(title | prompt) of every item, by one plain pass over the joint text for each.

    Under `catalogue` a token competes with those that continue some title as far as this one.
    """
    tokens = tokenizer("qwen2")
    model = causal_lm("qwen2", len(tokens))
    prompt = prompt_text(choose_instruction(SEED, row_id), [NAMES[item] for item in history])
    start = len(tokens(prompt).input_ids)
    sequences = [
        [*tokens(prompt + response_text(title)).input_ids, tokens.eos_token_id] for title in NAMES
    ]
    scores = []
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        score = 0.0
        for place in range(start, len(ids)):
            allowed = range(logits.shape[1])
            if scoring == "catalogue":
                allowed = {s[place] for s in sequences if s[:place] == ids[:place]}
            competing = logits[place - 1, list(allowed)].logsumexp(0)
            score += (logits[place - 1, ids[place]] - competing).item()
        scores.append(score)
    return scores


def assert_same(actual: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same rows and items, scores but for the rounding that another batch brings."""
    assert actual.drop("scores").equals(expected.drop("scores"))
    torch.testing.assert_close(
        actual["scores"].explode().to_torch(),
        expected["scores"].explode().to_torch(),
        atol=1e-3,
        rtol=0,
    )


@pytest.mark.parametrize("scoring", ["catalogue", "vocabulary"])
def test_equals_a_brute_force_ranking(tmp_path, model, data, scoring):
    all_rows = predict(tmp_path, model, data, rows=None, num_beams=30, scoring=scoring)
    for row_id, items, scores in all_rows.select("row_id", "items", "scores").iter_rows():
        by_item = scores_by_item(scoring, row_id, ROWS[row_id][0])
        # Best first; items of one title have one score and follow each other by id.
        expected = sorted(
            range(len(NAMES)), key=lambda item: (-by_item[HEAT[0] if item in HEAT else item], item)
        )
        assert items == expected
        assert scores == pytest.approx([by_item[item] for item in items], abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"scoring": "vocabulary", "length_penalty": 1.5}])
def test_equals_a_search_row_by_row(tmp_path, model, data, catalogue, options):
    written = predict(tmp_path, model, data, rows=None, num_beams=7, **options)
    encoder = PromptEncoder(tokenizer("qwen2"), NAMES)
    penalty = options.get("length_penalty", 0.0)
    for row_id, items, scores in written.select("row_id", "items", "scores").iter_rows():
        (leaf,), (score,) = beam_search(
            load_model(model),
            catalogue.tree,
            encoder.prompts([row_id], [ROWS[row_id][0]], SEED),
            7,
            options.get("scoring", "catalogue"),
            penalty,
        )
        assert items == [item for n in leaf.tolist() for item in catalogue.tree.leaf_items[n]]
        assert sorted(set(scores), reverse=True) == pytest.approx(score.tolist(), abs=1e-3)


def test_every_row_is_there_in_the_order_of_the_split(predictions, data):
    columns = ["row_id", "user_id", "target"]
    assert predictions.select(columns).equals(read_split(data, "test").select(columns))


def test_items_of_one_title_follow_each_other_by_id(predictions):
    for items, scores in predictions.select("items", "scores").iter_rows():
        place = items.index(HEAT[0])
        assert items[place : place + 3] == HEAT
        assert len(set(scores[place : place + 3])) == 1


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(tmp_path, model, data, predictions, batch_size):
    again = predict(tmp_path, model, data, rows=None, num_beams=30, batch_size=batch_size)
    assert_same(again, predictions)


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_the_sampled_rows_are_those_of_the_split(tmp_path, model, data, predictions, rows):
    sample = predict(tmp_path, model, data, rows=rows, num_beams=30)
    assert sample["row_id"].to_list() == read_split(data, "test", rows)["row_id"].to_list()
    # A row's prediction does not depend on which others are scored.
    assert_same(sample, predictions.filter(pl.col("row_id").is_in(sample["row_id"].to_list())))


def test_more_rows_than_there_are(tmp_path, model, data, predictions):
    assert_same(predict(tmp_path, model, data, rows=99, num_beams=30), predictions)


def test_the_list_length_cuts_the_list(tmp_path, model, data, predictions):
    short = predict(tmp_path, model, data, rows=None, num_beams=30, list_length=20)
    expected = predictions.with_columns(pl.col("items", "scores").list.head(20))
    assert_same(short, expected)


def test_few_beams_give_as_many_titles(tmp_path, model, data):
    few = predict(tmp_path, model, data, rows=None, num_beams=3)
    titles = [len({NAMES[item] for item in items}) for items in few["items"]]
    assert titles == [3] * len(ROWS)


def test_the_seed_chooses_the_prompts(tmp_path, model, data, predictions):
    other = predict(tmp_path, model, data, seed=SEED + 1, rows=None, num_beams=30)
    changed = [
        choose_instruction(SEED, row) != choose_instruction(SEED + 1, row)
        for row in range(len(ROWS))
    ]
    assert any(changed)
    for row, change in enumerate(changed):
        scores, before = other["scores"][row], predictions["scores"][row]
        assert ((scores - before).abs().max() > 1e-2) == change


def test_bfloat16_scores_are_close(tmp_path, model, data, predictions):
    coarse = predict(tmp_path, model, data, rows=None, num_beams=30, dtype="bfloat16")
    # A bfloat16 has 8 bits, and scores are sums of some ten log-probabilities.
    best = predictions["scores"].list.first().to_list()
    assert coarse["scores"].list.first().to_list() == pytest.approx(best, rel=0.1)


def test_tokens_agree_with_the_encoder():
    """The oracle above tokenises joint texts on its own; the encoder must agree with it."""
    encoder = PromptEncoder(tokenizer("qwen2"), NAMES)
    (prompt,) = encoder.prompts([0], [ROWS[0][0]], SEED)
    text = prompt_text(choose_instruction(SEED, 0), [NAMES[item] for item in ROWS[0][0]])
    assert prompt == tokenizer("qwen2")(text).input_ids


# ------------------------------------------------------------------- the catalogue of the folder


def test_the_catalogue_of_the_folder_is_taken(
    tmp_path, model, trained, data, predictions, monkeypatch
):
    expected = predict(tmp_path, model, data, rows=None, num_beams=30)
    monkeypatch.delattr(PromptEncoder, "responses")  # nothing is tokenised again
    assert predict(tmp_path, trained, data, rows=None, num_beams=30).equals(expected)


def test_the_catalogue_of_other_titles_is_not(tmp_path, model, data, predictions):
    folder = write_fixed_model(tmp_path / "other")
    encoder = PromptEncoder(tokenizer("qwen2"), NAMES[::-1])
    Catalogue.build(encoder, encoder.responses()).save(folder / CATALOGUE)
    expected = predict(tmp_path, model, data, rows=None, num_beams=30)
    assert predict(tmp_path, folder, data, rows=None, num_beams=30).equals(expected)


def test_a_damaged_catalogue_is_refused(tmp_path, data):
    folder = write_fixed_model(tmp_path / "damaged")
    (folder / CATALOGUE).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"catalogue.safetensors: not a catalogue; train"):
        predict(tmp_path, folder, data)


def test_the_batch_size_is_chosen_unless_given(tmp_path, model, data, monkeypatch):
    sizes = []

    def search(policy, tree, prompts, *rest):
        sizes.append(len(prompts))
        return beam_search(policy, tree, prompts, *rest)

    monkeypatch.setattr(module, "beam_search", search)
    monkeypatch.setattr(module, "max_batch_size", lambda *_: 8)
    predict(tmp_path, model, data, rows=None, num_beams=2)
    predict(tmp_path, model, data, rows=None, num_beams=2, batch_size=5)
    assert sizes == [8, 4, 5, 5, 2]


# -------------------------------------------------------------------------- a history of titles


@pytest.mark.parametrize("scoring", ["catalogue", "vocabulary"])
def test_a_history_equals_a_brute_force_ranking(trained, scoring):
    history = [NAMES.index("Toy Story (1995)"), HEAT[0]]
    options = Search(scoring=scoring)
    ranked = continue_history(options, trained, [NAMES[i] for i in history], 99, SEED)
    by_title = dict(zip(NAMES, scores_by_item(scoring, 0, history), strict=True))
    assert [title for title, _ in ranked] == sorted(by_title, key=by_title.get, reverse=True)
    assert [score for _, score in ranked] == pytest.approx(
        sorted(by_title.values(), reverse=True), abs=1e-3
    )


@pytest.mark.parametrize("top", [1, 3, 10])
def test_the_top_of_a_history(trained, top):
    everything = continue_history(Search(), trained, ["Heat"], 99, SEED)
    assert len(everything) == len(set(NAMES))
    some = continue_history(Search(), trained, ["Heat"], top, SEED)
    assert [title for title, _ in some] == [title for title, _ in everything[:top]]
    # Never fewer beams than titles.
    assert len(continue_history(Search(num_beams=2), trained, ["Heat"], top, SEED)) == top


def test_an_unknown_title_is_answered_with_the_closest(trained):
    with pytest.raises(InputError) as caught:
        continue_history(Search(), trained, ["Heat", "toy stroy (1995)"], 5, SEED)
    assert str(caught.value).startswith(
        "there is no title 'toy stroy (1995)'; the closest are "
        "'Toy Story (1995)', 'Toy Story 2 (1999)', "
    )


def test_a_folder_without_a_catalogue_is_refused(model):
    with pytest.raises(InputError, match=r"catalogue.safetensors: no such file; `rere sft` and"):
        continue_history(Search(), model, ["Heat"], 5, SEED)


def test_a_catalogue_of_another_tokenizer_is_refused(tmp_path, catalogue):
    folder = write_fixed_model(tmp_path)
    Catalogue(NAMES, catalogue.tree, "of another").save(folder / CATALOGUE)
    with pytest.raises(InputError, match=r"catalogue.safetensors: not of this tokenizer and pr"):
        continue_history(Search(), folder, ["Heat"], 5, SEED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("heat", "Heat"),
        ("HEAT", "Heat"),
        ("Item nubmer 7", "Item number 7"),
        ("Toy Story", "Toy Story (1995)"),
        ("x", None),
        ("", None),
    ],
)
def test_the_closest_titles(name, expected):
    found = closest(name, dict.fromkeys(NAMES))
    assert len(found) == len(set(found)) == 3
    assert set(found) <= set(NAMES)
    assert expected is None or found[0] == expected


def test_few_titles_are_all_close():
    assert sorted(closest("a", ["b", "c"])) == ["b", "c"]
