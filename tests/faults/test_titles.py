"""Titles that look alike are one title, and a hit is the same thing in RL, validation and test."""

import json
import unicodedata
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_files import write as write_raw
from tiny_models import CYCLE, causal_lm, write_data

from rere import Recommender
from rere.catalogue import CATALOGUE, Catalogue, find_shadowed, with_titles
from rere.config.data import OwnTables, Splits
from rere.config.evaluation import Recommend
from rere.config.rl import RlOptions
from rere.config.training import SftOptions
from rere.data.dataset import read_items
from rere.data.preprocess import preprocess
from rere.data.titles import clean_titles, normalise_text, unify_titles
from rere.errors import InputError
from rere.evaluation.metrics import read_test_predictions, row_metrics
from rere.evaluation.recommend import recommend
from rere.prefix_tree import PrefixTree
from rere.ranks import ALONE
from rere.token_lengths import token_lengths
from rere.tokenization import PromptEncoder
from rere.training.groups import Rollouts
from rere.training.rewards import make_reward
from rere.training.setup import load_setup
from rere.training.validation import SELECTION_METRIC, validate_ndcg

# ---------------------------------------------------------------------------------- lookalikes


def unified(title: str) -> str:
    return unify_titles(normalise_text(pl.Series([title, "another"]))).to_list()[0]


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("\u1100\u1161", "\uac00"),  # Hangul letters, and the syllable
        ("A\u030a \u212b \u00c5", "\u00c5 \u00c5 \u00c5"),
        ("Zero\u200bwidth\u200d \u2060\ufeffand\u00ad \u202emarks\u202c", "Zerowidth and marks"),
        ("e\u200b\u0301", "\u00e9"),
        ("\u2764\ufe0f \U0001f468\u200d\U0001f469", "\u2764 \U0001f468\U0001f469"),
        ("fill\u3164er \u115fs\u034f \U000e0041", "filler s"),
        ("R&amp;amp;amp;B &amp;lt;3", "R&B <3"),
        ("&amp;#39;n&amp;#x27;", "'n'"),
        ("&amp;zwj;a&amp;shy;b&amp;nbsp; c", "ab c"),
        ("<b>Bold</b> and <I class='x'>it</i>", "Bold and it"),
        ("H<sub>2</sub>O<br/>Two<BR>lines <p>", "H2O Two lines"),
        ("&lt;b&gt;Doll&lt;/b&gt;", "Doll"),
        ('Doll <a href="http://exam', "Doll"),
        ("Doll <!-- hidden -->house<!-- cut", "Doll house"),
        ("Doll<script type='x'>f(1 < 2)</script> house", "Doll house"),
        ("Doll <style>p {x: y}", "Doll"),
        ("Doll var aPageStart = (new Date()).getTime();", "Doll"),
        ("Doll var ue_t0=ue_t0||+new Date(); x", "Doll"),
        ("Doll (function(){ x", "Doll"),
        ("\u200b'quoted'\u200b", "'quoted'"),
        ('\u200b"quoted"\u200b', "quoted"),
        # Kept: text that only resembles markup, compatibility forms, visible signs.
        ("I <3 U, a < b > c", "I <3 U, a < b > c"),
        ("<Untitled> by <Nobody>", "<Untitled> by <Nobody>"),
        ("var, variable and function", "var, variable and function"),
        ("AT&T &unknown; &", "AT&T &unknown; &"),
        ("\uff37ide \ufb01 ™ ²", "\uff37ide \ufb01 ™ ²"),
        ("日本 🎲 Ω", "日本 🎲 Ω"),
    ],
)
def test_titles_that_look_alike_become_equal(raw, title):
    assert unified(raw) == unicodedata.normalize("NFC", title)


PIECES = [
    "a",
    "é",
    "e",
    "\u0301",
    "\u200b",
    "\u200d",
    "&",
    "amp;",
    "lt;",
    "gt;",
    "b",
    "<",
    ">",
    "/",
]
PIECES += [" ", '"', "quot;", "#39;", "<br>", "<b>", "var x =", "<!--", "-->", "script", "\ufe0f"]


@pytest.mark.fuzz
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=30))
def test_a_unified_title_is_not_changed_again(text):
    once = unified(text)
    assert unified(once) == once
    assert once == unicodedata.normalize("NFC", once)
    assert not any(unicodedata.category(character) in ("Cf", "Cc") for character in once)
    assert once == " ".join(once.split(" ")).strip(" ")


