"""Fixtures of several folders and of the modules beside this one; one thread a test process.

Those with models import them when they are made: tests without models start without torch.
"""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

# Before torch is imported: several test processes share the machine, and more threads than
# processors slow each other down many times over. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from fake_nvidia_smi import write_gpus
from hypothesis import settings
from snakemake_runs import (
    PAPER_IN_SMALL,
    ROOT,
    SMALL,
    checkout,
    each_method_once,
    snakemake,
    study_of,
    write_raw,
)

from rere.config.backbones import Tiny
from rere.data.fetch import fetch
from rere.errors import InputError

if TYPE_CHECKING:
    from fake_hub import Hub

    from rere import Recommender
    from rere.config.study import Study

# ----------------------------------------------------------------------------------------- data


# Deadlines would fail on a busy machine. `make fuzz` takes the second profile.
settings.register_profile("rere", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("rere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no process waits for one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let the garbage collector skip what is imported; else each training run searches it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ml_100k_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of MovieLens-100K, fetched once; skips where they cannot be."""
    return fetched("ml-100k", tmp_path_factory)


@pytest.fixture(scope="session")
def ml_1m_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of MovieLens-1M, likewise."""
    return fetched("ml-1m", tmp_path_factory)


def fetched(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(source) / "raw"
    try:
        fetch(source, folder)
    except InputError as error:
        pytest.skip(f"{source} could not be fetched: {error}")
    return folder


@pytest.fixture(scope="session")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose targets follow the last item in CYCLE, without a test split."""
    from tiny_models import write_cycle

    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture
def catalogue_file(tmp_path: Path) -> Path:
    """The file of SMALL_CATALOGUE, which a test may damage."""
    from prefix_trees import SMALL_CATALOGUE, save_catalogue

    from rere.catalogue import CATALOGUE

    return save_catalogue(*SMALL_CATALOGUE, tmp_path / CATALOGUE)


# --------------------------------------------------------------------------------------- models


@pytest.fixture(scope="session")
def fixed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with fixed weights, whose scores of different titles are far apart."""
    from tiny_models import write_fixed_model

    return write_fixed_model(tmp_path_factory.mktemp("fixed_model"))


@pytest.fixture(scope="session")
def runs_of(
    tmp_path_factory: pytest.TempPathFactory, fixed_model: Path, cycle: Path
) -> dict[int, Path]:
    """The folder with the runs of one, two and three processes that rank_runs.py lists."""
    from rank_runs import OF_THREE, RUNS, make_runs

    folders = {}
    for processes, names in {1: [*RUNS], 2: [*RUNS], 3: OF_THREE}.items():
        folders[processes] = tmp_path_factory.mktemp("ranks")
        make_runs(processes, names, fixed_model, cycle, folders[processes])
    return folders


@pytest.fixture(scope="session")
def model_with_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the catalogue of ITEM_TITLES, as training stores it."""
    from ranking_data import build_catalogue
    from tiny_models import write_fixed_model

    from rere.catalogue import CATALOGUE

    folder = write_fixed_model(tmp_path_factory.mktemp("model_with_catalogue"))
    build_catalogue().save(folder / CATALOGUE)
    return folder


@pytest.fixture(scope="session")
def recommender(model_with_catalogue: Path) -> "Recommender":
    """The same, held in memory."""
    from rere import Recommender

    return Recommender(model_with_catalogue)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, cycle: Path) -> Path:
    """The folder of a backbone with the options TINY."""
    from tiny_models import TINY

    from rere.backbones import backbone

    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    backbone(TINY, cycle, folder)
    return folder


@pytest.fixture(scope="session")
def dated_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of data whose titles have a year."""
    from tiny_models import TINY, write_data

    from rere.backbones import backbone

    folder = tmp_path_factory.mktemp("dated")
    titles = ["Toy Story (1995)", "Toy Soldiers (1995)", "Story (1996)"]
    data = write_data(folder / "data", titles, train=[([0, 1, 2], 0)] * 20)
    backbone(TINY, data, folder / "backbone")
    return folder / "backbone"


@pytest.fixture
def published_model(tmp_path: Path) -> Path:
    """A bfloat16 checkpoint whose generation config samples. A test may damage it."""
    from tiny_models import causal_lm, tokenizer
    from transformers import GenerationConfig

    folder = tmp_path / "published"
    model = causal_lm("llama", len(tokenizer("qwen2"))).bfloat16()
    model.generation_config = GenerationConfig(do_sample=True, top_k=3, repetition_penalty=2.0)
    model.save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[Hub]":
    """A local server in place of the Hugging Face hub, whose token is set; nothing is cached."""
    from fake_hub import TOKEN, Hub
    from huggingface_hub import HfApi, constants

    with Hub() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        # transformers keeps one for all calls, with the address of the first.
        monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=server.url))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def shared_run(tmp_path: Path) -> Path:
    """The folder of a run with its metrics, whose model/ has no real weights."""
    from prefix_trees import SMALL_CATALOGUE, save_catalogue

    from rere.catalogue import CATALOGUE
    from rere.config.evaluation import CUTOFFS
    from rere.config.run import CARD, MODEL_FILES, Run
    from rere.files import SNAKEMAKE, write_json
    from rere.model_card import REPO, TEST_METRICS

    run = Run(dataset="small", backbone="tiny", method="sft", seed=0)
    folder = tmp_path / run.folder
    (folder / "model").mkdir(parents=True)
    for name in (*MODEL_FILES, SNAKEMAKE):
        (folder / "model" / name).write_text(f"content of {name}")
    save_catalogue(*SMALL_CATALOGUE, folder / "model" / CATALOGUE)
    card = f'---\ntags: [rere]\n---\n\n{TEST_METRICS}\n\nfrom_pretrained("{REPO}")\n'
    (folder / "model" / CARD).write_text(card)
    names = [f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS]
    values = dict.fromkeys(names, 0.5) | {f"{name}_low": 0.25 for name in names}
    values |= {f"{name}_high": 0.75 for name in names}
    write_json(folder / "metrics.json", {**run.model_dump(), "rows": 1234, **values})
    return folder


# -------------------------------------------------------------------------------------- machines


@pytest.fixture
def machine_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], list[str]]]:
    """A function that lets processes find so many GPUs, and returns their UUIDs."""
    from rere.lease import VISIBLE, lock_file

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv(VISIBLE, raising=False)
    made: list[str] = []

    def write(count: int) -> list[str]:
        uuids = write_gpus(tmp_path / "bin", count)
        made.extend(uuids)
        return uuids

    yield write
    for uuid in made:
        lock_file(uuid).unlink(missing_ok=True)


# ----------------------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function that gives the tokenizer of a kind: one of TOKENIZERS, or `tiny`.

    The last is that of a `tiny` backbone, loaded from its folder.
    """
    from tiny_models import TITLES, tokenizer, write_data

    from rere.backbones import backbone, load_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    data = write_data(folder / "data", TITLES[:4], train=[([0, 1], 2), ([1, 2], 3)])
    backbone(Tiny(vocab_size=300, hidden_size=8, num_heads=1), data, folder / "backbone")
    tiny = load_tokenizer(folder / "backbone")
    return lambda kind: tiny if kind == "tiny" else tokenizer(kind)


# --------------------------------------------------------------------------- the whole package


@pytest.fixture(scope="session")
def paper_in_small() -> "Study":
    """The paper's study in small."""
    return study_of(PAPER_IN_SMALL)


@pytest.fixture(scope="session")
def paper_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its raw files and the models that stand in for the paper's."""
    from planted_logs import write_planted
    from stand_ins import STAND_INS, write_stand_in

    folder = tmp_path_factory.mktemp("paper")
    write_planted(folder / "raw")
    for name in STAND_INS:
        write_stand_in(name, folder / "stand-ins" / name)
    return folder


@pytest.fixture(scope="module")
def paper_once(paper_files: Path) -> Path:
    """The folder of that study's methods, each run once: on one data set, backbone and seed."""
    done = snakemake(paper_files, PAPER_IN_SMALL, **each_method_once())
    assert done.returncode == 0, done.stdout
    return paper_files


@pytest.fixture(scope="module")
def paper_study(paper_files: Path) -> Path:
    """The folder of the whole study, run on two cores."""
    done = snakemake(paper_files, PAPER_IN_SMALL, "--cores", "2")
    assert done.returncode == 0, done.stdout
    return paper_files


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the small study, run from raw files to table and figure."""
    folder = checkout(tmp_path_factory.mktemp("study") / "checkout")
    write_raw(folder / "raw")
    done = snakemake(folder, SMALL)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def study_copy(small_study: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change. Snakemake finds nothing to do there."""
    subprocess.run(["cp", "-a", small_study, tmp_path / "copy"], check=True)
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of the package is installed in. Nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    # Not built in the repository, where setuptools would leave files and pick up old ones.
    source, target = folder / "source", folder / "target"
    shutil.copytree(ROOT / "rere", source / "rere", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", folder)
    [wheel] = folder.glob("*.whl")
    pip("install", wheel, "--no-compile", "--target", target)
    return target


def pip(*arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"], check=True
    )


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder
