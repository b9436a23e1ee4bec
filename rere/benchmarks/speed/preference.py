"""One step of S-DPO: the project's trainer against expanded batches.

Both sides score a row's target and its random negatives under the policy and a reference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from rere.benchmarks.models import SCORINGS, BenchmarkModel, PromptRow
from rere.benchmarks.speed import steps
from rere.benchmarks.speed.scoring import EXPANDED, Group, score_expanded
from rere.benchmarks.timing import split_batches, time_at_best_size
from rere.config.training import PreferenceOptions
from rere.training.preference import PreferenceTrainer, margins, random_leaves, s_dpo_loss

STEP = "S-DPO step"
ROWS = 8
OPTIONS = PreferenceOptions(algorithm="s_dpo", batch_size=ROWS, rows_per_pass=ROWS)


def benchmark_preference(
    model: BenchmarkModel, rows: Sequence[PromptRow], sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows, one per scoring, each side with its best rows per pass of `sizes`."""
    reference = steps.make_reference(model)
    batches = split_batches(rows, ROWS)
    middle, label = batches[len(batches) // 2], f"speed: {model.name}, {STEP}"
    with TemporaryDirectory() as folder:
        calls = make_steps(model, reference, Path(folder))
        best, timed = time_at_best_size(calls, sizes, middle, batches, label)
    theirs, size = timed[EXPANDED], f"{ROWS} rows x {1 + OPTIONS.num_negatives} candidates"
    for scoring in SCORINGS:
        rows_per_pass = f"{best[scoring]} rows a pass (theirs {best[EXPANDED]})"
        setting = model.describe(size, scoring, rows_per_pass)
        yield steps.compare_steps(STEP, EXPANDED, setting, scoring, timed[scoring], theirs)


def make_steps(model: BenchmarkModel, reference: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Return the step of each side as a function of rows per pass and a batch."""
    calls = {}
    for scoring in SCORINGS:
        options = OPTIONS.model_copy(update={"scoring": scoring})
        trainer = steps.make_trainer(
            PreferenceTrainer, model, options, ROWS, folder, tree=model.host_tree
        )
        trainer.reference.model = reference
        calls[scoring] = partial(steps.take_trainer_step, trainer)
    optimizer = steps.make_optimizer(model.float32)
    reference_model = replace(model, models={"float32": reference})
    calls[EXPANDED] = partial(take_plain_step, model, reference_model, optimizer)
    return calls


def take_plain_step(
    model: BenchmarkModel,
    reference: BenchmarkModel,
    optimizer: torch.optim.Optimizer,
    rows_per_pass: int,
    batch: Sequence[PromptRow],
) -> steps.StepResult:
    target = model.host_tree.leaf_of_item[[row.target for row in batch]]
    row_ids, size = [row.row_id for row in batch], len(batch)
    negative = random_leaves(model.host_tree, 0, row_ids, target, OPTIONS.num_negatives)
    leaves = torch.cat([target[:, None], negative], dim=1).tolist()
    groups = [Group(row.prompt, group) for row, group in zip(batch, leaves, strict=True)]
    optimizer.zero_grad()
    total = 0.0
    for part in split_batches(groups, rows_per_pass):
        with torch.no_grad():
            reference_scores = score_expanded(reference, part, "vocabulary")
        scores = score_expanded(model, part, "vocabulary")
        margin = margins(scores, reference_scores, OPTIONS.beta, torch.ones_like(scores).bool())
        loss = s_dpo_loss(margin).sum() / size
        loss.backward()
        total += loss.item()
    norm = steps.update_weights(model.float32, optimizer, OPTIONS.max_grad_norm)
    return steps.StepResult(total, norm)
