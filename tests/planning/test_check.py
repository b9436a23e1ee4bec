"""`rere check`: each question, for backbones that fit and for those that do not."""

import json

import pytest
import torch
from huggingface_hub import constants
from tiny_models import CYCLE, causal_lm, tokenizer, write_data
from tokenizers import normalizers

from rere.backbones import load_tokenizer
from rere.cli import parse
from rere.engine.search.beam import Beams
from rere.errors import InputError
from rere.planning.check import (
    CONTEXT,
    LORA,
    MASKS,
    MEMORY,
    PRECISION,
    QUESTIONS,
    RUNS,
    TITLES,
    Answer,
    as_json,
    as_text,
    check,
    compare_lists,
    raise_if_failing,
)
from rere.planning.plan import Target

GB = 10**9
CPU = Target(torch.device("cpu"), "float32", 8 * GB)
TOKENIZER_OF = {"qwen2": "qwen2", "llama": "llama2", "gemma2": "llama3", "gpt2": "gpt2"}


def store(folder, family="qwen2", kind="qwen2", **changes):
    """Write the backbone that a question is asked about, without weights."""
    vocabulary = tokenizer(kind)
    config = causal_lm(
        family, len(vocabulary), **{"max_position_embeddings": 600, **changes}
    ).config
    config.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return folder


def answers_of(folder, data, target=CPU):
    answers = check(str(folder), None, data, 0, target)
    assert [answer.question for answer in answers] == QUESTIONS
    return {answer.question: answer for answer in answers}


@pytest.mark.parametrize("family", TOKENIZER_OF)
def test_a_backbone_that_fits(family, data, tmp_path):
    found = answers_of(store(tmp_path / family, family, TOKENIZER_OF[family]), data)
    assert {answer.answer for answer in found.values()} == {"yes"}
    assert not any(answer.fails for answer in found.values())
    assert found[TITLES].why.startswith("8 items with 8 titles, which end with <")
    assert "600 positions" in found[CONTEXT].why
    assert type(causal_lm(family, 9)).__name__ in found[MASKS].why
    layers = "8 layers: c_attn" if family == "gpt2" else "14 layers: down_proj, gate_proj, k_proj"
    assert found[LORA].why.startswith(layers)
    assert "of 8.0 GB, float32 on cpu" in found[MEMORY["rl"]].why


def test_titles_that_collide_are_named_and_make_no_run_fail(data, tmp_path):
    answer = answers_of(store(tmp_path / "model", kind="unigram"), data)[TITLES]
    assert (answer.answer, answer.fails) == ("no", False)
    assert answer.why == (
        "1 of 8 items with 8 titles have the tokens of another, such as 'Zeta' those of 'Beta'"
    )
    assert answer.remedy == "they are never recommended; rename them or take another backbone"


def test_titles_with_the_same_text_are_one(tmp_path):
    rows = [([0], 1), ([1], 2)] * 8
    data = write_data(tmp_path / "data", [*CYCLE[:3], CYCLE[0]], train=rows)
    answer = answers_of(store(tmp_path / "model"), data)[TITLES]
    assert answer.answer == "yes" and answer.why.startswith("4 items with 3 titles")


def test_titles_without_tokens_leave_questions_open(tmp_path, monkeypatch):
    model = store(tmp_path / "model")
    vocabulary = load_tokenizer(model)
    vocabulary.backend_tokenizer.normalizer = normalizers.Replace("Beta", "")
    monkeypatch.setattr("rere.planning.check.load_tokenizer", lambda *_: vocabulary)
    rows = [([0], 1)] * 16
    found = answers_of(model, write_data(tmp_path / "data", CYCLE, train=rows))
    assert found[TITLES] == Answer(
        TITLES,
        "no",
        "item 1: title 'Beta' has no tokens of its own after the prompt",
        "rename it or leave it out",
        fails=True,
    )
    open_questions = [CONTEXT, PRECISION, *MEMORY.values()]
    assert {found[question].answer for question in open_questions} == {"unknown"}


def test_a_tokenizer_without_an_end_of_sequence(data, tmp_path):
    model = store(tmp_path / "model")
    vocabulary = load_tokenizer(model)
    vocabulary.eos_token = None
    vocabulary.save_pretrained(model)
    answer = answers_of(model, data)[TITLES]
    assert (answer.answer, answer.fails) == ("no", True)
    assert "no end-of-sequence token" in answer.why
    assert answer.remedy == "take another backbone"


def test_tokens_beyond_the_vocabulary(data, tmp_path):
    model = store(tmp_path / "model")
    causal_lm("qwen2", 300, max_position_embeddings=600).config.save_pretrained(model)
    answer = answers_of(model, data)[TITLES]
    assert (answer.answer, answer.fails) == ("no", True)
    assert "the model only 300 tokens" in answer.why


def test_a_context_that_is_too_short(data, tmp_path):
    found = answers_of(store(tmp_path / "model", max_position_embeddings=40), data)
    assert (found[CONTEXT].answer, found[CONTEXT].fails) == ("no", True)
    assert "exceed the 40 positions of the model" in found[CONTEXT].why
    assert found[CONTEXT].remedy.startswith("lower max_history")
    assert found[PRECISION].answer == "unknown"


