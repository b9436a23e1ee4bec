"""Models of known shapes, with synthetic titles and prompts, so that no data is needed."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from rere.backbones import load_model, random_model
from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.benchmarks.speed.curves import make_titles
from rere.config.benchmarks import GpuOptions

DTYPE = "bfloat16"
"""Arithmetic of what is timed."""
QWEN, SMOLLM = "Qwen2-0.5B", "SmolLM2-135M"
COLUMNS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"),  # these are scaled
    *("num_attention_heads", "num_key_value_heads"),
)
SHAPES = {
    QWEN: ("qwen2", (896, 4864, 24, 151_936, 14, 2)),
    SMOLLM: ("llama", (576, 1536, 30, 49_152, 9, 3)),
}
"""Architecture and COLUMNS of each model."""


def make_model(
    name: str, options: GpuOptions, device: torch.device | str = "cpu", **changes: int
) -> PreTrainedModel:
    """Return a model of a shape, with tied embeddings and random float32 weights."""
    architecture, sizes = SHAPES[name]
    shape = dict(zip(COLUMNS, sizes, strict=True)) | changes
    shape |= {key: max(1, shape[key] // options.scale) for key in COLUMNS[:4]}
    config = AutoConfig.for_model(architecture, **shape, tie_word_embeddings=True)
    torch.manual_seed(options.seed)
    with torch.device(device):
        return random_model(config).eval()


def load_timed(
    name: str, options: GpuOptions, folder: Path | None, device: torch.device
) -> BenchmarkModel:
    """Return a model to time; `folder` may hold weights of SMOLLM."""
    if folder is not None and name == SMOLLM:
        weights = load_model(folder).to(device)
    else:
        weights = make_model(name, options, device)
    return with_titles(name, weights, options, DTYPE)


def with_titles(
    name: str, weights: PreTrainedModel, options: GpuOptions, dtype: str
) -> BenchmarkModel:
    """Return the model with a synthetic catalogue, to search and to train in `dtype`."""
    titles = make_titles(options.titles, weights.config.vocab_size, options.seed)
    models = {"float32": weights, dtype: weights}
    return BenchmarkModel(name, Path(), Path("synthetic"), models, titles, eos=0, dtype=dtype)


def make_rows(model: BenchmarkModel, number: int, longest: int, seed: int) -> list[PromptRow]:
    """Return rows with prompts of random tokens, the shortest first, and random targets."""
    random = np.random.default_rng(seed)
    lengths = sorted(random.integers(longest * 3 // 5, longest, number, endpoint=True))
    prompts = [random.integers(3, model.vocab_size, length).tolist() for length in lengths]
    targets = random.integers(0, len(model.sequences), number).tolist()
    return list(map(PromptRow, range(number), prompts, targets))
