"""Uploading a trained model, to a local server that stands for the hub."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import constants

from rere.adapters import AdapterBase
from rere.catalogue import CATALOGUE
from rere.config.run import ADAPTED_FILES, CARD, MODEL_FILES, TRAINED_FILES
from rere.errors import InputError
from rere.files import read_json, write_json
from rere.push import push


def refuse(shared_run, message, repo="me/mine", **options):
    """Assert that a push raises InputError with one line."""
    with pytest.raises(InputError) as raised:
        push(shared_run / "model", repo, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------------------- uploading


def test_the_known_files_are_uploaded_as_they_are(hub, shared_run):
    url = push(shared_run / "model", "me/mine")
    assert url == f"{hub.url}/me/mine/commit/1"
    uploaded = hub.files["me/mine@main"]
    assert uploaded.keys() == {*TRAINED_FILES, CARD}
    for name in TRAINED_FILES:
        assert uploaded[name] == (shared_run / "model" / name).read_bytes()
    assert not hub.private["me/mine"]


def test_the_uploaded_card_has_test_metrics_and_repository(hub, shared_run):
    before = (shared_run / "model" / CARD).read_bytes()
    push(shared_run / "model", "me/mine")
    card = hub.files["me/mine@main"][CARD].decode()
    assert "1,234 test rows of small" in card
    assert "| 10 | 0.5000 [0.2500, 0.7500] |" in card
    assert 'from_pretrained("me/mine")' in card
    assert (shared_run / "model" / CARD).read_bytes() == before


def test_a_model_may_have_no_metrics_and_no_card(hub, shared_run):
    (shared_run / "metrics.json").unlink()
    push(shared_run / "model", "me/mine")
    assert "test rows" not in hub.files["me/mine@main"][CARD].decode()
    (shared_run / "model" / CARD).unlink()
    push(shared_run / "model", "me/other")
    assert hub.files["me/other@main"].keys() == set(TRAINED_FILES)


def test_the_metrics_of_the_only_evaluation_are_those_of_the_card(hub, shared_run):
    values = read_json(shared_run / "metrics.json", "`rere metrics`")
    (shared_run / "metrics.json").unlink()
    for name, rows in (("rows=40", 40), ("num_beams=20", 50)):
        (shared_run / name).mkdir()
        write_json(shared_run / name / "metrics.json", {**values, "evaluation": name, "rows": rows})
    refuse(shared_run, "has metrics of num_beams=20, rows=40; copy those to show beside the model")
    assert hub.requests == []
    (shared_run / "num_beams=20" / "metrics.json").unlink()
    push(shared_run / "model", "me/mine")
    assert "40 test rows of small" in hub.files["me/mine@main"][CARD].decode()


def store_as_adapters(folder, hub):
    """Replace the model in `folder` by adapters of a copy of the published model `hub`."""
    for name in MODEL_FILES:
        (folder / name).unlink()
    for name in set(ADAPTED_FILES) - {CATALOGUE}:
        (folder / name).write_text(f"content of {name}")
    base = AdapterBase(model="results/backbones/tiny", relative="../x", hub=hub, sha256="1")
    (folder / "base.json").write_text(base.model_dump_json())
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": base.model, "r": 2})


def test_adapters_are_uploaded_with_the_name_of_their_published_base(hub, shared_run):
    store_as_adapters(shared_run / "model", "you/base")
    push(shared_run / "model", "me/mine")
    uploaded = hub.files["me/mine@main"]
    assert uploaded.keys() == {*ADAPTED_FILES, CARD}
    config = json.loads(uploaded["adapter_config.json"])
    assert config == {"base_model_name_or_path": "you/base", "r": 2}
    base = AdapterBase.model_validate_json(uploaded["base.json"])
    assert (base.model, base.relative, base.sha256) == ("you/base", None, "1")


def test_adapters_of_a_model_that_is_not_published_are_refused(hub, shared_run):
    store_as_adapters(shared_run / "model", None)
    refuse(
        shared_run,
        "has adapters of results/backbones/tiny, which is not on the hub; train it with "
        "`save: merged`",
    )


def test_an_own_repository_is_uploaded_to_again(hub, shared_run):
    for text in ("one", "two"):
        (shared_run / "model" / "config.json").write_text(text)
        push(shared_run / "model", "me/mine")
        assert hub.files["me/mine@main"]["config.json"] == text.encode()


def test_a_private_repository_and_a_branch_are_made(hub, shared_run):
    for _ in range(2):
        push(shared_run / "model", "me/mine", private=True, revision="v1")
        assert hub.private["me/mine"]
        assert hub.files["me/mine@v1"].keys() == {*TRAINED_FILES, CARD}
        assert not hub.files["me/mine@main"]


def test_the_command_prints_the_address(hub, shared_run):
    command = [sys.executable, "-m", "rere", "push", "--model", shared_run / "model"]
    done = subprocess.run([*command, "--repo", "me/mine"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{hub.url}/me/mine/commit/1\n"
    assert hub.files["me/mine@main"].keys() == {*TRAINED_FILES, CARD}
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, "--repo", "me/mine"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("rere push: me/mine: cannot reach the hub (")


# --------------------------------------------------------------------------------------- refusals


def test_a_public_repository_is_not_taken_for_a_private_one(hub, shared_run):
    push(shared_run / "model", "me/mine")
    (shared_run / "model" / "config.json").write_text("secret")
    refuse(shared_run, "me/mine: exists and is public; leave out --private", private=True)
    assert hub.files["me/mine@main"]["config.json"] != b"secret"


def test_other_files_are_refused_before_anything_is_sent(hub, shared_run):
    (shared_run / "model" / "notes.txt").write_text("secret")
    refuse(shared_run, "notes.txt: is no file of a model; move it")
    assert hub.requests == []


@pytest.mark.parametrize("name", TRAINED_FILES)
def test_a_folder_that_is_no_trained_model_is_refused(hub, shared_run, name):
    (shared_run / "model" / name).unlink()
    refuse(shared_run, f"model: has no {name}; name the folder model/ of a run")
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "me/", "me/a b", "me/--", "/mine", ""])
def test_a_bad_name_is_refused(hub, shared_run, repo):
    refuse(shared_run, f"{repo}: ", repo=repo)
    assert hub.files == {}


def test_without_a_token_nothing_is_sent(hub, shared_run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refuse(shared_run, "me/mine: there is no token of the Hugging Face hub; set HF_TOKEN")
    assert hub.requests == []


def test_a_wrong_token_is_refused(hub, shared_run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refuse(shared_run, "me/mine: the hub does not accept the token; set HF_TOKEN")


@pytest.mark.parametrize("route", ["create", "preupload", "commit"])
@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "the token has no permission"), (400, "refused"), (404, "refused")],
)
def test_a_refusal_of_the_hub_is_one_line(hub, shared_run, route, status, message):
    hub.statuses[route] = status
    refuse(shared_run, f"me/mine: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "metrics.json: is of"),
        ({"seed": "0"}, "metrics.json: seed: "),
        ({"NDCG@10_low": None}, "metrics.json: has no number NDCG@10_low; make it again"),
        ({"rows": "many"}, "metrics.json: has no number rows; make it again"),
    ],
)
def test_metrics_of_another_run_or_version_are_refused(hub, shared_run, changes, message):
    path = shared_run / "metrics.json"
    write_json(path, {**read_json(path, "`rere metrics`"), **changes})
    refuse(shared_run, message)
    assert hub.requests == []


def test_a_card_that_is_no_text_is_refused(hub, shared_run):
    (shared_run / "model" / CARD).write_bytes(b"\xff")
    refuse(shared_run, "README.md: is no text in UTF-8")
