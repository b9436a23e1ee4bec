"""run.json records how a run was made."""

import sys

import pytest

from rere.config.data import Fetch
from rere.config.run import CARD
from rere.errors import InputError
from rere.files import SNAKEMAKE, read_json, sha256
from rere.provenance import provenance


def test_run_json_has_command_options_inputs_and_costs(tmp_path, monkeypatch):
    folder, file, output = tmp_path / "model", tmp_path / "file", tmp_path / "run" / "run.json"
    folder.mkdir()
    for path in (folder / "b", folder / "a", folder / SNAKEMAKE, folder / CARD, file):
        path.write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", ["rere", "fetch"])
    with provenance(output, Fetch(source="ml-100k"), 3, [folder, file]) as record:
        record.chosen["dtype"] = "float32"
        assert output.parent.is_dir()
        assert not output.exists()
    run = read_json(output, "`rere`")
    options = {"source": "ml-100k", "category": None}
    assert (run["command"], run["options"]) == (["rere", "fetch"], options)
    assert (run["seed"], run["chosen"]) == (3, {"dtype": "float32"})
    assert 0 <= run["seconds"] < 60
    assert 10 < run["peak_memory_mb"] < 100_000
    assert list(run["inputs_sha256"]) == [f"{folder}/a", f"{folder}/b", str(file)]
    assert set(run["inputs_sha256"].values()) == {sha256(file)}
    assert run["packages"].keys() == {"numpy", "polars", "torch", "transformers"}
    assert run["python"] == sys.version.split()[0]
    assert run.keys() >= {"commit"}


def test_a_failing_run_writes_no_run_json(tmp_path):
    with (
        pytest.raises(InputError),
        provenance(tmp_path / "run.json", Fetch(source="ml-100k"), 0, []),
    ):
        raise InputError("bad")
    assert list(tmp_path.iterdir()) == []