def test_the_published_rules_come_first_and_decide_what_is_kept():
    titles = pl.DataFrame(
        {
            "item": ["tag", "long", "char", "gone", "hidden", "var", "span"],
            "title": [
                "<b>A</b>",  # one character is left, but the rule saw eight
                "one <b> two </b>",  # four words to the rule
                "\u200b",
                "\u200b\u200b",
                "<i></i>",
                "var aPageStart = (new Date()).getTime();",
                "&amp;lt;span id=x&gt;",
            ],
        }
    )
    nothing = "with nothing but markup for a title"
    assert clean_titles(titles, 8).sort("item").rows() == sorted(
        [
            ("tag", "A", None),
            ("long", "one two", None),
            ("char", "", "with a title of one character"),
            ("gone", "", nothing),
            ("hidden", "", nothing),
            ("var", "", nothing),
            ("span", "", nothing),
        ]
    )
    assert clean_titles(titles, 3).filter(item="long")["fault"].item() is not None


def test_lookalikes_share_their_title_and_what_is_dropped_is_counted(tmp_path):
    titles = {"1": "Caf\u00e9", "2": "Cafe\u0301", "3": "Ca<b>f</b>\u00e9 \u200b", "4": "<i></i>"}
    events = [(user, item, n) for user in "abc" for n, item in enumerate("123412341")]
    write_raw("table", tmp_path / "raw", events, titles)
    preprocess(OwnTables(core=1), tmp_path / "raw", tmp_path / "data")
    assert read_items(tmp_path / "data")["title"].to_list() == ["Caf\u00e9"] * 3
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert stats["interactions_dropped"]["of an item with nothing but markup for a title"] == 6


@pytest.mark.parametrize(
    ("title", "fault"),
    [
        ("", "has no title"),
        (" ", "has no title"),
        ("\u200b\ufeff\u3164", "has no title"),
        ("a\tb", "a line end, a tab or a control character"),
        ("a\nb", "a line end, a tab or a control character"),
        ("a\u2028b", "a line end, a tab or a control character"),
        ("a\x00b", "a line end, a tab or a control character"),
        ("x" * 1001, "a title of more than 1000 characters"),
    ],
)
def test_ready_made_splits_with_unusable_titles_are_refused(tmp_path, title, fault):
    raw = tmp_path / "raw"
    rows = {name: [([0], 1)] for name in ("train", "valid", "test")}
    write_data(raw, ["Alpha", "Beta", title, "Cafe\u0301"], **rows)
    with pytest.raises(InputError) as error:
        preprocess(Splits(), raw, tmp_path / "data")
    assert "items.parquet: row at position 2 has" in str(error.value) and fault in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


# ----------------------------------------------------------------------------- one kind of hit

TITLES = [*CYCLE, "Caf\u00e9", "Cafe\u0301", "Caf\u00e9"]
"""The last three have the same tokens under a tokenizer that composes accents."""

SHADOWED = 9
ROWS = [([item], target) for item, target in enumerate([8, 9, 10, 0, 9, 3, 8, 2])]


def write_shadowed(folder: Path) -> tuple[Path, Path]:
    """Write a model, and a data folder with TITLES and ROWS in every split; return both."""
    data = write_data(folder / "data", TITLES, train=ROWS, valid=ROWS, test=ROWS)
    return tiny_models.write_fixed_model(folder / "model"), data


@cache
def shadowing() -> Catalogue:
    encoder = PromptEncoder(tiny_models.tokenizer("qwen2"), TITLES)
    ids = [str(item) for item in range(len(TITLES))]
    return Catalogue.build(encoder, encoder.encode_responses(), ids, max_history=3)


def test_a_leaf_stands_for_the_title_of_its_first_item():
    tree = shadowing().tree
    assert len(set(tree.leaf_of_item[8:].tolist())) == 1
    assert tree.shadowed.tolist() == [SHADOWED]
    expected = tree.leaf_of_item.clone()
    expected[SHADOWED] = -2
    assert tree.hit_leaf.equal(expected)


def test_unknown_characters_shadow_titles_too():
    encoder = PromptEncoder(tiny_models.tokenizer("unigram"), ["ab 東", "ab 京", "ab", "ab 東"])
    leaf = PrefixTree.build(encoder.encode_responses()).leaf_of_item
    assert find_shadowed(leaf, encoder.titles) == [(1, 0)]


def rollouts(group_size: int) -> Rollouts:
    options = RlOptions(
        learning_rate=1e-3,
        steps=1,
        prompts=8,
        rows_per_pass=8,
        group_size=group_size,
        beta=0.0,
        validations=1,
    )
    rewards = {"rule": make_reward("rule")}
    return Rollouts(options, 0, shadowing().tree, rewards, torch.device("cpu"))


def batch() -> dict:
    encoder = PromptEncoder(tiny_models.tokenizer("qwen2"), TITLES)
    histories, targets = zip(*ROWS, strict=True)
    row_ids = list(range(16, 24))  # those of the test rows
    return {
        "prompts": encoder.encode_prompts(row_ids, histories, seed=0),
        "row_id": row_ids,
        "history": list(histories),
        "target": torch.tensor(targets),
    }


