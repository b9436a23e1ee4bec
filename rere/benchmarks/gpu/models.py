"""Models of known shapes, with synthetic titles and prompts, so that no data is needed."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.benchmarks.speed.curves import make_titles
from rere.config.benchmarks import GpuOptions

QWEN, SMOLLM = "Qwen2-0.5B", "SmolLM2-135M"
Shape = dict[str, int]
SHAPES: dict[str, tuple[str, Shape]] = {
    QWEN: (
        "qwen2",
        {
            **{"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864},
            **{"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936},
        },
    ),
    SMOLLM: (
        "llama",
        {
            **{"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152},
        },
    ),
}
"""Architecture and shape of each model; input and output embeddings are tied."""
SCALED = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")


def make_model(
    name: str, scale: int, seed: int, device: torch.device | str = "cpu", **changes: int
) -> PreTrainedModel:
    """Return a model of a shape with random float32 weights, its sizes divided by `scale`."""
    kind, shape = SHAPES[name]
    shape = {key: max(1, size // scale if key in SCALED else size) for key, size in shape.items()}
    config = AutoConfig.for_model(kind, **shape | changes, tie_word_embeddings=True)
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def with_titles(
    name: str, weights: PreTrainedModel, options: GpuOptions, dtype: str
) -> BenchmarkModel:
    """Return the model with a synthetic catalogue, to search and to train in `dtype`."""
    titles = make_titles(options.titles, weights.config.vocab_size, options.seed)
    models = {"float32": weights, dtype: weights}
    return BenchmarkModel(name, Path(), Path("synthetic"), models, titles, eos=0, dtype=dtype)


def make_rows(model: BenchmarkModel, number: int, options: GpuOptions) -> list[PromptRow]:
    """Return rows with prompts of random tokens, the shortest first, and random targets."""
    random = np.random.default_rng(options.seed)
    low, high = options.prompt_tokens
    lengths = sorted(random.integers(low, high, number, endpoint=True).tolist())
    prompts = [random.integers(3, model.vocab_size, length).tolist() for length in lengths]
    targets = random.integers(0, len(model.sequences), number).tolist()
    return list(map(PromptRow, range(number), prompts, targets))