def test_an_architecture_that_cannot_share_prompts(data, tmp_path):
    found = answers_of(store(tmp_path / "model", "bloom"), data)
    assert (found[MASKS].answer, found[MASKS].fails) == ("no", True)
    assert found[MASKS].why.startswith("it takes no position ids, by a random BloomForCausalLM")
    assert found[LORA].answer == found[PRECISION].answer == "yes"
    assert {found[question].answer for question in MEMORY.values()} == {"unknown"}


@pytest.mark.parametrize(("dtype", "fails"), [("float32", False), ("bfloat16", True)])
def test_scores_that_are_not_finite(monkeypatch, data, tmp_path, dtype, fails):
    """In bfloat16 only, which a run in float32 does not need."""

    def search(model, tree, prompts, *options):
        if torch.is_autocast_enabled("cpu"):
            raise InputError("the model's logits are NaN; take another")
        return Beams(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))

    monkeypatch.setattr("rere.planning.check.beam_search", search)
    answer = answers_of(store(tmp_path / "model"), data, CPU._replace(dtype=dtype))[PRECISION]
    assert (answer.answer, answer.fails) == ("no", fails)


def test_lists_are_compared_by_hand():
    first = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    second = torch.tensor([[1, 2], [4, 3], [5, 9], [7, 8]])
    assert compare_lists(first, second).why.startswith(
        "50% of 4 lists of 2 titles are those of float32, and 88% of their titles"
    )


def test_too_little_memory_and_memory_that_is_not_known(data, tmp_path):
    model = store(tmp_path / "model")
    for answer in (answers_of(model, data, CPU._replace(memory=1e6))[MEMORY[run]] for run in RUNS):
        assert (answer.answer, answer.fails) == ("no", True)
        assert answer.remedy.startswith("set gradient_checkpointing: true")
    gpu = Target(torch.device("cuda"), "bfloat16", None)
    for answer in (answers_of(model, data, gpu)[MEMORY[run]] for run in RUNS):
        assert (answer.answer, answer.fails) == ("unknown", False)
        assert "bfloat16 on cuda" in answer.why and "--memory" in answer.remedy


def test_too_few_rows(tmp_path):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)])
    answer = answers_of(store(tmp_path / "model"), data)[MEMORY["rl"]]
    assert answer.fails and "has 1 training rows" in answer.why


# ---------------------------------------------------------------------------------- the command

ANSWERS = [
    Answer("first", "yes", "so it is"),
    Answer("second one", "no", "it is 2 of 3", "lower it", fails=True),
]


def test_answers_in_words_and_as_json():
    assert as_text(ANSWERS).splitlines() == [
        "first       yes  so it is",
        "second one  no   it is 2 of 3; lower it",
    ]
    listed = json.loads(as_json(ANSWERS))
    assert listed["fails"] is True
    assert listed["answers"][1] == {
        **{"question": "second one", "answer": "no", "why": "it is 2 of 3"},
        **{"remedy": "lower it", "fails": True},
    }
    raise_if_failing(ANSWERS[:1])
    with pytest.raises(InputError, match="as these lines say: second one"):
        raise_if_failing(ANSWERS)


def run_command(backbone, data, *options):
    command = ["--backbone", str(backbone), "--data", str(data), "--device", "cpu", *options]
    parse("check", command).run()


def test_the_command_says_whether_a_run_would_fail(data, tmp_path, capsys):
    model = store(tmp_path / "model")
    run_command(model, data, "--memory", "8")
    assert capsys.readouterr().out.count("\n") == len(QUESTIONS)
    with pytest.raises(InputError, match="rl fits into memory, sft fits into memory"):
        run_command(model, data, "--memory", "0.001", "--json")
    assert json.loads(capsys.readouterr().out)["fails"] is True


def test_a_published_model_is_checked_without_its_weights(hub, data, tmp_path, capsys):
    hub.publish("owner/name", store(tmp_path / "model"))
    run_command("owner/name", data, "--memory", "8")
    assert "no " not in {line.split("  ")[1] for line in capsys.readouterr().out.splitlines()}
    assert not [path for path in hub.requests if path.endswith((".safetensors", ".bin"))]


def test_a_model_that_the_hub_does_not_have(hub, data):
    with pytest.raises(InputError, match="owner/none: not on the Hugging Face hub, or private;"):
        run_command("owner/none", data)


def test_a_revision_that_the_hub_does_not_have(hub, data, tmp_path):
    hub.publish("owner/name", store(tmp_path / "model"))
    with pytest.raises(InputError, match="owner/name: has no such revision on the Hugging Face"):
        run_command("owner/name", data, "--revision", "none")


def test_a_gated_model(hub, data, tmp_path, monkeypatch):
    hub.publish("owner/name", store(tmp_path / "model"))
    hub.gated.add("owner/name")
    run_command("owner/name", data, "--memory", "8")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    licence = "accept its licence at https://huggingface.co/owner/name and set HF_TOKEN"
    with pytest.raises(InputError, match=f"owner/name: gated on the Hugging Face hub; {licence}"):
        run_command("owner/name", data)
