"""The model card: what it says of a run, and the code that it shows."""

import re

import pytest
from huggingface_hub import ModelCard
from tiny_models import TITLES, TOKENIZERS, causal_lm, tokenizer
from transformers import AutoModelForCausalLM

from rere.model_card import (
    REPO,
    TEST_METRICS,
    Base,
    TrainedRun,
    complete_card,
    fenced,
    read_base,
    trained_card,
)
from rere.tokenization import INSTRUCTIONS, PromptEncoder, prompt_text

RUN = TrainedRun(
    dataset="small",
    num_rows=1500,
    stage="sft",
    summary="Fine-tune it.",
    init="the model `tiny`",
    options={"learning_rate": 1e-3, "train_part": [0.0, 1.0]},
    seed=7,
    metric="loss",
    best_value=3.14159,
    best_step=40,
    base=Base("owner/base", {"license": "other", "license_name": "own"}),
)


def card(kind: str = "qwen2", **changes) -> str:
    """The card of RUN with changes."""
    return trained_card(RUN._replace(**changes), PromptEncoder(tokenizer(kind), TITLES), 5)


def rows(text: str) -> dict[str, str]:
    """The rows of the card's first table."""
    return dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", text, re.M))


# ---------------------------------------------------------------------------------- what it says


def test_the_header_has_the_hubs_metadata():
    assert ModelCard(card()).data.to_dict() == {
        "base_model": "owner/base",
        "library_name": "transformers",
        "license": "other",
        "license_name": "own",
        "pipeline_tag": "text-generation",
        "tags": ["rere", "recommendation", "sft"],
    }


def test_the_table_has_data_stage_base_and_validation():
    assert rows(card()) == {
        "data set": "small: 12 items, 1,500 training rows",
        "stage": "`rere sft`. Fine-tune it.",
        "started from": "the model `tiny`",
        "base model": "owner/base",
        "licence of the base model": "own",
        "seed": "7",
        "validation": "loss 3.1416 at step 40, the best; its weights were kept",
    }
    assert "```yaml\nlearning_rate: 0.001\ntrain_part:\n- 0.0\n- 1.0\n```" in card()


@pytest.mark.parametrize(
    ("base", "model", "license_"),
    [
        (Base(), "unknown", "not found in its files; see where you got it"),
        (Base("a/b"), "a/b", "not found in its files; see the page of a/b on the hub"),
        (Base("a/b", {"license": "mit"}), "a/b", "mit"),
        (Base("a/b", {"license": "mit"}, commit="12ef"), "a/b, commit 12ef", "mit"),
        (Base(is_random=True), "none: the first stage began with random weights", None),
    ],
)
def test_what_is_not_known_of_the_base_is_said(base, model, license_):
    found = rows(card(base=base))
    assert (found["base model"], found.get("licence of the base model")) == (model, license_)
    assert ("license" in ModelCard(card(base=base)).data.to_dict()) == bool(base.license)


def test_the_initial_model_may_be_the_best():
    assert rows(card(best_step=0))["validation"].startswith("loss 3.1416 at step 0, the initial")
    assert rows(card(best_value=None))["validation"] == "none"


def test_the_prompt_is_that_of_training():
    text = card()
    assert f"```text\n{prompt_text(INSTRUCTIONS[0], TITLES[:2])}\n```" in text
    assert all(f"* {instruction}\n" in text for instruction in INSTRUCTIONS)
    assert f"{tokenizer('qwen2').eos_token}" in text
    assert "'\"Heat\"\\n'" in text


def test_backticks_in_a_title_do_not_end_the_block():
    assert fenced("a ```` b", "text") == "`````text\na ```` b\n`````"


# --------------------------------------------------------------------------------- code to paste


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_code_for_transformers_makes_the_same_prompt(kind, tmp_path, monkeypatch):
    """With BOS and without; EOS is not added."""
    tokenizer(kind).save_pretrained(tmp_path)
    model = causal_lm("qwen2", len(tokenizer(kind)))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda _: model)
    *_, code = re.findall("```python\n(.*?)```", card(kind), re.S)
    found: dict = {}
    exec(code.replace(REPO, str(tmp_path)), found)
    expected = PromptEncoder(tokenizer(kind), TITLES).encode_histories([[0, 1]])
    assert found["ids"].tolist() == expected


# ---------------------------------------------------------------------------------- cards of bases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\nbase_model: a/b\n---\n", Base(license={"license": "mit"})),
        (
            "---\nlicense: mit\nbase_model: a/b\ntags: [rere]\n---\n",
            Base("a/b", {"license": "mit"}),
        ),
        ("---\nlicense: [mit]\nbase_model: [a/b]\ntags: [rere]\n---\n", Base()),
        ("---\ntags: [rere, random-weights]\n---\n", Base(is_random=True)),
        ("---\ntags: rere\n---\n", Base()),
        ("---\na: b: c\n---\n", Base()),
        ("---\n- a\n---\n", Base()),
        ("---\n" + "[" * 2000 + "\n---\n", Base()),
        ("# No metadata\n", Base()),
        ("\ud800", Base()),
        (None, Base()),
    ],
)
def test_what_a_card_says_of_its_base(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "README.md").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_base(tmp_path) == expected


def test_a_trained_models_card_has_the_base_of_its_first_one(tmp_path):
    for base in (
        RUN.base,
        RUN.base._replace(commit="12ef"),
        Base(is_random=True),
        Base(license={"license": "mit"}),
        Base(),
    ):
        (tmp_path / "README.md").write_text(card(base=base))
        assert read_base(tmp_path) == base


# --------------------------------------------------------------------------------- filled in later


def test_the_repository_and_the_test_metrics_are_filled_in():
    metrics = {"dataset": "small", "rows": 2000}
    for k, share in zip((1, 3, 5, 10, 20), (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        for name, value in ((f"HR@{k}", share), (f"NDCG@{k}", share / 2)):
            metrics |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
    text = complete_card(card(), "me/mine", metrics)
    assert "| 10 | 0.4000 [0.3500, 0.4500] | 0.2000 [0.1500, 0.2500] |" in text
    assert "2,000 test rows of small" in text
    assert text.count('"me/mine"') == 3
    assert REPO not in text
    assert TEST_METRICS not in text
    assert complete_card(card(), REPO, None) == card()
