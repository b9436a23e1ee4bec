"""Backbones on disk: tiny ones made from scratch, and copies of published ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CYCLE, TINY, causal_lm, tokenizer, write_gguf
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rere.backbones import backbone, load_model, load_tokenizer, training_text
from rere.config.backbones import Pretrained
from rere.data.dataset import read_split
from rere.engine.model.decoder import supports_shared_prompt
from rere.errors import InputError
from rere.model_card import Base, read_base
from rere.tokenization import PromptEncoder, choose_instruction, prompt_text, response_text


def assert_weights_equal(actual: Path, expected: Path) -> None:
    actual, expected = (load_file(f / "model.safetensors") for f in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name


# ----------------------------------------------------------------------------------------- tiny


DATED = [
    *["Toy Story (1995)", "Toy Story (1996)", "Toy Story 1995", "Toy Story(1995)", "Se7en (1995"],
    *["(500) Days", "2001: A Space Odyssey (1968)", "1234567890", "M*A*S*H  (1970)", "½ ٣"],
    *["Amélie (2001)", "Ame\u0301lie (2001)", "Schindler's List", "東京物語 (1953)", "🙂 🇫🇷!"],
    *['"', " (", "\n", "\n\n1\n", "\ta\r\n b", "<|endoftext|>", "'"],
]
"""Titles with years, brackets, accents, marks and line ends."""


def test_tiny_has_only_safetensors_and_json_and_a_card(tiny_backbone):
    assert {path.suffix for path in tiny_backbone.iterdir()} == {".safetensors", ".json", ".md"}
    assert (tiny_backbone / "model.safetensors").is_file()


def test_tiny_has_the_sizes_of_its_options(tiny_backbone):
    model, vocabulary = load_model(tiny_backbone), load_tokenizer(tiny_backbone)
    config = model.config
    assert config.model_type == "llama"
    assert config.vocab_size == len(vocabulary) <= TINY.vocab_size
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (16, 1, 2)
    assert config.max_position_embeddings == 128
    assert config.eos_token_id == vocabulary.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_tiny_depends_on_its_seed_only(tmp_path, cycle, tiny_backbone):
    torch.rand(5)  # another state of the generator
    backbone(TINY, cycle, tmp_path / "again")
    assert_weights_equal(tmp_path / "again", tiny_backbone)
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (
        tiny_backbone / "tokenizer.json"
    ).read_text()
    backbone(TINY.model_copy(update={"seed": 1}), cycle, tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_weights_equal(tmp_path / "other", tiny_backbone)


def test_the_tokenizer_is_trained_on_titles_and_training_rows(cycle):
    text = list(training_text(cycle, seed=5))
    assert text[: len(CYCLE)] == [f'"{title}"\n' for title in CYCLE]
    train = read_split(cycle, "train")
    assert len(text) == len(CYCLE) + len(train)
    row_id, history, target = train.select("row_id", "history", "target").row(7)
    prompt = prompt_text(choose_instruction(5, row_id), [CYCLE[item] for item in history])
    assert text[len(CYCLE) + 7] == prompt + response_text(CYCLE[target])


def test_the_tokenizer_needs_no_validation_or_test_rows(tmp_path, cycle, tiny_backbone):
    for name in ("items", "train"):
        shutil.copy(cycle / f"{name}.parquet", tmp_path)
    backbone(TINY, tmp_path, tmp_path / "backbone")
    assert (tmp_path / "backbone" / "tokenizer.json").read_text() == (
        tiny_backbone / "tokenizer.json"
    ).read_text()


def test_the_tokenizer_encodes_unseen_characters(tiny_backbone):
    vocabulary = load_tokenizer(tiny_backbone)
    text = '"Ünsèen ☃ 🙂 \t東京"\n'
    assert vocabulary.decode(vocabulary(text).input_ids) == text


def test_frequent_words_and_numbers_are_tokens(tiny_backbone, dated_backbone):
    responses = PromptEncoder(load_tokenizer(tiny_backbone), CYCLE).encode_responses()
    assert max(map(len, responses)) <= 9
    vocabulary = load_tokenizer(dated_backbone)
    (title,) = vocabulary(['"Toy Story (1995)"\n']).input_ids
    assert vocabulary.batch_decode([[i] for i in title]) == ['"', "Toy", " Story", " (1995)", '"\n']


def test_autotokenizer_loads_the_tokenizer_that_was_trained(dated_backbone):
    loaded, path = AutoTokenizer.from_pretrained(dated_backbone), dated_backbone / "tokenizer.json"
    stored = Tokenizer.from_file(str(path))
    assert json.loads(loaded.backend_tokenizer.to_str()) == json.loads(stored.to_str())
    for title in DATED:
        ids = loaded(title).input_ids
        assert ids == stored.encode(title).ids
        assert loaded.decode(ids) == title


def test_titles_with_numbers_and_marks_tokenise_apart(dated_backbone):
    encoder = PromptEncoder(load_tokenizer(dated_backbone), DATED)
    responses = encoder.encode_responses()
    assert len(set(map(tuple, responses))) == len(DATED)
    assert encoder.decode_titles(responses) == DATED


def test_a_tiny_model_has_a_shared_prompt(tiny_backbone):
    assert supports_shared_prompt(load_model(tiny_backbone))


# ----------------------------------------------------------------------------------- pretrained


def test_a_copy_has_the_same_weights_in_float32(tmp_path, published_model):
    backbone(Pretrained(model=str(published_model)), None, tmp_path / "copy")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    for name, weight in load_file(published_model / "model.safetensors").items():
        assert weight.dtype == torch.bfloat16
        assert copy[name].dtype == torch.float32
        assert torch.equal(copy[name], weight.float()), name
    titles = CYCLE[:3]
    assert (
        PromptEncoder(load_tokenizer(tmp_path / "copy"), titles).encode_responses()
        == PromptEncoder(tokenizer("qwen2"), titles).encode_responses()
    )


def generation_defaults(tmp_path: Path, published_model: Path) -> dict:
    """The settings for `generate` of a copy, without the version."""
    backbone(Pretrained(model=str(published_model)), None, tmp_path / "copy")
    defaults = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    return {
        k: v for k, v in defaults.items() if k not in ("transformers_version", "_from_model_config")
    }


def test_of_generation_defaults_a_copy_has_the_special_tokens_only(tmp_path, published_model):
    path, eos = published_model / "generation_config.json", tokenizer("qwen2").eos_token_id
    ids = {"eos_token_id": [5, eos], "bos_token_id": 6, "pad_token_id": 7}
    path.write_text(json.dumps({**json.loads(path.read_text()), **ids}))
    assert generation_defaults(tmp_path, published_model) == ids


def test_the_tokenizers_special_tokens_are_those_of_generation(tmp_path, published_model):
    """Where the checkpoint names none, or an end that no response has."""
    path, tokens = published_model / "generation_config.json", tokenizer("qwen2")
    path.write_text(json.dumps({"eos_token_id": 5}))
    assert tokens.eos_token_id != 5
    assert generation_defaults(tmp_path, published_model) == {
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }


def test_a_copy_uses_a_cache(tmp_path, published_model):
    path = published_model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_cache": False}))
    backbone(Pretrained(model=str(published_model)), None, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["use_cache"] is True


# ---------------------------------------------------------------------------------------- cards

CARD_OF_BASE = "---\nlicense: apache-2.0\nbase_model: owner/before\n---\n\n# Base\n"


def test_the_card_of_a_tiny_model_says_that_it_has_no_base(tiny_backbone):
    assert read_base(tiny_backbone) == Base(is_random=True)


def test_the_card_of_a_folders_copy_has_its_licence(tmp_path, published_model):
    (published_model / "README.md").write_text(CARD_OF_BASE)
    backbone(Pretrained(model=str(published_model)), None, tmp_path / "copy")
    assert read_base(tmp_path / "copy") == Base(license={"license": "apache-2.0"})


@pytest.mark.parametrize("has_card", [True, False])
def test_the_card_of_a_published_model_has_its_id_commit_and_licence(
    hub, tmp_path, published_model, has_card
):
    if has_card:
        (published_model / "README.md").write_text(CARD_OF_BASE)
    commit = hub.publish("owner/name", published_model, branch="v1")
    backbone(Pretrained(model="owner/name", revision="v1"), None, tmp_path / "copy")
    licence = {"license": "apache-2.0"} if has_card else {}
    assert read_base(tmp_path / "copy") == Base("owner/name", licence, commit=commit)
    card = (tmp_path / "copy" / "README.md").read_text()
    assert f"\nA copy of owner/name, commit {commit}.\n" in card


def test_a_gguf_file_is_stored_dequantised(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    options = Pretrained(model=str(tmp_path), gguf_file="model.gguf")
    backbone(options, None, tmp_path / "copy")
    copy = load_model(tmp_path / "copy")
    expected = causal_lm("qwen2", len(tokenizer("qwen2"))).half().state_dict()
    for name, weight in copy.state_dict().items():
        assert torch.equal(weight, expected[name].float()), name
    assert "quantization_config" not in (tmp_path / "copy" / "config.json").read_text()
    titles = CYCLE[:3]
    assert (
        PromptEncoder(load_tokenizer(tmp_path / "copy"), titles).encode_responses()
        == PromptEncoder(tokenizer("qwen2"), titles).encode_responses()
    )


def test_a_missing_gguf_file_is_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"cannot load a tokenizer \(.*other.gguf"):
        load_tokenizer(tmp_path, gguf_file="other.gguf")


def assert_refused(folder: Path, reason: str) -> None:
    with pytest.raises(
        InputError, match=rf"{folder.name}: cannot load a language model \(.*{reason}"
    ):
        load_model(folder)


def test_weights_in_a_pickle_are_refused(published_model):
    weights = load_file(published_model / "model.safetensors")
    (published_model / "model.safetensors").unlink()
    torch.save(weights, published_model / "pytorch_model.bin")
    assert_refused(published_model, "no file named model.safetensors")


def test_missing_weights_are_refused(published_model):
    weights = load_file(published_model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, published_model / "model.safetensors", metadata={"format": "pt"})
    assert_refused(published_model, r"model.layers.1.mlp.up_proj.weight is missing, 1 in all")


def test_weights_of_another_shape_are_refused(published_model):
    weights = load_file(published_model / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][:7].clone()
    save_file(weights, published_model / "model.safetensors", metadata={"format": "pt"})
    assert_refused(published_model, "mismatched")


@pytest.mark.parametrize("kept", [0, 5, 2000])
def test_a_damaged_file_is_refused(published_model, kept):
    content = (published_model / "model.safetensors").read_bytes()
    (published_model / "model.safetensors").write_bytes(content[:kept])
    assert_refused(published_model, "")


def test_code_of_a_checkpoint_is_not_run(published_model, tmp_path):
    config = json.loads((published_model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (published_model / "config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n"
    (published_model / "own.py").write_text(code)
    assert_refused(published_model, "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_missing_folder_is_refused(tmp_path, load):
    with pytest.raises(InputError, match="nowhere: cannot load"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_gated_model_is_refused_with_the_page_of_its_licence(
    hub, published_model, monkeypatch, load
):
    hub.publish("owner/name", published_model)
    hub.gated.add("owner/name")
    monkeypatch.delenv("HF_TOKEN")
    message = r"^owner/name: gated .* https://huggingface.co/owner/name and set HF_TOKEN in"
    with pytest.raises(InputError, match=message):
        load("owner/name")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_the_hub_does_not_have_is_refused(hub, load):
    with pytest.raises(InputError, match="owner/name: not on the Hugging Face hub, or private;"):
        load("owner/name")


def test_a_folder_without_a_tokenizer_is_refused(published_model):
    for path in published_model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="published: cannot load a tokenizer"):
        load_tokenizer(published_model)
