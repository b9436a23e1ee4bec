"""Commits of published models: recorded when a backbone is first fetched, and taken again."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from huggingface_hub import constants
from snakemake_runs import QUICK, planned, snakemake
from tiny_models import causal_lm

from rere.backbone_lock import read_commits, record_commit
from rere.backbones import backbone, load_model
from rere.config.backbones import Pretrained
from rere.errors import InputError
from rere.model_card import read_base

FIRST, SECOND = "1" * 40, "a" * 40


def fetch(folder, lock, **options):
    """Make a backbone of owner/name; return the commit on its card and a weight."""
    backbone(Pretrained(model="owner/name", **options), None, folder, lock)
    weight = load_model(folder).get_output_embeddings().weight
    return read_base(folder).commit, weight[0, 0].item()


def publish(hub, folder, seed, branch="main"):
    """Publish a model of a seed; return its commit and a weight."""
    model = causal_lm("llama", 300, seed)
    model.save_pretrained(folder)
    return hub.publish("owner/name", folder, branch), model.lm_head.weight[0, 0].item()


def test_the_commit_that_was_fetched_first_is_fetched_again(
    hub, published_model, tmp_path, monkeypatch
):
    lock = tmp_path / "config" / "backbones.lock.yaml"
    first = publish(hub, published_model, seed=1)
    assert fetch(tmp_path / "copy", lock) == first
    assert yaml.safe_load(lock.read_text()) == {"owner/name": first[0]}
    second = publish(hub, published_model, seed=2)
    assert second[0] != first[0]
    before = lock.read_bytes()
    shutil.rmtree(tmp_path / "copy")
    assert fetch(tmp_path / "copy", lock) == first
    # Another machine, with the same file and an empty cache.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert fetch(tmp_path / "other", lock) == first
    assert lock.read_bytes() == before
    lock.write_text("")  # its line is deleted
    assert fetch(tmp_path / "newest", lock) == second
    assert read_commits(lock) == {"owner/name": second[0]}


def test_a_revision_in_the_config_wins_and_is_not_recorded(hub, published_model, tmp_path):
    lock = tmp_path / "backbones.lock.yaml"
    first = publish(hub, published_model, seed=1)
    fetch(tmp_path / "copy", lock)
    before = lock.read_bytes()
    second = publish(hub, published_model, seed=2, branch="v2")
    assert fetch(tmp_path / "branch", lock, revision="v2") == second
    assert fetch(tmp_path / "commit", lock, revision=second[0]) == second
    assert lock.read_bytes() == before
    assert fetch(tmp_path / "copy", lock) == first


def test_without_a_lock_file_the_newest_is_fetched(hub, published_model, tmp_path):
    publish(hub, published_model, seed=1)
    fetch(tmp_path / "copy", None)
    second = publish(hub, published_model, seed=2)
    assert fetch(tmp_path / "newest", None) == second


def test_a_folder_has_no_commit(published_model, tmp_path):
    lock = tmp_path / "backbones.lock.yaml"
    backbone(Pretrained(model=str(published_model)), None, tmp_path / "copy", lock)
    assert not lock.exists() and read_base(tmp_path / "copy").commit is None


def test_a_commit_of_another_model_is_refused(hub, published_model, tmp_path):
    publish(hub, published_model, seed=1)
    lock = tmp_path / "backbones.lock.yaml"
    lock.write_text(f"owner/name: {SECOND}\n")
    with pytest.raises(InputError) as raised:
        fetch(tmp_path / "copy", lock)
    assert str(raised.value) == (
        f"{lock}: owner/name has no commit {SECOND} on the Hugging Face hub; correct or delete "
        "the line"
    )
    assert lock.read_text() == f"owner/name: {SECOND}\n"


@pytest.mark.parametrize("missing", ["model", "licence"])
def test_nothing_is_recorded_of_a_model_that_is_refused(
    hub, published_model, tmp_path, monkeypatch, missing
):
    if missing == "licence":
        publish(hub, published_model, seed=1)
        hub.gated.add("owner/name")
        monkeypatch.delenv("HF_TOKEN")
    lock = tmp_path / "backbones.lock.yaml"
    with pytest.raises(InputError, match=r"owner/name: (not on|gated on) the Hugging Face hub"):
        fetch(tmp_path / "copy", lock)
    assert not lock.exists()


# ------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- owner/name", "is not a mapping of models to commits"),
        ("owner/name", "is not a mapping of models to commits"),
        ("owner/name: main", "'owner/name': 'main' is no commit"),
        (f"owner/name: {FIRST}", f"'owner/name': {FIRST} is no commit"),  # a number to YAML
        ("owner/name:", "'owner/name': nothing is no commit"),
        (f"1: {SECOND}", "1: '"),
        (f"owner/name: {SECOND}\nowner/name: {SECOND}", "line 2: owner/name comes twice"),
        ("<<<<<<< HEAD\nowner/name: x", "line 2: "),
        ("\x00", "cannot be read as YAML"),
    ],
)
def test_a_malformed_file_is_refused_with_one_line(tmp_path, text, message):
    path = tmp_path / "backbones.lock.yaml"
    path.write_text(text)
    for call in (read_commits, lambda path: record_commit(path, "owner/other", SECOND)):
        with pytest.raises(InputError) as raised:
            call(path)
        assert str(raised.value).startswith(str(path)) and message in str(raised.value)
        assert "\n" not in str(raised.value)
    assert path.read_text() == text


def test_a_missing_and_an_empty_file_have_no_commits(tmp_path):
    path = tmp_path / "backbones.lock.yaml"
    assert read_commits(path) == {}
    path.write_text("# nothing yet\n")
    assert read_commits(path) == {}


def test_a_recorded_commit_stays(tmp_path):
    path = tmp_path / "new" / "backbones.lock.yaml"
    assert record_commit(path, "owner/name", FIRST) == FIRST
    assert record_commit(path, "owner/name", SECOND) == FIRST
    assert record_commit(path, "other/name", SECOND) == SECOND
    assert read_commits(path) == {"owner/name": FIRST, "other/name": SECOND}
    assert path.read_text().startswith("# The commits of models")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_jobs_at_the_same_time_lose_no_line(tmp_path):
    path = tmp_path / "backbones.lock.yaml"
    with ThreadPoolExecutor(8) as pool:
        names = [f"owner/name{number % 20}" for number in range(80)]
        taken = list(pool.map(lambda name: (name, record_commit(path, name, SECOND)), names))
    assert read_commits(path) == dict(taken) == dict.fromkeys(names, SECOND)


# ------------------------------------------------------------------------------------ the graph

TARGET = "results/backbones/own/config.json"


def test_the_graph_records_a_commit_and_its_file_makes_no_job_run_again(
    hub, published_model, tmp_path
):
    first = publish(hub, published_model, seed=1)
    backbones = {"own": {"source": "pretrained", "model": "owner/name"}}
    done = snakemake(tmp_path, QUICK, TARGET, backbones=backbones)
    assert done.returncode == 0, done.stdout
    lock = tmp_path / "config" / "backbones.lock.yaml"
    assert read_commits(lock) == {"owner/name": first[0]}
    assert read_base(tmp_path / "results" / "backbones" / "own").commit == first[0]
    publish(hub, published_model, seed=2)
    for text in (f"owner/name: {SECOND}\n", None):
        lock.write_text(text) if text else lock.unlink()
        assert planned(tmp_path, QUICK, TARGET, backbones=backbones) == {}


def test_the_rule_names_the_file_for_hub_ids_without_a_revision(published_model, tmp_path):
    hub_id = {"source": "pretrained", "model": "owner/name"}
    backbones = {
        "own": hub_id,
        "pinned": {**hub_id, "revision": "v1"},
        "folder": {"source": "pretrained", "model": str(published_model)},
    }
    targets = [f"results/backbones/{name}/config.json" for name in (*backbones, "tiny")]
    done = snakemake(tmp_path, QUICK, "--dry-run", *targets, backbones=backbones)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("python -m rere backbone") == 4
    assert done.stdout.count("--lock config/backbones.lock.yaml") == 1
