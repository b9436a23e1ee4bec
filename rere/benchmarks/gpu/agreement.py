"""Whether a device finds what the CPU finds in float32: lists, log-probabilities, gradients.

The device computes in float32 without TF32, which should agree except for rounding, and in
bfloat16, which rounds more. Where a rounded score changes the candidates of an RL step, its
gradient is another one.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.benchmarks.gpu import sft
from rere.benchmarks.gpu.models import make_rows, with_titles
from rere.benchmarks.models import SCORINGS, BenchmarkModel, PromptRow
from rere.benchmarks.speed import rl
from rere.benchmarks.speed.agreement import is_same_ranking
from rere.benchmarks.speed.scoring import Group, find_groups, score, weighted_sum
from rere.config.benchmarks import GpuOptions
from rere.config.rl import RolloutStrategy
from rere.engine.model.precision import products_in
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import Candidates, roll_out

ROWS, TOP = 8, 10
BETA = rl.BETAS[0]


class Outcome(NamedTuple):
    """What a device found, on the host."""

    lists: Sequence[list[tuple[int, ...]]] = ()  # candidates of each row as tokens
    scores: Sequence[list[float]] = ()  # their log-probabilities
    values: Tensor | None = None  # log-probabilities of given candidates, or loss and norm
    gradient: Tensor | None = None  # of all weights, flat


def compare_with_cpu(
    name: str, weights: PreTrainedModel, device: torch.device, options: GpuOptions
) -> Iterator[dict[str, Any]]:
    """Yield a row for each dtype and thing compared, given a model on the CPU.

    Lists are equal except for ties, in their first ten. A difference is relative, of norms.
    """
    model = with_titles(name, weights, options, "float32")
    rows = rl.with_targets(model, make_rows(model, ROWS, options))
    groups = find_groups(model, [row.prompt for row in rows], rl.GROUP_SIZE)
    expected = measure_all(model, rows, groups)
    for dtype in ("float32", "bfloat16"):
        moved = with_titles(name, copy.deepcopy(weights).to(device), options, dtype)
        found = measure_all(moved, rows, groups)
        for what, outcome in expected.items():
            yield {"model": name, "what": what, "dtype": dtype} | compare(found[what], outcome)


def measure_all(
    model: BenchmarkModel, rows: Sequence[PromptRow], groups: Sequence[Group]
) -> dict[str, Outcome]:
    """Return what the model's device finds, by name; backward passes are without TF32, too."""
    with TemporaryDirectory() as folder, products_in("ieee"):
        return {
            **search_all(model, rows),
            **score_groups(model, groups),
            **take_steps(model, rows, Path(folder)),
        }


def search_all(model: BenchmarkModel, rows: Sequence[PromptRow]) -> dict[str, Outcome]:
    """Return the candidates of beam search under each scoring and of the other strategies."""
    seeds = row_seeds(0, 0, [row.row_id for row in rows]).to(model.device)
    target = model.tree.leaf_of_item[[row.target for row in rows]]
    prompts, size = [row.prompt for row in rows], rl.GROUP_SIZE
    strategies = [("beam", scoring) for scoring in SCORINGS]
    strategies += [(name, "vocabulary") for name in get_args(RolloutStrategy) if name != "beam"]
    found = {}
    with torch.no_grad(), model.precision():
        for name, scoring in strategies:
            candidates = roll_out(
                model.float32, model.tree, prompts, name, size, seeds, scoring, target=target
            )
            what = f"beam search, {scoring}" if name == "beam" else f"rollout, {name}"
            found[what] = to_outcome(candidates)
    return found


def to_outcome(candidates: Candidates) -> Outcome:
    lists = [
        [tuple(token for token in ids if token >= 0) for ids in row]
        for row in candidates.ids.tolist()
    ]
    return Outcome(lists, candidates.log_prob.tolist())


def score_groups(model: BenchmarkModel, groups: Sequence[Group]) -> dict[str, Outcome]:
    """Return the scores of given candidates, and the gradient of a weighted sum of them."""
    found = {}
    for scoring in SCORINGS:
        model.float32.zero_grad()
        with model.precision():
            scores = score(model, scoring, groups)
        weighted_sum(scores).backward()
        outcome = Outcome(values=scores.detach().flatten().cpu(), gradient=copy_gradient(model))
        found[f"scoring with gradient, {scoring}"] = outcome
    return found


def take_steps(
    model: BenchmarkModel, rows: Sequence[PromptRow], folder: Path
) -> dict[str, Outcome]:
    """Return loss, norm and gradient of one step of RL under each scoring, and one of SFT."""
    rl_steps = rl.make_steps(model, folder, [BETA])
    calls = {f"{rl.STEP}, {scoring}": rl_steps[scoring, BETA] for scoring in SCORINGS}
    calls[sft.STEP] = sft.make_steps(model, folder)[sft.OURS]
    found = {}
    for what, call in calls.items():
        result = call(len(rows), rows)
        values = torch.tensor([result.loss, result.gradient_norm])
        found[what] = Outcome(values=values, gradient=copy_gradient(model))
    return found


def copy_gradient(model: BenchmarkModel) -> Tensor:
    gradients = [weight.grad for weight in model.float32.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).cpu()


def compare(found: Outcome, expected: Outcome) -> dict[str, Any]:
    """Return the share of equal lists and the differences; None for what there is not."""
    equal = [
        is_same_ranking(ours[:TOP], theirs[:TOP], scores)
        for ours, theirs, scores in zip(found.lists, expected.lists, expected.scores, strict=True)
    ]
    return {
        "equal_lists": sum(equal) / len(equal) if equal else None,
        "value_difference": difference(found.values, expected.values),
        "gradient_difference": difference(found.gradient, expected.gradient),
    }


def difference(found: Tensor | None, expected: Tensor | None) -> float | str | None:
    """Return the norm of the difference over that of the expected values, if there are any."""
    if found is None or expected is None:
        return None
    if not found.isfinite().all():
        return "not finite"
    return float((found - expected).norm() / expected.norm())
