"""Model files that claim what they do not hold are refused quickly and in little memory."""

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_fixed_model, write_gguf

from rere.backbones import load_model, load_tokenizer
from rere.errors import InputError

BRACKETS = "[" * 100_000


def refuse(load: Callable[..., Any], folder: Path, reason: str = "", **more: Any) -> None:
    """Loading raises one line within seconds, and takes less than 300 MB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(InputError, match=rf"^{folder}: cannot load .*{reason}") as refused:
        load(folder, **more)
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_deeply_nested_tokenizer_is_refused(name, tmp_path):
    model = write_fixed_model(tmp_path / "model")
    (model / name).write_text(BRACKETS)
    refuse(load_tokenizer, model)


def test_a_deeply_nested_config_is_refused(tmp_path):
    model = write_fixed_model(tmp_path / "model")
    (model / "config.json").write_text(BRACKETS)
    refuse(load_model, model)


@pytest.mark.parametrize("part", ["vocab", "merges", "added_tokens", "model"])
@pytest.mark.parametrize("value", [None, 3, "x", [[]], {"a": -1}])
def test_a_tokenizer_with_a_wrong_part_is_refused_or_loads(part, value, tmp_path):
    model = write_fixed_model(tmp_path / "model")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    (content["model"] if part in ("vocab", "merges") else content)[part] = value
    path.write_text(json.dumps(content))
    try:
        load_tokenizer(model)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": -1},
        {"num_key_value_heads": 0},
        {"hidden_size": 0},
        {"hidden_size": -16},
        {"vocab_size": -1},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
        {"model_type": 3},
        {"model_type": None},
    ],
)
def test_a_config_without_sense_is_refused(values, tmp_path):
    model = write_fixed_model(tmp_path / "model")
    change_config(model, **values)
    refuse(load_model, model)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**7, "layer_types": None},
        {"num_hidden_layers": 10**12, "layer_types": None},
        {"num_hidden_layers": 20, "layer_types": None, "hidden_size": 2**14},
        {"hidden_size": 2**16},
        {"vocab_size": 10**10},
        {"intermediate_size": 10**9},
        {"num_key_value_heads": 4, "head_dim": 10**8},
    ],
)
def test_a_config_with_more_weights_than_the_file_is_refused(values, tmp_path):
    model = write_fixed_model(tmp_path / "model")
    change_config(model, **values)
    refuse(load_model, model, "config.json describes more weights than the")


def test_layers_of_a_nested_config_count(tmp_path):
    model = write_fixed_model(tmp_path / "model")
    change_config(model, text_config={"num_hidden_layers": 10**12})
    refuse(load_model, model, "config.json describes more weights than the")


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 2**40, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**40),
        struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 2**63),
        struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),
        b"GGUF",
        b"",
        b"\0" * 64,
    ],
)
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_gguf_header_without_content_is_refused(load, header, tmp_path):
    (tmp_path / "model.gguf").write_bytes(header)
    refuse(load, tmp_path, gguf_file="model.gguf")


def test_a_gguf_file_with_a_huge_list_is_refused(tmp_path):
    """A key `a` with a list of 2^40 bytes, strings or lists."""
    for kind in (0, 8, 9):
        header = struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, kind, 2**40)
        (tmp_path / "model.gguf").write_bytes(header)
        refuse(load_model, tmp_path, gguf_file="model.gguf")


def test_a_gguf_file_with_more_layers_than_tensors_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content, key = path.read_bytes(), b"qwen2.block_count"
    start = content.index(key) + len(key) + 4  # behind the key, the type of the value
    path.write_bytes(content[:start] + struct.pack("<I", 2**31) + content[start + 4 :])
    refuse(load_model, tmp_path, "announces more layers", gguf_file="model.gguf")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_gguf_file_that_is_cut_off_is_refused(share, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(load_model, tmp_path, gguf_file="model.gguf")
