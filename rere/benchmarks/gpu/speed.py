"""Search and training steps in bfloat16 arithmetic, beside those of the plain side."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rere.backbones import halve_linear_layers
from rere.benchmarks.gpu import sft
from rere.benchmarks.gpu.measure import Meter, Rows, Side
from rere.benchmarks.gpu.models import QWEN, SMOLLM, load_timed, make_rows
from rere.benchmarks.models import GENERATE, SCORINGS, BenchmarkModel, PromptRow, Searcher
from rere.benchmarks.speed import rl
from rere.benchmarks.speed.search import PLAIN
from rere.benchmarks.timing import call_in_batches
from rere.config.benchmarks import GpuOptions
from rere.config.rl import RlOptions
from rere.config.training import SftOptions
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import PackedBatch, pack
from rere.engine.search.batch_size import search_bytes
from rere.engine.search.layout import full_pass_tokens
from rere.planning.memory import training_memory
from rere.planning.plan import SHARE_OF_TITLES
from rere.training.preference import random_leaves

OURS = {scoring: f"rere, {scoring}" for scoring in SCORINGS}
Compared = tuple[list[Side], Sequence, float]
"""The sides, the last of them the plain side; their rows; the tokens of these."""


def list_parts(
    options: GpuOptions, folder: Path | None, meter: Meter
) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Yield name and function of each measurement, the most important ones first."""
    load = lru_cache(maxsize=1)(partial(load_timed, options=options, folder=folder))
    first, *others = ((f"search, {n} beams", partial(searches, n)) for n in options.beams)
    measured = (first, (rl.STEP, rl_steps), *others, (sft.STEP, sft_steps))
    for name, (what, prepare) in itertools.product((QWEN, SMOLLM), measured):

        def run(name=name, what=what, prepare=prepare) -> Rows:
            with TemporaryDirectory() as scratch:
                compared = prepare(load(name, device=meter.device), options, meter, Path(scratch))
                return meter.measure((name, what), *compared)

        yield f"{name}, {what}", run


def searches(
    num_beams: int, model: BenchmarkModel, options: GpuOptions, meter: Meter, scratch: Path
) -> Compared:
    """Return a search per scoring and that of the plain side, with weights as for inference."""
    weights = copy.deepcopy(model.float32).requires_grad_(False)
    halve_linear_layers(weights)
    models = {model.dtype: weights.requires_grad_()}  # as in `load_benchmark_model`
    find = partial(search, replace(model, models=models), num_beams)
    rows = make_rows(model, options.prompts, options.prompt_tokens, options.seed)
    longest = len(rows[-1].prompt)
    sides = [
        Side(
            OURS[scoring],
            partial(find, scoring),
            options.batch_sizes,
            partial(plan_search, model, longest, num_beams, scoring),
        )
        for scoring in SCORINGS
    ]
    sides.append(Side(PLAIN, partial(find, GENERATE.name), options.batch_sizes))
    return sides, [row.prompt for row in rows], count_tokens(model, rows, num_beams)


def rl_steps(model: BenchmarkModel, options: GpuOptions, meter: Meter, scratch: Path) -> Compared:
    """Return a step per scoring and that of the plain side, all with a reference."""
    rows = make_rows(model, options.prompts, options.prompt_tokens, options.seed)
    sizes, find = options.training_batch_sizes, partial(search, model, rl.GROUP_SIZE, GENERATE.name)
    found = meter.find_best(find, options.batch_sizes, [row.prompt for row in rows])
    plain_sizes = [(found or options.batch_sizes[0], rl.GROUP_SIZE * size) for size in sizes]
    beta = rl.BETAS[0]
    calls = rl.make_steps(model, scratch, [beta])
    sides = [
        Side(OURS[scoring], calls[scoring, beta], sizes, partial(plan_rl, model, rows, scoring))
        for scoring in SCORINGS
    ]
    sides.append(Side(rl.PLAIN, calls[rl.PLAIN, beta], plain_sizes))
    return sides, rl.with_targets(model, rows), count_tokens(model, rows, rl.GROUP_SIZE)


def sft_steps(model: BenchmarkModel, options: GpuOptions, meter: Meter, scratch: Path) -> Compared:
    """Return the project's step and that of the plain side."""
    rows = make_rows(model, options.sft_rows, options.prompt_tokens, options.seed)
    calls = sft.make_steps(model, scratch)
    plans = {sft.OURS: partial(plan_sft, model, rows)}
    sides = [
        Side(name, call, options.sft_batch_sizes, plans.get(name)) for name, call in calls.items()
    ]
    return sides, rows, count_tokens(model, rows, 1)


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


def plan_search(
    model: BenchmarkModel, prompt_length: int, num_beams: int, scoring: str, size: int
) -> int:
    """Return the bytes that a search of `size` prompts should take."""
    return search_bytes(
        model.float32.config,
        model.host_tree,
        size,
        prompt_length,
        num_beams,
        scoring,
        full_pass_tokens(model.float32),
        itemsize=2,
        share_of_titles=SHARE_OF_TITLES,
    )


def plan_rl(model: BenchmarkModel, rows: Sequence[PromptRow], scoring: str, size: int) -> int:
    """Return the bytes that the largest pass of an RL step, of `size` prompts, should take."""
    tree, longest = model.host_tree, rows[-size:]
    target = tree.leaf_of_item[[row.target for row in longest]]
    ids, count = [row.row_id for row in longest], rl.GROUP_SIZE - 1
    leaves = torch.cat([target[:, None], random_leaves(tree, 0, ids, target, count)], dim=1)
    packed = pack_leaves([row.prompt for row in longest], leaves, tree, scoring)
    options = RlOptions(dtype=model.dtype, scoring=scoring)
    return plan_pass(model, options, packed, has_reference=True)


def plan_sft(model: BenchmarkModel, rows: Sequence[PromptRow], size: int) -> int:
    """Return the bytes that the largest pass of an SFT step, of `size` rows, should take."""
    longest = rows[-size:]
    targets = [[model.sequences[row.target]] for row in longest]
    packed = pack([row.prompt for row in longest], targets)
    return plan_pass(model, SftOptions(dtype=model.dtype), packed, has_reference=False)


def plan_pass(
    model: BenchmarkModel, options: RlOptions | SftOptions, packed: PackedBatch, has_reference: bool
) -> int:
    """Return the bytes of a pass; weights, optimiser and gradients are there before a step."""
    config, device = model.float32.config, model.device
    return training_memory(config, options, packed, has_reference, False, device).activations
