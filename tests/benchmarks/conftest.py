"""Models, data and results that the tests of benchmarks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_options import GPU, ROLLOUTS, SPEED, SPEED_ROWS
from search_oracles import random_catalogue
from tiny_models import CYCLE, VOCAB_SIZE, causal_lm, write_data

from rere.backbones import load_tokenizer, tiny_model
from rere.benchmarks.gpu.command import benchmark_gpu
from rere.benchmarks.models import BenchmarkModel, PromptRow, load_benchmark_model
from rere.benchmarks.rollouts import benchmark_rollouts
from rere.benchmarks.speed import preprocessing, rl, search, table
from rere.benchmarks.speed.curves import benchmark_speed_curves
from rere.config.backbones import Tiny

SEQUENCES = random_catalogue(60, seed=5)
PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22], [4, 4], [9, 6, 5], [3], [12, 2, 9, 9], [20]]
MANY = [f"{first} {second}" for first in CYCLE[:3] for second in CYCLE[3:]]
"""More titles than the top 10."""

# --------------------------------------------------------------------------------------- models


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, fixed_model: Path) -> tuple[Path, Path]:
    """The folders of a model with fixed weights and of a data set."""
    rows = [([start, (start + 1) % 8], (start + 2) % 8) for start in range(6)]
    folder = tmp_path_factory.mktemp("data") / "cycle"
    return fixed_model, write_data(folder, CYCLE, train=rows + rows[:2], test=rows)


@pytest.fixture(scope="session")
def benchmark_model(inputs: tuple[Path, Path]) -> BenchmarkModel:
    """The model of `inputs`, with the catalogue of its data set."""
    return load_benchmark_model("fixed", *inputs)


@pytest.fixture(scope="session")
def random_inputs(
    tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Path, Path]
) -> tuple[Path, Path]:
    """The same folders, but of a model with random weights."""
    model, data = inputs
    folder = tmp_path_factory.mktemp("random")
    options = Tiny(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2)
    tiny_model(options, load_tokenizer(model)).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder, data


@pytest.fixture(scope="session")
def random_model() -> BenchmarkModel:
    """A model with random weights on a random catalogue, not on disk."""
    weights = {"float32": causal_lm("qwen2", VOCAB_SIZE, seed=1)}
    return BenchmarkModel("random", Path("model"), Path("cycle"), weights, SEQUENCES, eos=1)


@pytest.fixture(scope="session")
def prompt_rows() -> list[PromptRow]:
    """Rows for `random_model`."""
    return [PromptRow(number, prompt, number % 7) for number, prompt in enumerate(PROMPTS)]


# ------------------------------------------------------------------------------------- rollouts


@pytest.fixture(scope="session")
def rollouts_inputs(
    tmp_path_factory: pytest.TempPathFactory, fixed_model: Path
) -> tuple[Path, Path]:
    """The folders of a model with fixed weights and of a data set with MANY titles."""
    rows = [([start, start + 1], start + 2) for start in range(8)]
    return fixed_model, write_data(tmp_path_factory.mktemp("data") / "many", MANY, test=rows)


@pytest.fixture(scope="session")
def rollouts_model(rollouts_inputs: tuple[Path, Path]) -> BenchmarkModel:
    """The model of `rollouts_inputs`, with the catalogue of its data set."""
    return load_benchmark_model("fixed", *rollouts_inputs)


@pytest.fixture(scope="session")
def rollouts_rows(rollouts_model: BenchmarkModel) -> list[PromptRow]:
    """The rows of `rollouts_inputs` that the benchmark takes."""
    return rollouts_model.sample_prompts(ROLLOUTS.rows, ROLLOUTS.seed)


@pytest.fixture(scope="session")
def rollouts_results(
    tmp_path_factory: pytest.TempPathFactory, rollouts_inputs: tuple[Path, Path]
) -> Path:
    """The folder with the files that the stage writes."""
    folder = tmp_path_factory.mktemp("rollouts") / "tables"
    benchmark_rollouts(ROLLOUTS, "fixed sft", *rollouts_inputs, folder / "rollouts.csv")
    return folder


# ---------------------------------------------------------------------------------------- speed


@pytest.fixture(scope="session")
def run_inline() -> Callable[..., Any]:
    """A replacement of `run_in_process` that starts no process."""
    return lambda context, function, *arguments: function(*arguments)


@pytest.fixture(scope="session")
def speed_results(
    tmp_path_factory: pytest.TempPathFactory,
    inputs: tuple[Path, Path],
    random_inputs: tuple[Path, Path],
    run_inline: Callable[..., Any],
) -> Path:
    """The folder with the files that the stages write, without processes of their own."""
    (model, data), (random, _) = inputs, random_inputs
    folder = tmp_path_factory.mktemp("speed") / "tables"
    with pytest.MonkeyPatch.context() as patch:
        for module in (table, search, preprocessing):
            patch.setattr(module, "run_in_process", run_inline)
        models, names, rows = [random, model], ["random", "fixed sft"], [2, SPEED_ROWS]
        table.benchmark_speed(SPEED, models, names, rows, data, folder / "speed.csv")
        benchmark_speed_curves(SPEED, random, data, folder / "speed.curves.csv")
    return folder


@pytest.fixture(scope="session")
def gpu_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .json that the benchmark of a GPU writes of the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "tables" / "gpu.json"
    benchmark_gpu(GPU, None, path)
    return path


@pytest.fixture
def preprocess_inline(run_inline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark of preprocessing without processes of its own."""
    monkeypatch.setattr(preprocessing, "run_in_process", run_inline)


@pytest.fixture
def small_rl_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """RL steps of two prompts with four candidates each."""
    for name, value in {"PROMPTS": 2, "GROUP_SIZE": 4, "HIT_EVERY": 2}.items():
        monkeypatch.setattr(rl, name, value)


@pytest.fixture
def rl_steps(random_model: BenchmarkModel, small_rl_steps: None, tmp_path: Path) -> dict[Any, Any]:
    """The small RL steps of `random_model`, by implementation and beta."""
    return rl.make_steps(random_model, tmp_path, rl.BETAS)
