"""Whether a device finds what the CPU finds in float32: lists, log-probabilities, gradients.

The device computes in float32 without TF32, which should agree except for rounding, and in
bfloat16, which rounds more. Where rounding changes the candidates of an RL step, its gradient is
another one; unconstrained samples change easily, among many tokens.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from rere.benchmarks.gpu import sft
from rere.benchmarks.gpu.models import QWEN, make_model, make_rows, with_titles
from rere.benchmarks.models import SCORINGS, BenchmarkModel, PromptRow
from rere.benchmarks.speed import rl
from rere.benchmarks.speed.agreement import is_same_ranking
from rere.benchmarks.speed.scoring import Group, find_groups, score, weighted_sum
from rere.config.benchmarks import GpuOptions
from rere.config.rl import RolloutStrategy
from rere.engine.model.precision import products_in
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out

ROWS, TOP = 4, 10
MAX_TOKENS = 50
"""Of a prompt: the CPU is slow."""
BETA = rl.BETAS[0]


class Lists(NamedTuple):
    """The candidates of each row as tokens, and their log-probabilities."""

    tokens: list[list[list[int]]]
    scores: list[list[float]]


class Scored(NamedTuple):
    """Values, and the gradient of all weights, flat.

    Values are log-probabilities of given candidates, or a step's loss and gradient norm.
    """

    values: Tensor
    gradient: Tensor


Found = dict[str, Lists | Scored]


def list_parts(options: GpuOptions, device: torch.device) -> Iterator[tuple[str, Callable]]:
    """Yield a name and a function that compares a device with the CPU."""
    few = {"num_hidden_layers": 2 * options.scale, "vocab_size": 8192}
    for width, intermediate in ((448, 896), (896, 4864)):
        sizes = few | {"hidden_size": width, "intermediate_size": intermediate}
        name = f"2 layers, {width} wide"
        yield f"agreement, {name}", partial(compare_with_cpu, name, sizes, options, device)


def compare_with_cpu(
    name: str, sizes: dict[str, int], options: GpuOptions, device: torch.device
) -> list[dict[str, Any]]:
    """Return a row for each dtype and thing compared, of a random model with Qwen2's heads.

    `equal_lists` is the share of lists whose first ten are equal, except for ties. Differences are
    relative, of norms.
    """
    weights = make_model(QWEN, options, **sizes)
    model = with_titles(name, weights, options, "float32")
    rows = rl.with_targets(
        model, make_rows(model, ROWS, min(options.prompt_tokens, MAX_TOKENS), options.seed)
    )
    groups = find_groups(model, [row.prompt for row in rows], rl.GROUP_SIZE)
    expected, table = measure(model, rows, groups), []
    for dtype in ("float32", "bfloat16"):
        moved = with_titles(name, copy.deepcopy(weights).to(device), options, dtype)
        found = measure(moved, rows, groups)
        for what, theirs in expected.items():
            row = {"model": name, "what": what, "dtype": dtype}
            table.append(row | compare(found[what], theirs))
    return table


def measure(model: BenchmarkModel, rows: Sequence[PromptRow], groups: Sequence[Group]) -> Found:
    """Return what the model's device finds; backward passes are without TF32, too."""
    with TemporaryDirectory() as folder, products_in("ieee"):
        return dict([*search(model, rows), *train(model, rows, groups, Path(folder))])


def search(model: BenchmarkModel, rows: Sequence[PromptRow]) -> Iterator[tuple[str, Lists]]:
    """Yield the candidates of beam search under each scoring, and of the other strategies."""
    prompts, seeds = zip(*((row.prompt, row.row_id) for row in rows), strict=True)
    seeds = row_seeds(0, 0, seeds).to(model.device)
    target = model.tree.leaf_of_item[[row.target for row in rows]]
    others = [(name, SCORINGS[0]) for name in get_args(RolloutStrategy) if name != "beam"]
    for name, scoring in (*(("beam", scoring) for scoring in SCORINGS), *others):
        arguments = (model.float32, model.tree, prompts, name, rl.GROUP_SIZE, seeds, scoring)
        with torch.no_grad(), model.precision():
            found = roll_out(*arguments, target=target)
        what = f"beam search, {scoring}" if name == "beam" else f"rollout, {name}"
        yield what, Lists(found.ids.tolist(), found.log_prob.tolist())


def train(
    model: BenchmarkModel, rows: Sequence[PromptRow], groups: Sequence[Group], folder: Path
) -> Iterator[tuple[str, Scored]]:
    """Yield scores and gradients of given candidates, of a step of RL, and of one of SFT."""
    for scoring in SCORINGS:
        model.float32.zero_grad()
        with model.precision():
            scores = score(model, scoring, groups)
        weighted_sum(scores).backward()
        yield f"scoring with gradient, {scoring}", Scored(scores.detach().cpu(), copy_of(model))
    rl_steps = rl.make_steps(model, folder, [BETA])
    calls = {f"{rl.STEP}, {scoring}": rl_steps[scoring, BETA] for scoring in SCORINGS}
    calls[sft.STEP] = sft.make_steps(model, folder)[sft.OURS]
    for what, call in calls.items():
        loss, norm, _ = call(len(rows), rows)
        yield what, Scored(torch.tensor([loss, norm]), copy_of(model))


def copy_of(model: BenchmarkModel) -> Tensor:
    """Return the gradient of all weights on the host."""
    gradients = [weight.grad for weight in model.float32.parameters() if weight.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients]).cpu()


def compare(found: Lists | Scored, expected: Lists | Scored) -> dict[str, Any]:
    """Return what the table says of a pair."""
    if isinstance(expected, Scored):
        pairs = zip(("value_difference", "gradient_difference"), found, expected, strict=True)
        return {name: difference(*pair) for name, *pair in pairs}
    lists = zip(found.tokens, *expected, strict=True)
    equal = [is_same_ranking(ours[:TOP], theirs[:TOP], scores) for ours, theirs, scores in lists]
    return {"equal_lists": sum(equal) / len(equal)}


def difference(found: Tensor, expected: Tensor) -> float | str:
    """Return the norm of the difference over that of the expected values; JSON has no NaN."""
    relative = float((found - expected).norm() / expected.norm())
    return relative if math.isfinite(relative) else "not finite"
