"""Whatever a message holds, it is one line that a terminal and a log can show."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import write_fixed_model

from rere.backbones import load_model
from rere.catalogue import Catalogue
from rere.cli import parse
from rere.data.factors import Factors
from rere.errors import InputError, printable

PRINTED = "Café ☕\u200b\udcff"
PRINT = f"""
import sys
from rere.cli import main
from rere.stages import Schema
Schema.run = lambda self: print({PRINTED!a})
sys.argv = ["rere", "schema"]
main()
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"Caf\xe9 \u2615\u200b\udcff"),
        ("latin-1", b"Caf\xe9 \\u2615\\u200b\\udcff"),
        ("utf-8", "Café ☕\u200b".encode() + rb"\udcff"),
    ],
)
def test_output_in_an_encoding_that_lacks_characters(encoding, shown):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", PRINT]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown + b"\n", b"")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("a\rb", r"a\rb"),
        ("zero\u200bwidth\u202eright", r"zero\u200bwidth\u202eright"),
        ("\u2028\x85\xa0", r"\u2028\x85\xa0"),
        (os.fsdecode(b"\xff"), r"\udcff"),
        ("Café 東京", "Café 東京"),
    ],
)
def test_control_characters_in_an_error(name, shown, capsys):
    with pytest.raises(SystemExit):
        parse("sft", ["--init", name, "--data", "d", "--output", "o"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"rere sft: --init: there is no folder {shown}\n"
    assert printable(printable(name)) == shown


def test_a_file_name_that_is_too_long():
    command = [sys.executable, "-m", "rere", "sft", "--data", "d", "--output", "o", "--init"]
    done = subprocess.run([*command, "x" * 300], capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("rere")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("--help >&-", 0), ("stf >&-", 2), ("stf 2>&-", 2), ("--help 2>&-", 0)],
)
def test_closed_streams(arguments, status):
    command = f"{sys.executable} -m rere {arguments}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------- bad model files


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def header(size: int, text: str = "{}") -> bytes:
    """The start of a safetensors file that claims a header of `size` bytes."""
    return struct.pack("<Q", size) + text.encode()


def tensor(shape: list[int], end: int) -> bytes:
    """A safetensors file without data whose header claims a tensor."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    text = json.dumps({"weight": entry})
    return header(len(text), text)


BAD_FILES = {
    "empty": b"",
    "cut": header(100),
    "header bomb": header(2**60),
    "header of 100 MB": header(100_000_001, " " * 10),
    "nested": header(200_000, "[" * 200_000),
    "tensor bomb": tensor([2**40], 2**42),
    "negative": tensor([-1], 4),
    "overflow": tensor([2**62, 8], 2**63 - 1),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_safetensors_files(content, tmp_path):
    model = write_fixed_model(tmp_path / "model")
    for path in (model / "model.safetensors", tmp_path / "file"):
        path.write_bytes(content)
    for load in (
        lambda: load_model(model),
        lambda: Catalogue.load(tmp_path / "file", 10),
        lambda: Factors.load(tmp_path / "file", torch.arange(3).numpy(), 5),
    ):
        with pytest.raises(InputError) as error:
            load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_loaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = write_fixed_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save(Evil(), model / name)
    with pytest.raises(InputError, match=f"^{model}: cannot load a language model"):
        load_model(model)
    assert not Path("executed").exists()
