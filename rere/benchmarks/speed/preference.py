"""One step of S-DPO, its targets and random negatives behind one prompt, against expanded batches.

Both sides score all candidates of a row with the policy and with a reference, and share loss,
clipping and optimiser. The learning rate is 0, so that all steps start from the same weights, and
their losses and gradients compare.

A row of data is a prompt with its candidates, the target first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from rere.benchmarks.timing import Prompts, batched, compared, in_turn
from rere.benchmarks.speed.scoring import EXPANDED, SIDES, TOLERANCE, Group, fastest, log_prob
from rere.benchmarks.subject import Subject, optimizer_of, reference_of
from rere.training.preferences import margins, s_dpo

STEP = "S-DPO step"
ROWS, NEGATIVES, BETA, MAX_NORM = 8, 3, 0.1, 1.0


class Result(NamedTuple):
    """What tells whether two steps are the same."""

    loss: float
    norm: float  # of the gradient


@dataclass(frozen=True)
class Step:
    """A way to make a step."""

    subject: Subject
    reference: Subject  # the same but for its model
    optimizer: torch.optim.Optimizer
    side: str  # vocabulary, catalogue or EXPANDED

    def __call__(self, at_once: int, batch: Sequence[Group]) -> Result:
        self.optimizer.zero_grad()
        total = 0.0
        for part in batched(batch, at_once):
            with torch.no_grad():
                reference = log_prob(self.reference, self.side, part)
            own = log_prob(self.subject, self.side, part)
            exists = torch.ones_like(own, dtype=torch.bool)
            loss = s_dpo(margins(own, reference, BETA, exists)).sum() / len(batch)
            loss.backward()
            total += loss.item()
        weights = self.subject.models["float32"].parameters()
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
        self.optimizer.step()
        return Result(total, float(norm))


def rows(
    subject: Subject, dataset: str, prompts: Prompts, sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Rows of the table (`rere.benchmarks.speed.table`) for steps of ROWS rows, both scorings in turn.

    Every side takes of `sizes` the rows a pass that it is fastest with.
    """
    batches = batched(with_candidates(subject, prompts), ROWS)
    model = subject.models["float32"]
    reference = replace(subject, models={"float32": reference_of(model)})
    steps = {side: Step(subject, reference, optimizer_of(model), side) for side in SIDES}
    label, middle = f"speed: {subject.name}, {STEP}", batches[len(batches) // 2]
    at_once = {side: fastest(step, middle, sizes, label) for side, step in steps.items()}
    timed = in_turn(
        {side: partial(step, at_once[side]) for side, step in steps.items()}, batches, label
    )
    theirs = timed[EXPANDED]
    for side in SIDES[:-1]:
        ours = timed[side]
        words = [subject.name, dataset, f"{ROWS} rows x {1 + NEGATIVES} candidates", side]
        words += [f"{at_once[side]} rows a pass (theirs {at_once[EXPANDED]})"]
        words += [f"{torch.get_num_threads()} threads", "float32"]
        yield {
            "what": STEP,
            "against": EXPANDED,
            "setting": ", ".join(words),
            **compared(ours.median, theirs.median),
            # Under `catalogue` scores another loss is minimised.
            "equal": all(map(same, ours.results, theirs.results)) if side == "vocabulary" else None,
        }


def with_candidates(subject: Subject, prompts: Prompts) -> list[Group]:
    """Each prompt with leaves of the catalogue drawn at random, a target and its negatives."""
    leaves = (subject.host_tree.fanout == 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(len(leaves), generator=generator)[: 1 + NEGATIVES] for _ in prompts]
    return [Group(prompt, leaves[row].tolist()) for prompt, row in zip(prompts, drawn, strict=True)]


def same(ours: Result, theirs: Result) -> bool:
    """Whether two steps found the same loss and gradient, but for rounding."""
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(ours, theirs, strict=True))
