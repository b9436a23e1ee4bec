"""Search and training steps in bfloat16 arithmetic over float32 weights, beside plain ones."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rere.backbones import halve_linear_layers
from rere.benchmarks.gpu import sft
from rere.benchmarks.gpu.measure import MEASURED, Meter, Side
from rere.benchmarks.gpu.models import make_rows
from rere.benchmarks.models import GENERATE, SCORINGS, BenchmarkModel, Searcher
from rere.benchmarks.speed import rl
from rere.benchmarks.speed.search import PLAIN
from rere.benchmarks.timing import call_in_batches
from rere.config.benchmarks import GpuOptions

Part = Callable[[BenchmarkModel, GpuOptions, Meter], list[dict[str, Any]]]


def list_parts(options: GpuOptions) -> Iterator[tuple[str, Part]]:
    """Yield the name and the function of each measurement, the most important ones first."""
    first, *others = options.beams
    yield search_name(first), partial(time_search, first)
    yield rl.STEP, time_rl
    for num_beams in others:
        yield search_name(num_beams), partial(time_search, num_beams)
    yield sft.STEP, time_sft


def search_name(num_beams: int) -> str:
    return f"search, {num_beams} beams"


def time_search(
    num_beams: int, model: BenchmarkModel, options: GpuOptions, meter: Meter
) -> list[dict[str, Any]]:
    """Return a row per scoring and one of `generate`, from the weights of `load_for_inference`."""
    weights = copy.deepcopy(model.float32).requires_grad_(False)
    halve_linear_layers(weights)
    weights.requires_grad_()  # as in `load_benchmark_model`
    model = replace(model, models={model.dtype: weights})
    rows = make_rows(model, options.prompts, options)
    sides = [
        Side(label, partial(search, model, num_beams, name), options.batch_sizes)
        for label, name in (*ours(), (PLAIN, GENERATE.name))
    ]
    tokens = count_tokens(model, rows, num_beams)
    prompts = [row.prompt for row in rows]
    return finish(model, search_name(num_beams), meter, sides, prompts, tokens)


def time_rl(model: BenchmarkModel, options: GpuOptions, meter: Meter) -> list[dict[str, Any]]:
    """Return a row per scoring and one of the plain step, all with a reference."""
    rows, beta = rl.with_targets(model, make_rows(model, options.prompts, options)), rl.BETAS[0]
    sizes, find = options.training_batch_sizes, partial(search, model, rl.GROUP_SIZE, GENERATE.name)
    found = meter.find_best(find, options.batch_sizes, [row.prompt for row in rows])
    plain_sizes = [(found or options.batch_sizes[0], rl.GROUP_SIZE * size) for size in sizes]
    with TemporaryDirectory() as folder:
        calls = rl.make_steps(model, Path(folder), [beta])
        sides = [Side(label, calls[scoring, beta], sizes) for label, scoring in ours()]
        sides.append(Side(rl.PLAIN, calls[rl.PLAIN, beta], plain_sizes))
        tokens = count_tokens(model, rows, rl.GROUP_SIZE)
        return finish(model, rl.STEP, meter, sides, rows, tokens)


def time_sft(model: BenchmarkModel, options: GpuOptions, meter: Meter) -> list[dict[str, Any]]:
    """Return a row of the project's step and one of the plain step."""
    rows = make_rows(model, options.sft_rows, options)
    with TemporaryDirectory() as folder:
        steps = sft.make_steps(model, Path(folder))
        sides = [Side(name, call, options.sft_batch_sizes) for name, call in steps.items()]
        return finish(model, sft.STEP, meter, sides, rows, count_tokens(model, rows, 1))


def search(
    model: BenchmarkModel, num_beams: int, name: str, size: int, prompts: Sequence[Sequence[int]]
) -> list:
    """Return what a search finds with `size` prompts per pass."""
    find = partial(model.search, Searcher(name, model.dtype), num_beams)
    return call_in_batches(find, size, prompts)


def ours() -> list[tuple[str, str]]:
    return [(f"rere, {scoring}", scoring) for scoring in SCORINGS]


def count_tokens(model: BenchmarkModel, rows: Sequence, candidates: int) -> float:
    """Return the tokens of all prompts and of their candidates, as long as the mean title."""
    mean = sum(map(len, model.sequences)) / len(model.sequences)
    return sum(len(row.prompt) for row in rows) + len(rows) * candidates * mean


def finish(
    model: BenchmarkModel,
    what: str,
    meter: Meter,
    sides: Sequence[Side],
    rows: Sequence,
    tokens: float,
) -> list[dict[str, Any]]:
    """Measure the sides, the last of which is the plain one; return their rows."""
    table = meter.measure(sides, rows, tokens, f"gpu: {model.name}, {what}")
    plain = table[-1]
    for row in table[:-1]:
        if row["status"] == plain["status"] == MEASURED:
            row["speedup"] = plain["seconds"] / row["seconds"]
    return [{"model": model.name, "what": what} | row for row in table]
