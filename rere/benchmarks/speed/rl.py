"""One RL step, from rollout to weights, against a plain one.

Ours: the engine's search, then packed candidates scored by the reference and the policy. The plain
step: transformers' beam search, held to the catalogue, then expanded batches. Rewards, advantages,
loss, clipping and optimiser are the same. The learning rate is 0, so that all steps start from the
same weights, and their candidates, losses and gradients compare.

A row of data is a prompt with the leaf of its target.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.engine.search.beam import beam_search
from rere.engine.model.prompt_cache import KeptPrompts
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import token_log_probs
from rere.benchmarks.plain import training as plain
from rere.benchmarks.timing import Prompts, batched, compared, in_batches, in_turn
from rere.benchmarks.speed.scoring import TOLERANCE, fastest
from rere.benchmarks.subject import GENERATE, SCORINGS, Side, Subject, optimizer_of, reference_of
from rere.training import advantages, objectives, rewards

STEP = "RL step"
PLAIN = "plain step"
PROMPTS, GROUP_SIZE, MAX_NORM = 4, 16, 0.3
BETAS = (1e-3, 0.0)
"""The paper's weight of the KL, and none."""
EVERY = 8
"""One prompt in so many has its target among the candidates; about as many as after SFT."""


class Row(NamedTuple):
    """A row of data."""

    prompt: Sequence[int]
    target: int


class Result(NamedTuple):
    """What tells whether two steps are the same."""

    leaves: list[list[int]]
    loss: float
    norm: float  # of the gradient


@dataclass(frozen=True)
class Step:
    """A way to make a step, with a subject's model, and a reference unless `beta` is 0."""

    subject: Subject
    reference: PreTrainedModel | None
    optimizer: torch.optim.Optimizer
    side: str  # vocabulary, catalogue or PLAIN
    beta: float
    skip: bool = False  # groups whose advantages are all zero

    @property
    def model(self) -> PreTrainedModel:
        return self.subject.models["float32"]

    @property
    def searcher(self) -> Side:
        return GENERATE if self.side == PLAIN else Side(self.side)

    def __call__(self, searched: int, at_once: int, batch: Sequence[Row]) -> Result:
        """With so many prompts a search, and prompts or plain sequences a training pass."""
        prompts = [row.prompt for row in batch]
        if self.keeps and len(prompts) <= min(searched, at_once):
            prompts = KeptPrompts(prompts)
        leaves = in_batches(self.search, searched, prompts)
        update = self.update_plainly if self.side == PLAIN else self.update
        advantage = advantage_of(leaves, [row.target for row in batch])
        self.optimizer.zero_grad()
        loss = update(prompts, leaves, advantage, at_once)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        return Result(leaves, loss, float(norm))

    @property
    def keeps(self) -> bool:
        """Whether prompts may be computed for search and update at once, as RL does."""
        return self.side != PLAIN and not self.skip

    def search(self, prompts: Prompts) -> list[list[int]]:
        return self.subject.leaves(self.subject.search(self.searcher, GROUP_SIZE, prompts))

    def update(
        self, prompts: Prompts, leaves: list[list[int]], advantage: Tensor, at_once: int
    ) -> float:
        """Add the gradient of the loss, a mean over all groups, skipped or not; its value."""
        teaches = advantage.any(-1) if self.skip else torch.ones(len(prompts), dtype=torch.bool)
        kept = prompts if isinstance(prompts, KeptPrompts) else None
        total = 0.0
        for part in batched(teaches.nonzero()[:, 0].tolist(), at_once):
            chosen = torch.tensor(leaves)[part]
            tree, device = self.subject.host_tree, self.subject.device
            some = [prompts[row] for row in part]
            packed = pack_leaves(some, chosen, tree, self.side).to(device)
            reference = None
            if self.reference is not None:
                with torch.no_grad():
                    reference = token_log_probs(self.reference, packed)
            log_prob = token_log_probs(self.model, packed, prompts=kept)
            kl = None if reference is None else objectives.k3(log_prob, reference)
            each = advantage[part].to(device)
            loss = objectives.grpo(log_prob, each, kl, self.beta, packed)
            loss = loss * len(part) / len(prompts)
            loss.backward()
            total += loss.item()
        return total

    def update_plainly(
        self, prompts: Prompts, leaves: list[list[int]], advantage: Tensor, at_once: int
    ) -> float:
        items, sequences = self.subject.tree.leaf_items, self.subject.sequences
        pairs = [
            (prompt, sequences[items[leaf][0]])
            for prompt, row in zip(prompts, leaves, strict=True)
            for leaf in row
        ]
        return plain.update(
            self.model,
            self.reference,
            plain.Sequences(*zip(*pairs, strict=True)),
            advantage.flatten(),
            self.beta,
            at_once,
        )