@pytest.mark.parametrize("size", [1, 3, 5, 10])
def test_rl_validation_and_test_count_the_same_hits(tmp_path, size):
    model, data = write_shadowed(tmp_path)
    policy = causal_lm("qwen2", len(tiny_models.tokenizer("qwen2")))
    inputs, beams = batch(), max(size, 2)
    hits = rollouts(beams)(policy, inputs, step=0).hit[:, :size].any(-1)

    output = tmp_path / "predictions.parquet"
    recommend(Recommend(rows=None, num_beams=beams), model, data, 0, output)
    frame = read_test_predictions(output, data, read_items(data))
    rows = row_metrics(frame, read_items(data))
    assert hits.tolist() == [value == 1 for value in rows[f"HR@{size}"]]
    assert not hits[[1, 4]].any()  # their target is the twin
    assert not any(SHADOWED in ranked for ranked in frame["items"])

    trainer = SimpleNamespace(
        get_eval_dataloader=lambda: [inputs],
        eval_dataset=inputs["prompts"],
        args=SimpleNamespace(eval_batch_size=len(inputs["prompts"])),
        ranks=ALONE,
        autocast=nullcontext,
        language_model=policy,
    )
    found = validate_ndcg(trainer, shadowing().tree, beams, "catalogue")
    assert found[SELECTION_METRIC] == pytest.approx(rows["NDCG@10"].mean())
    assert size < 10 or hits.sum() == 6  # all others are found


def test_the_log_names_the_first_title_that_cannot_be_told_from_another(tmp_path, caplog):
    model, data = write_shadowed(tmp_path)
    setup = load_setup(SftOptions(learning_rate=1e-3), model, data, 0, min_rows=1)
    assert setup.catalogue.tree.shadowed.tolist() == [SHADOWED]
    assert caplog.messages == [
        "1 titles have the same tokens as another one and are never recommended, such as item 9 "
        "'Cafe\\u0301' (as item 8 'Caf\\xe9'); rename them or take another backbone"
    ]


def test_recommending_names_it_too_and_never_lists_it(tmp_path, caplog):
    folder, data = write_shadowed(tmp_path)
    shadowing().save(folder / CATALOGUE)
    caplog.clear()
    recommend(Recommend(rows=None, num_beams=9), folder, data, 0, tmp_path / "p.parquet")
    assert caplog.text.count("as item 8") == 1
    ranked = Recommender(folder).recommend(["Alpha One"], 20)
    expected = sorted(title for title in TITLES if title != TITLES[SHADOWED])
    assert sorted(each.title for each in ranked) == expected


def test_titles_that_differ_for_the_tokenizer_give_no_warning(caplog):
    encoder = PromptEncoder(tiny_models.tokenizer("gpt2"), TITLES)
    tree = with_titles(PrefixTree.build(encoder.encode_responses()), TITLES)
    assert tree.shadowed.tolist() == []
    assert caplog.messages == []


def test_token_lengths_list_all_pairs(tmp_path):
    _, data = write_shadowed(tmp_path)
    tiny_models.tokenizer("qwen2").save_pretrained(tmp_path / "backbone")
    token_lengths(tmp_path / "backbone", data, None, tmp_path / "lengths.json")
    found = json.loads((tmp_path / "lengths.json").read_text())
    assert found["shadowed"] == [
        {"item": 9, "title": "Cafe\u0301", "by_item": 8, "by_title": "Caf\u00e9"}
    ]


# ------------------------------------------------------------------------------- catalogue file


def saved(folder: Path) -> Path:
    sequences = [[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], [9, 5, 0]]
    ids = ["1", "2", "3", "4"]
    tree = PrefixTree.build(sequences)
    Catalogue(["a", "b", "é", "a"], tree, "f", ids, 3).save(folder / CATALOGUE)
    return folder / CATALOGUE


@pytest.mark.fuzz
@given(st.data())
def test_a_catalogue_with_any_bytes_changed_is_refused_or_the_same(tmp_path_factory, data):
    path = saved(tmp_path_factory.mktemp("changed"))
    before, content = Catalogue.load(path, 10), bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        changed = data.draw(st.binary(min_size=1, max_size=9))
        content[start : start + len(changed)] = changed
    else:
        del content[start:]
    path.write_bytes(content)
    try:
        loaded = Catalogue.load(path, 10)
    except InputError as error:
        assert str(error) == f"{path}: not a catalogue; train the model again"
        return
    assert loaded.titles == before.titles
    for name in ("token", "edge", "first_child", "leaf_of_item", "depth"):
        assert getattr(loaded.tree, name).equal(getattr(before.tree, name))


def test_one_changed_token_or_letter_is_refused(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    token = np.array([7], dtype=np.int64).tobytes()
    for old, new in (
        (token, np.array([8], dtype=np.int64).tobytes()),
        ("é".encode(), "è".encode()),
    ):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match="not a catalogue; train the model again"):
            Catalogue.load(path, 10)
