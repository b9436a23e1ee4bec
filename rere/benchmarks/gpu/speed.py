"""Search and training steps in bfloat16 arithmetic over float32 weights, beside plain ones."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rere.backbones import halve_linear_layers
from rere.benchmarks.gpu import sft
from rere.benchmarks.gpu.measure import Meter, Side
from rere.benchmarks.gpu.models import make_rows
from rere.benchmarks.models import GENERATE, SCORINGS, BenchmarkModel, Searcher
from rere.benchmarks.speed import rl
from rere.benchmarks.speed.search import PLAIN
from rere.benchmarks.timing import call_in_batches
from rere.config.benchmarks import GpuOptions

OURS = {scoring: f"rere, {scoring}" for scoring in SCORINGS}


def list_parts(options: GpuOptions) -> Iterator[tuple[str, Callable[..., list[dict]]]]:
    """Yield name and function of each measurement, the most important ones first."""
    searches = [(f"search, {beams} beams", partial(time_search, beams)) for beams in options.beams]
    yield from (searches[0], (rl.STEP, time_rl), *searches[1:], (sft.STEP, time_sft))


def time_search(
    num_beams: int, model: BenchmarkModel, options: GpuOptions, meter: Meter, label: str
) -> list[dict]:
    """Return a row per scoring and one of `generate`, with weights as for inference."""
    weights = copy.deepcopy(model.float32).requires_grad_(False)
    halve_linear_layers(weights)
    models = {model.dtype: weights.requires_grad_()}  # as in `load_benchmark_model`
    find = partial(search, replace(model, models=models), num_beams)
    names = OURS | {GENERATE.name: PLAIN}
    sides = [Side(names[name], partial(find, name), options.batch_sizes) for name in names]
    rows = make_rows(model, options.prompts, options.prompt_tokens, options.seed)
    tokens = count_tokens(model, rows, num_beams)
    return meter.measure(label, sides, [row.prompt for row in rows], tokens)


def time_rl(model: BenchmarkModel, options: GpuOptions, meter: Meter, label: str) -> list[dict]:
    """Return a row per scoring and one of the plain step, all with a reference."""
    rows, beta = (
        rl.with_targets(
            model, make_rows(model, options.prompts, options.prompt_tokens, options.seed)
        ),
        rl.BETAS[0],
    )
    sizes, find = options.training_batch_sizes, partial(search, model, rl.GROUP_SIZE, GENERATE.name)
    found = meter.find_best(find, options.batch_sizes, [row.prompt for row in rows])
    plain_sizes = [(found or options.batch_sizes[0], rl.GROUP_SIZE * size) for size in sizes]
    with TemporaryDirectory() as folder:
        calls = rl.make_steps(model, Path(folder), [beta])
        sides = [Side(OURS[scoring], calls[scoring, beta], sizes) for scoring in SCORINGS]
        sides.append(Side(rl.PLAIN, calls[rl.PLAIN, beta], plain_sizes))
        return meter.measure(label, sides, rows, count_tokens(model, rows, rl.GROUP_SIZE))


def time_sft(model: BenchmarkModel, options: GpuOptions, meter: Meter, label: str) -> list[dict]:
    """Return a row of the project's step and one of the plain step."""
    rows = make_rows(model, options.sft_rows, options.prompt_tokens, options.seed)
    with TemporaryDirectory() as folder:
        steps = sft.make_steps(model, Path(folder))
        sides = [Side(name, call, options.sft_batch_sizes) for name, call in steps.items()]
        return meter.measure(label, sides, rows, count_tokens(model, rows, 1))


def search(
    model: BenchmarkModel, num_beams: int, name: str, size: int, prompts: Sequence[Sequence[int]]
) -> list:
    """Return what a search finds with `size` prompts per pass."""
    find = partial(model.search, Searcher(name, model.dtype), num_beams)
    return call_in_batches(find, size, prompts)


def count_tokens(model: BenchmarkModel, rows: Sequence, candidates: int) -> float:
    """Return the tokens of all prompts and of their candidates, as long as the mean title."""
    mean = sum(map(len, model.sequences)) / len(model.sequences)
    return sum(len(row.prompt) for row in rows) + len(rows) * candidates * mean