def advantage_of(leaves: list[list[int]], targets: Sequence[int]) -> Tensor:
    """GRPO's advantages (B, G) under ReRe's rewards, candidates ranked as the search found them."""
    leaf = torch.tensor(leaves)
    hit = leaf == torch.tensor(targets)[:, None]
    falling = -torch.arange(leaf.shape[1]).expand_as(leaf).float()
    reward = rewards.rule(hit, falling) + rewards.ranking(hit, falling)
    return advantages.grpo(reward, torch.ones_like(hit))


def with_targets(subject: Subject, prompts: Prompts) -> list[Row]:
    """The prompts, one in EVERY with a target that the search finds in the middle of its list.

    The others' is none that it finds. So every model has the same hits to learn from.
    """
    leaves = beam_search(subject.models["float32"], subject.tree, prompts, GROUP_SIZE).leaf.tolist()
    every = subject.tree.leaf_of_item.tolist()
    return [
        Row(prompt, found[GROUP_SIZE // 2] if number % EVERY == 0 else missing(every, found))
        for number, (prompt, found) in enumerate(zip(prompts, leaves, strict=True))
    ]


def missing(every: Sequence[int], found: Sequence[int]) -> int:
    return next(leaf for leaf in every if leaf not in found)


def rows(
    subject: Subject,
    dataset: str,
    prompts: Prompts,
    searched: Mapping[str, int],
    sizes: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Rows of the table (`rere.benchmarks.speed.table`) for steps of PROMPTS prompts.

    Every side takes of the ways that `searched` and `sizes` leave it (`ways_of`) the one that it
    is fastest in. First with a reference, under either scoring, against the plain step with one;
    then without, groups that teach nothing skipped, against the plain step without.
    """
    batches = batched(with_targets(subject, prompts), PROMPTS)
    hit_rate = math.ceil(len(prompts) / EVERY) / len(prompts)
    sides = (*SCORINGS, PLAIN)
    steps = {(side, beta): make(subject, side, beta) for beta in BETAS for side in sides}
    label = f"speed: {subject.name}, {STEP}"
    middle = batches[len(batches) // 2]
    at_once = {}
    for side in sides:
        step = steps[side, BETAS[0]]
        number = min(PROMPTS, searched[step.searcher.what])
        ways, some = ways_of(side, number, sizes), middle
        if side == PLAIN:
            some = middle[: max(sizes)]
        at_once[side] = fastest(lambda way, batch, step=step: step(*way, batch), some, ways, label)
    calls = {key: partial(step, *at_once[key[0]]) for key, step in steps.items()}
    timed = in_turn(calls, batches, label, settle=True)
    for (side, beta), ours in timed.items():
        if side == PLAIN:
            continue
        theirs = timed[PLAIN, beta]
        words = [subject.name, dataset, f"{PROMPTS} prompts x {GROUP_SIZE} candidates", side]
        words += ["with reference"] if beta else [f"silent groups skipped, hit rate {hit_rate:.3g}"]
        (searches, takes), (they_search, they_take) = at_once[side], at_once[PLAIN]
        words += [f"{searches} prompts a search (theirs {they_search})"]
        words += [f"{takes} a training pass (theirs {they_take} sequences)"]
        words += [f"{torch.get_num_threads()} threads", "float32"]
        yield {
            "what": STEP,
            "against": PLAIN,
            "setting": ", ".join(words),
            **compared(ours.median, theirs.median),
            # Under `catalogue` scores another loss is minimised.
            "equal": all_same(ours.results, theirs.results) if side == "vocabulary" else None,
        }


def make(subject: Subject, side: str, beta: float) -> Step:
    """A step that skips silent groups where that is exact, without a reference."""
    model = subject.models["float32"]
    return Step(
        subject,
        reference_of(model) if beta else None,
        optimizer_of(model),
        side,
        beta,
        skip=not beta and side != PLAIN,
    )


def ways_of(side: str, searched: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Prompts a search, and what a training pass may hold: prompts, of the plain step sequences.

    Ours may take all of the step at once, too, and computes its prompts once then. The plain step
    may take half a group: a large model's activations for a whole one may be more than the
    allocator keeps between passes, and getting them anew took 15 % of such a pass.
    """
    if side == PLAIN:
        return [(searched, size) for size in (GROUP_SIZE // 2, *(GROUP_SIZE * n for n in sizes))]
    return list(dict.fromkeys([*((searched, size) for size in sizes), (PROMPTS, PROMPTS)]))


def all_same(ours: Sequence[Result], theirs: Sequence[Result]) -> bool:
    """Whether all steps are the same; a silent one's gradient, of the KL alone, is next to 0."""
    scale = max(result.norm for result in theirs)
    return all(same(*pair, scale) for pair in zip(ours, theirs, strict=True))


def same(ours: Result, theirs: Result, scale: float = 0.0) -> bool:
    """Whether two steps found the same candidates, loss and gradient, but for rounding.

    `scale` is the norm of a gradient where theirs has less.
    """
    tolerance = TOLERANCE * max(scale, theirs.norm)
    return ours.leaves == theirs.leaves and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=tolerance)
        for a, b in ((ours.loss, theirs.loss), (ours.norm, theirs.norm))
    )
