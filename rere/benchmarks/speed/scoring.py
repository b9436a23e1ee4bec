"""Scoring with backward: candidates packed behind their prompt, against an expanded batch.

A row of data is a prompt with its group of candidates, those that the search finds.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rere.engine.search.beam import beam_search
from rere.engine.search.path_scorer import Scoring
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.benchmarks.plain import training as plain
from rere.benchmarks.timing import batched, compared, in_fresh_process, in_turn, peak_memory
from rere.benchmarks.subject import Subject, load

SCORING = "scoring with backward"
EXPANDED = "expanded batch"
SIDES = ("vocabulary", "catalogue", EXPANDED)
REPEATS = 3
"""Times that a size is tried."""
Way = TypeVar("Way")
TOLERANCE = 1e-4
"""By how much of their size gradients in float32 may differ."""


class Group(NamedTuple):
    """A row of data."""

    prompt: Sequence[int]
    leaves: list[int]


def groups(subject: Subject, prompts: Sequence[Sequence[int]], size: int) -> list[Group]:
    """Each prompt with the `size` best leaves of the catalogue, which has as many."""
    leaf = beam_search(subject.models["float32"], subject.tree, prompts, size).leaf
    return [Group(*pair) for pair in zip(prompts, leaf.tolist(), strict=True)]


def rows(
    subject: Subject,
    model: Path,
    data: Path,
    prompts: Sequence[Sequence[int]],
    size: int,
    sizes: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Rows of the table (`rere.benchmarks.speed.table`) for groups of `size`, both scorings in turn.

    Every side takes of `sizes` the rows a pass that it is fastest with.
    """
    batches = [groups(subject, batch, size) for batch in batched(prompts, max(sizes))]
    label = f"speed: {subject.name}, {SCORING}"
    passes = {side: partial(gradient, subject, side) for side in SIDES}
    at_once = {
        side: fastest(call, batches[len(batches) // 2], sizes, label)
        for side, call in passes.items()
    }
    timed = in_turn(
        {side: partial(passes[side], number) for side, number in at_once.items()}, batches, label
    )
    # Peaks are of passes as large as theirs; the last are of the longest prompts.
    of_peak = batches[-1][-at_once[EXPANDED] :]
    peaks = {
        side: in_fresh_process(peak_of_scoring, subject.name, model, data, side, of_peak)
        for side in SIDES
    }
    for side in SIDES[:-1]:
        ours, theirs = timed[side].median, timed[EXPANDED].median
        words = [subject.name, data.name, f"{size} candidates", side]
        words += [f"{at_once[side]} rows a pass (theirs {at_once[EXPANDED]})"]
        words += [f"{torch.get_num_threads()} threads", "float32"]
        yield {
            "what": SCORING,
            "against": EXPANDED,
            "setting": ", ".join(words),
            **compared(ours, theirs),
            "equal": equals_expanded(subject, side, batches[0]),
            "peak_mb_ours": peaks[side],
            "peak_mb_theirs": peaks[EXPANDED],
        }


def gradient(subject: Subject, side: str, at_once: int, batch: Sequence[Group]) -> float:
    """Leave the gradient of a loss in the model, computed `at_once` groups a pass; the loss."""
    subject.models["float32"].zero_grad()
    total = 0.0
    for part in batched(batch, at_once):
        loss = loss_of(log_prob(subject, side, part))
        loss.backward()
        total += loss.item()
    return total


def log_prob(subject: Subject, side: str, batch: Sequence[Group]) -> Tensor:
    """Log-probabilities of the candidates, (B, G)."""
    if side == EXPANDED:
        return expanded(subject, batch, "vocabulary")
    leaves = torch.tensor([group.leaves for group in batch])
    packed = pack_leaves([g.prompt for g in batch], leaves, subject.host_tree, side)
    packed = packed.to(subject.device)
    return sum_by_candidate(token_log_probs(subject.models["float32"], packed), packed)


def expanded(subject: Subject, batch: Sequence[Group], scoring: Scoring) -> Tensor:
    """Log-probabilities of the candidates, (B, G), each in a sequence of its own."""
    items, sequences = subject.tree.leaf_items, subject.sequences
    pairs = [(group.prompt, sequences[items[leaf][0]]) for group in batch for leaf in group.leaves]
    tree = subject.token_tree if scoring == "catalogue" else None
    of_tokens, counts = plain.log_probs(
        subject.models["float32"], plain.Sequences(*zip(*pairs, strict=True)), tree
    )
    return (of_tokens * counts).sum(-1).view(len(batch), -1)


def equals_expanded(subject: Subject, scoring: Scoring, batch: Sequence[Group]) -> bool:
    """Whether values and gradients are those of the expanded batch under the same scoring."""
    weights = list(subject.models["float32"].parameters())
    sides = []
    for values in (log_prob(subject, scoring, batch), expanded(subject, batch, scoring)):
        gradients = torch.autograd.grad(loss_of(values), weights)
        sides.append((values.detach().flatten(), torch.cat([g.flatten() for g in gradients])))
    return all(close(*pair) for pair in zip(*sides, strict=True))


def loss_of(values: Tensor) -> Tensor:
    """A loss of log-probabilities (B, G): weights from -1 to 1, as advantages have either sign."""
    return (values * torch.linspace(-1, 1, values.shape[1], device=values.device)).sum()


def close(actual: Tensor, expected: Tensor) -> bool:
    """Whether vectors differ by no more than rounding."""
    return bool((actual - expected).norm() <= TOLERANCE * expected.norm())


def fastest(
    call: Callable[[Way, Sequence[Any]], Any],
    batch: Sequence[Any],
    ways: Sequence[Way],
    label: str,
) -> Way:
    """In which of some ways, such as sizes, a side is fastest, on one batch, several times."""
    if len(ways) == 1:
        return ways[0]
    timed = in_turn({way: partial(call, way) for way in ways}, [batch] * REPEATS, label)
    return min(ways, key=lambda way: timed[way].median)


def peak_of_scoring(
    name: str, model: Path, data: Path, side: str, batch: Sequence[Group]
) -> float | None:
    """MB above the weights that a side takes for one pass; to be called in a fresh process."""
    subject = load(name, model, data, ["float32"])
    # What is imported, and built of the catalogue, at the first pass is there before.
    gradient(subject, side, 1, [Group(batch[0].prompt[:2], batch[0].leaves[:1])])
    subject.models["float32"].zero_grad()
    return peak_memory(lambda: gradient(subject, side, len(batch), batch), subject.device)
