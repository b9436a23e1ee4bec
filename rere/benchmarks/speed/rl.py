"""One step of RL, from rollout to weights: the project's trainer against a plain step.

The plain step searches with `generate` and trains on expanded batches. Rewards, advantages, loss,
clipping and optimiser are the same.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.benchmarks.models import GENERATE, SCORINGS, BenchmarkModel, PromptRow
from rere.benchmarks.plain import training as plain
from rere.benchmarks.speed import steps
from rere.benchmarks.timing import (
    call_in_batches,
    find_fastest,
    split_batches,
    time_in_turn,
)
from rere.config.rl import RlOptions
from rere.engine.search.beam import beam_search
from rere.training import advantages, rewards
from rere.training.groups import RewardedGroups, Rollouts
from rere.training.rl import RlTrainer

STEP = "RL step"
PLAIN = "plain step"
PROMPTS, GROUP_SIZE, MAX_GRAD_NORM = 4, 16, 0.3
BETAS = (1e-3, 0.0)
"""The paper's weight of the KL, and none."""
REWARDS = ("rule", "ranking")
HIT_EVERY = 8
"""One prompt in this many has its target among the candidates, about as after SFT."""


class RecordingRollouts(Rollouts):
    """Rollouts that keep the last groups, whose candidates are compared."""

    def __call__(self, *arguments: Any) -> RewardedGroups:
        self.last = super().__call__(*arguments)
        return self.last


def benchmark_rl(
    model: BenchmarkModel, rows: Sequence[PromptRow], generate_size: int, sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows: with a reference, then without, one per scoring.

    Each side takes its best rows per pass. Without a reference ours skips zero-advantage groups.
    """
    batches = split_batches(with_targets(model, rows), PROMPTS)
    middle, label = batches[len(batches) // 2], f"speed: {model.name}, {STEP}"
    with TemporaryDirectory() as folder:
        calls = make_steps(model, Path(folder), BETAS)
        choices = list(dict.fromkeys([*sizes, PROMPTS]))
        best = {
            scoring: find_fastest(calls[scoring, BETAS[0]], choices, middle, label)
            for scoring in SCORINGS
        }
        # Half a group, too: with a large model the activations of a whole group may exceed what the
        # allocator keeps between passes, and allocating them anew took 15 % of such a pass.
        trained = (GROUP_SIZE // 2, *(GROUP_SIZE * size for size in sizes))
        choices = [(min(PROMPTS, generate_size), size) for size in trained]
        best[PLAIN] = find_fastest(calls[PLAIN, BETAS[0]], choices, middle[: max(sizes)], label)
        chosen = {(side, beta): partial(call, best[side]) for (side, beta), call in calls.items()}
        timed = time_in_turn(chosen, batches, label, warm_up_each=True)
    hit_rate = math.ceil(len(rows) / HIT_EVERY) / len(rows)
    for beta, side in itertools.product(BETAS, SCORINGS):
        setting = model.describe(
            f"{PROMPTS} prompts x {GROUP_SIZE} candidates",
            side,
            "with reference" if beta else f"zero-advantage groups skipped, hit rate {hit_rate:.3g}",
            f"{best[side]} prompts a pass (theirs {best[PLAIN][0]} a search, "
            f"{best[PLAIN][1]} sequences a training pass)",
        )
        ours, theirs = timed[side, beta], timed[PLAIN, beta]
        yield steps.compare_steps(STEP, PLAIN, setting, side, ours, theirs)


def make_steps(
    model: BenchmarkModel, folder: Path, betas: Sequence[float]
) -> dict[tuple[str, float], Any]:
    """Return the step of each side and beta, a function of its sizes and a batch."""
    reference, optimizer = steps.make_reference(model), steps.make_optimizer(model.float32)
    calls = {}
    for beta in betas:
        for scoring in SCORINGS:
            options = RlOptions(
                prompts=PROMPTS,
                rows_per_pass=PROMPTS,
                group_size=GROUP_SIZE,
                scoring=scoring,
                reward=list(REWARDS),
                beta=beta,
                max_grad_norm=MAX_GRAD_NORM,
                dtype=model.dtype,
            )
            components = {name: rewards.make_reward(name) for name in REWARDS}
            rollouts = RecordingRollouts(options, 0, model.host_tree, components, model.device)
            trainer = steps.make_trainer(
                RlTrainer,
                model,
                options,
                PROMPTS,
                folder,
                rollouts=rollouts,
                optimizers=(optimizer, None),
            )
            if beta:
                trainer.reference.model = reference
            calls[scoring, beta] = partial(take_rl_step, trainer)
        calls[PLAIN, beta] = partial(
            take_plain_step, model, reference if beta else None, optimizer, beta
        )
    return calls


def take_rl_step(
    trainer: RlTrainer, rows_per_pass: int, batch: Sequence[PromptRow]
) -> steps.StepResult:
    rollouts = trainer.rollouts
    rollouts.options = rollouts.options.model_copy(update={"rows_per_pass": rows_per_pass})
    result = steps.take_trainer_step(trainer, rows_per_pass, batch)
    return result._replace(leaves=rollouts.last.leaf.tolist())


def take_plain_step(
    model: BenchmarkModel,
    reference: PreTrainedModel | None,
    optimizer: torch.optim.Optimizer,
    beta: float,
    sizes: tuple[int, int],
    batch: Sequence[PromptRow],
) -> steps.StepResult:
    """Take a step with `sizes`: prompts per search, and sequences per training pass."""
    prompts_per_search, sequences_per_pass = sizes
    prompts = [row.prompt for row in batch]
    search = partial(model.search, GENERATE._replace(dtype=model.dtype), GROUP_SIZE)
    leaves = model.to_leaves(call_in_batches(search, prompts_per_search, prompts))
    targets = model.tree.leaf_of_item[[row.target for row in batch]].tolist()
    advantage = compute_advantage(leaves, targets).flatten()
    sequences = plain.expand(model, prompts, leaves)
    optimizer.zero_grad()
    loss = plain.backward_grpo(model, reference, sequences, advantage, beta, sequences_per_pass)
    norm = steps.update_weights(model.float32, optimizer, MAX_GRAD_NORM)
    return steps.StepResult(loss, norm, leaves)


def compute_advantage(leaves: list[list[int]], targets: Sequence[int]) -> Tensor:
    """Return the advantages (B, G) of ranked candidates under REWARDS."""
    leaf = torch.tensor(leaves)
    hit = leaf == torch.tensor(targets)[:, None]
    falling = -torch.arange(leaf.shape[1]).expand_as(leaf).float()
    reward = rewards.rule(hit, falling) + rewards.ranking(hit, falling)
    return advantages.grpo(reward, torch.ones_like(hit))


def with_targets(model: BenchmarkModel, rows: Sequence[PromptRow]) -> list[PromptRow]:
    """Return the rows, one in HIT_EVERY with a target in the middle of its candidates.

    The other targets are not among the candidates, so that every model has the same hits.
    """
    prompts, leaf_of_item = [row.prompt for row in rows], model.tree.leaf_of_item.tolist()
    leaves = beam_search(model.float32, model.tree, prompts, GROUP_SIZE).leaf.tolist()
    chosen = []
    for number, (row, found) in enumerate(zip(rows, leaves, strict=True)):
        if number % HIT_EVERY == 0:
            target = leaf_of_item.index(found[GROUP_SIZE // 2])
        else:
            target = next(item for item, leaf in enumerate(leaf_of_item) if leaf not in found)
        chosen.append(row._replace(target=target))
    return chosen
