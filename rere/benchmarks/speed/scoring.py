"""Scoring with backward: candidates packed behind their prompt, against an expanded batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rere.benchmarks.models import SCORINGS, BenchmarkModel, load_benchmark_model
from rere.benchmarks.plain import training as plain
from rere.benchmarks.table import compare
from rere.benchmarks.timing import (
    PRELOADED,
    Prompts,
    measure_peak_memory,
    run_in_process,
    split_batches,
    time_at_best_size,
)
from rere.config.options import Scoring
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.beam import beam_search

SCORING = "scoring with backward"
EXPANDED = "expanded batch"
TOLERANCE = 1e-4
"""Largest relative difference of float32 gradients that are equal except for rounding."""


class Group(NamedTuple):
    """A prompt and the leaves of its candidates."""

    prompt: Sequence[int]
    leaves: list[int]


def benchmark_scoring(
    model: BenchmarkModel, prompts: Prompts, group_size: int, sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows, one per scoring, each side with its best rows per pass of `sizes`."""
    batches = [find_groups(model, part, group_size) for part in split_batches(prompts, max(sizes))]
    sides = (*SCORINGS, EXPANDED)
    calls = {side: partial(compute_gradient, model, side) for side in sides}
    middle, label = batches[len(batches) // 2], f"speed: {model.name}, {SCORING}"
    best, timed = time_at_best_size(calls, sizes, middle, batches, label)
    # All peaks are at the plain side's rows per pass, on the longest prompts.
    longest = batches[-1][-best[EXPANDED] :]
    peaks = {
        side: run_in_process(PRELOADED, peak_of_scoring, model.folder, model.data, side, longest)
        for side in sides
    }
    for side in SCORINGS:
        rows_per_pass = f"{best[side]} rows a pass (theirs {best[EXPANDED]})"
        setting = model.describe(f"{group_size} candidates", side, rows_per_pass)
        seconds = timed[side].median, timed[EXPANDED].median
        equal = equals_expanded(model, side, batches[0])
        peaks_mb = {"peak_mb_ours": peaks[side], "peak_mb_theirs": peaks[EXPANDED]}
        yield compare(SCORING, EXPANDED, setting, *seconds, equal) | peaks_mb


def find_groups(model: BenchmarkModel, prompts: Prompts, group_size: int) -> list[Group]:
    """Return each prompt with the best leaves that beam search finds."""
    leaf = beam_search(model.float32, model.tree, prompts, group_size).leaf
    return list(map(Group, prompts, leaf.tolist()))


def compute_gradient(
    model: BenchmarkModel, side: str, rows_per_pass: int, batch: Sequence[Group]
) -> float:
    """Leave the gradient of `weighted_sum` in the model; return the loss."""
    model.float32.zero_grad()
    total = 0.0
    for part in split_batches(batch, rows_per_pass):
        loss = weighted_sum(score(model, side, part))
        loss.backward()
        total += loss.item()
    return total


def score(model: BenchmarkModel, side: str, batch: Sequence[Group]) -> Tensor:
    """Return log-probabilities of the candidates, (B, G)."""
    if side == EXPANDED:
        return score_expanded(model, batch, "vocabulary")
    leaves = torch.tensor([group.leaves for group in batch])
    packed = pack_leaves([group.prompt for group in batch], leaves, model.host_tree, side)
    packed = packed.to(model.device)
    return sum_by_candidate(token_log_probs(model.float32, packed), packed)


def score_expanded(model: BenchmarkModel, batch: Sequence[Group], scoring: Scoring) -> Tensor:
    """Return log-probabilities of the candidates, (B, G), each in a sequence of its own."""
    tree = model.token_tree if scoring == "catalogue" else None
    sequences = plain.expand(model, *zip(*batch, strict=True))
    log_probs, counts = plain.log_probs(model.float32, sequences, tree)
    return (log_probs * counts).sum(-1).view(len(batch), -1)


def equals_expanded(model: BenchmarkModel, scoring: Scoring, batch: Sequence[Group]) -> bool:
    """Whether scores and gradients are those of the expanded batch under the same scoring."""
    weights = list(model.float32.parameters())
    sides = []
    for scores in (score(model, scoring, batch), score_expanded(model, batch, scoring)):
        gradients = torch.autograd.grad(weighted_sum(scores), weights)
        sides.append((scores.detach().flatten(), torch.cat([g.flatten() for g in gradients])))
    return all(is_close(*pair) for pair in zip(*sides, strict=True))


def weighted_sum(scores: Tensor) -> Tensor:
    """Return a loss of scores (B, G) with weights from -1 to 1, of both signs like advantages."""
    return (scores * torch.linspace(-1, 1, scores.shape[1], device=scores.device)).sum()


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two vectors are equal except for rounding."""
    return bool((actual - expected).norm() <= TOLERANCE * expected.norm())


def peak_of_scoring(folder: Path, data: Path, side: str, batch: Sequence[Group]) -> float | None:
    """Return the peak memory of one pass above the weights, in MB; call it in a fresh process."""
    model = load_benchmark_model("", folder, data)
    # The first pass imports modules and builds the tree, which do not count.
    compute_gradient(model, side, 1, [Group(batch[0].prompt[:2], batch[0].leaves[:1])])
    model.float32.zero_grad()
    return measure_peak_memory(
        lambda: compute_gradient(model, side, len(batch), batch), model.device
    )
