"""A file that was edited, or swapped for another, makes Snakemake run again what reads it."""

import os

import pytest
from snakemake_runs import SMALL, snakemake, write_raw
from tiny_models import TOKENIZERS, causal_lm, tokenizer, write_cycle

from rere import backbones, inputs
from rere.backbones import backbone, load_tokenizer
from rere.catalogue import CATALOGUE
from rere.config.backbones import Pretrained, Tiny
from rere.config.data import (
    Amazon2018Dataset,
    Amazon2023Dataset,
    MovieLensDataset,
    OwnTablesDataset,
    SplitsDataset,
    YelpDataset,
)
from rere.config.run import ADAPTED_FILES, CARD, MODEL_FILES, TRAINED_FILES
from rere.errors import InputError
from rere.inputs import identity, model_files, raw_files

# ------------------------------------------------------------------------------------ identities


def test_other_bytes_of_equal_size_and_time_are_another_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    before, status = identity(str(path)), path.stat()
    os.utime(path, ns=(0, 0))
    assert identity(str(path)) == before
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # Within one plan, a file of the same size and time is hashed once.
    inputs.sha256_of.cache_clear()
    assert identity(str(path)) != before


def test_a_large_file_is_compared_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LARGE", 2)
    path = tmp_path / "a"
    path.write_text("one")
    before = identity(str(path))
    assert before == [3, path.stat().st_mtime_ns]
    os.utime(path, (1, 1))  # as of a file that was moved here
    assert identity(str(path)) == [3, 10**9] != before


def test_a_folder_is_compared_by_its_files(tmp_path):
    (tmp_path / "a").write_text("one")
    before = identity(str(tmp_path))
    (tmp_path / ".snakemake_timestamp").touch()
    assert identity(str(tmp_path)) == before
    (tmp_path / "b").touch()
    assert identity(str(tmp_path)) != before
    assert identity(str(tmp_path / "c")) is None


# ------------------------------------------------------------------------------------- raw files


@pytest.mark.parametrize(
    ("dataset", "read", "unread"),
    [
        (MovieLensDataset(folder="x"), ["u.data", "u.item"], ["u.user", "README"]),
        (MovieLensDataset(folder="x"), ["ratings.csv.gz", "movies.csv"], ["links.csv", "tags.csv"]),
        (
            Amazon2018Dataset(folder="x", category="Toys"),
            ["Toys_5.json.gz", "meta_Toys.json.gz"],
            ["Toys.json.gz", "Games_5.json.gz"],
        ),
        (
            Amazon2023Dataset(folder="x", category="Toys"),
            ["Toys.jsonl.zst", "meta_Toys.jsonl"],
            ["Toys_5.json"],
        ),
        (YelpDataset(folder="x"), ["yelp_dataset.tar"], ["yelp.pdf"]),
        (
            YelpDataset(folder="x"),
            ["yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"],
            ["yelp_academic_dataset_user.json"],
        ),
        (OwnTablesDataset(folder="x"), ["events.csv", "items.csv"], ["old.csv"]),
        (
            OwnTablesDataset(folder="x", events="clicks.parquet", items="in/products.tsv"),
            ["clicks.parquet", "in/products.tsv"],
            ["events.csv", "items.csv"],
        ),
        (
            SplitsDataset(folder="x"),
            ["items.parquet", "train.parquet", "valid.parquet", "test.parquet"],
            ["stats.json"],
        ),
    ],
)
def test_the_raw_files_are_those_that_a_reader_reads(tmp_path, dataset, read, unread):
    dataset = dataset.model_copy(update={"folder": str(tmp_path)})
    assert raw_files(dataset) == [str(tmp_path)]  # where they lack, `preprocess` says what
    for name in (*read, *unread):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(raw_files(dataset)) == sorted(str(tmp_path / name) for name in read)


# ---------------------------------------------------------------------------------------- models


def test_the_catalogue_is_one_of_the_trained_files():
    assert set(TRAINED_FILES) == {*MODEL_FILES, CATALOGUE}
    assert CATALOGUE in ADAPTED_FILES


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stored_model_has_the_files_that_rules_name(tmp_path, kind):
    """Also one with a chat template, and whatever the size of its weights."""
    words = tokenizer(kind)
    published = tmp_path / "published"
    causal_lm("llama", len(words)).save_pretrained(published, max_shard_size=5000)
    words.save_pretrained(published)
    (published / "chat_template.jinja").write_text("{{ messages }}")
    assert len(list(published.glob("model-*.safetensors"))) > 1
    backbone(Pretrained(model=str(published)), None, tmp_path / "stored")
    assert {path.name for path in (tmp_path / "stored").iterdir()} == {*MODEL_FILES, CARD}
    stored = load_tokenizer(tmp_path / "stored")
    assert stored.chat_template == "{{ messages }}"
    assert stored("Heat (1995)").input_ids == load_tokenizer(published)("Heat (1995)").input_ids


def test_a_tiny_model_has_the_files_that_rules_name(tmp_path):
    options = Tiny(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2)
    backbone(options, write_cycle(tmp_path / "data"), tmp_path / "tiny")
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {*MODEL_FILES, CARD}


def test_a_model_that_needs_other_files_is_refused(tmp_path, monkeypatch):
    published = tmp_path / "published"
    causal_lm("llama", len(tokenizer("gpt2"))).save_pretrained(published)
    tokenizer("gpt2").save_pretrained(published)
    monkeypatch.setattr(backbones, "MODEL_FILES", (*MODEL_FILES, "vocab.txt"))
    with pytest.raises(InputError, match=r"with other files than usual \(vocab\.txt\); take a"):
        backbone(Pretrained(model=str(published)), None, tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


def test_the_files_of_a_model_in_a_folder(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md", ".git"):
        (tmp_path / name).touch()
    assert model_files(str(tmp_path)) == [
        f"{tmp_path}/config.json",
        f"{tmp_path}/model.safetensors",
    ]
    assert model_files("Qwen/Qwen2-0.5B") == model_files(None) == []


# ------------------------------------------------------------------------------------- the graph


@pytest.mark.slow
def test_a_raw_file_dated_in_the_future_stops_before_results_are_removed(tmp_path):
    write_raw(tmp_path / "raw")
    result = tmp_path / "results" / "data" / "small" / "items.parquet"
    result.parent.mkdir(parents=True)
    result.write_text("kept")
    later = (tmp_path / "raw" / "u.item").stat().st_mtime + 10**5
    os.utime(tmp_path / "raw" / "u.item", (later, later))
    done = snakemake(tmp_path, SMALL, "results/data/small/items.parquet")
    assert done.returncode != 0
    _, line = done.stdout.splitlines()
    assert line.startswith("config: datasets.small.folder: raw/u.item is dated ")
    assert line.endswith(" seconds in the future; `touch` it")
    assert result.read_text() == "kept"
