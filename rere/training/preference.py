"""Preference optimisation: DPO, S-DPO and SPRec in one trainer.

A row has one target and some negatives, all titles of the catalogue. They share one prompt, and the
loss compares their log-probabilities under the policy and the reference, the initial model.

`dpo` and `s_dpo` sample a row's negatives uniformly from the other titles, once for the whole run,
as S-DPO does.

`sprec` (Gao et al. 2024, arXiv 2412.09243) alternates, in iterations, steps of SFT on new rows with
as many steps of DPO on the same rows. The negative is the model's own best recommendation that is
not the target, found by constrained beam search with the model after the iteration's SFT, which is
also the reference. The released code has the same reference, but generates its negatives greedily,
without a catalogue, before the SFT. It also restarts the learning-rate schedule in every phase;
here one schedule spans the run.

The model is in eval mode: without dropout, equal policy and reference have equal probabilities.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from rere.config.training import PreferenceOptions
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.beam import beam_search
from rere.errors import InputError, out_of_memory
from rere.prefix_tree import PrefixTree
from rere.training.checkpoints import resumable
from rere.training.reference import Reference
from rere.training.setup import choose_precision, data_files, load_setup, memory_remedy
from rere.training.sharding import unsharded
from rere.training.trainer import Trainer, training_arguments
from rere.training.validation import SELECTION_METRIC, validate_ndcg


def preference(options: PreferenceOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Train the model in the folder `init`; write model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split selects the checkpoint, perhaps the initial
    model; of the test split only the lengths of prompts are read. A killed run resumes from its
    last checkpoint. Raises InputError for fewer training rows than a step takes, and for fewer
    titles than candidates per row.
    """
    options, remedy = choose_precision(options), memory_remedy(options)
    inputs = [init, *data_files(data)]
    with resumable(output, options, seed, inputs) as checkpoints, out_of_memory(remedy):
        setup = load_setup(options, init, data, seed, min_rows=options.batch_size)
        if (titles := len(setup.catalogue.tree.leaf_items)) <= options.num_negatives:
            raise InputError(
                f"{data}: has {titles} titles, too few for a target and "
                f"{options.num_negatives} negatives; lower negatives"
            )
        trainer = PreferenceTrainer(
            tree=setup.catalogue.tree,
            options=options,
            checkpoints=checkpoints,
            label="preference",
            model=setup.model,
            data_collator=setup.collate,
            train_dataset=setup.train,
            eval_dataset=setup.valid,
            args=training_arguments(
                options,
                seed,
                checkpoints.folder,
                options.num_steps(len(setup.train)),
                options.batch_size,
                metric_for_best_model=f"eval_{SELECTION_METRIC}",
                greater_is_better=True,
            ),
        )
        with checkpoints.signals:
            trainer.train(resume_from_checkpoint=checkpoints.latest)
            setup.save(output / "model", trainer)


class PreferenceTrainer(Trainer):
    """Takes steps of DPO, S-DPO or SPRec: find negatives, compare the target's title with them.

    B rows per forward pass, 1 + N candidates per row, the target first.
    """

    options: PreferenceOptions
    reference: Reference

    def __init__(self, tree: PrefixTree, **more: Any) -> None:
        options: PreferenceOptions = more["options"]
        self.is_self_play = options.algorithm == "sprec"
        reference = Reference(more["model"], self.is_self_play, options.dtype)
        super().__init__(reference=reference, **more)
        self.host_tree, self.tree = tree, tree.to(self.args.device)
        self.sizes = self.choose_sizes()

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add the gradient of a step; return its loss, a mean over its rows."""
        model.eval()
        if self.is_self_play:
            phase, step = divmod(self.state.global_step, self.options.steps_per_phase)
            if phase % 2 == 0:
                return self.sft_step(model, inputs)
            if step == 0:
                self.reference.sync(self.language_model)
        return self.preference_step(model, inputs)

    def preference_step(self, model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        """A step of S-DPO, or DPO with one negative: add the gradient; return the loss."""
        options, num_rows = self.options, len(inputs["prompts"])
        sums = torch.zeros(3, device=self.args.device)
        for rows, weight in self.split_into_passes(range(num_rows)):
            prompts, row_ids = ([inputs[n][row] for row in rows] for n in ("prompts", "row_id"))
            target = self.tree.leaf_of_item[inputs["target"][rows]][:, None]
            negative = self.find_negatives(prompts, row_ids, target)
            leaf = torch.cat([target, negative], dim=1)  # (rows of the pass, 1 + N)
            packed = pack_leaves(prompts, leaf.cpu(), self.host_tree, options.scoring)
            packed = packed.to(leaf.device)
            with self.autocast():
                reference = self.reference.log_probs(packed)
                log_prob = token_log_probs(model, packed)
                margin = margins(
                    sum_by_candidate(log_prob, packed),
                    sum_by_candidate(reference, packed),
                    options.beta,
                    leaf >= 0,
                )
                loss = s_dpo_loss(margin).sum() / num_rows * weight
            self.accelerator.backward(loss)
            smallest = margin.detach().amin(-1)  # over the row's negatives
            sums += torch.stack(
                [loss.detach(), smallest.sum() * weight, (smallest > 0).sum() * weight]
            )
        self.ranks.sum_gradients(model.parameters())
        sums = self.ranks.sum(sums)
        self.record_metrics(margin=sums[1] / num_rows, accuracy=sums[2] / num_rows)
        return sums[0]

    def sft_step(self, model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        """A step of SFT: add the gradient; return minus the targets' mean token log-probability."""
        prompts, scoring = inputs["prompts"], self.options.scoring
        target = self.host_tree.leaf_of_item[inputs["target"].cpu()][:, None]
        batches = [
            (pack_leaves([prompts[r] for r in rows], target[rows], self.host_tree, scoring), weight)
            for rows, weight in self.split_into_passes(range(len(prompts)))
        ]
        counts = [(each.candidate < each.num_candidates).sum() * w for each, w in batches]
        count = int(self.ranks.sum(sum(counts, torch.zeros(()))))
        total = torch.zeros((), device=self.args.device)
        for packed, weight in batches:
            with self.autocast():
                log_prob = token_log_probs(model, packed.to(total.device))
                loss = -log_prob.sum() / count * weight
            self.accelerator.backward(loss)
            total += loss.detach()
        self.ranks.sum_gradients(model.parameters())
        return self.ranks.sum(total)

    @torch.no_grad()
    def find_negatives(
        self, prompts: list[list[int]], row_ids: list[int], target: Tensor
    ) -> Tensor:
        """Leaves (B, N) other than the `target` (B, 1); -1 where the search found too few."""
        options, count = self.options, self.options.num_negatives
        if not self.is_self_play:
            host_target, seed = target[:, 0].cpu(), self.args.seed
            leaf = random_leaves(self.host_tree, seed, row_ids, host_target, count)
            return leaf.to(target.device)
        with self.autocast(), unsharded(self.reference.model):
            leaf, _ = beam_search(
                self.reference.model,
                self.tree,
                prompts,
                options.num_beams,
                options.scoring,
                sizes=self.sizes,
            )
        return best_except(leaf, target, count)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if not self.is_self_play:
            sampler: Sampler[int] = super()._get_train_sampler(train_dataset)
            return sampler
        options = self.options
        rows_per_phase = options.steps_per_phase * options.batch_size
        iterations = options.num_iterations
        return SprecSampler(len(self.train_dataset), rows_per_phase, iterations, self.args.seed)

    def validate(self) -> dict[str, float]:
        options = self.options
        return validate_ndcg(self, self.tree, options.num_beams, options.scoring, self.sizes)


def margins(log_prob: Tensor, reference: Tensor, beta: float, exists: Tensor) -> Tensor:
    """beta (r_target - r_n) of each negative n, with r = log_prob - reference; (B, N).

    log_prob and reference (B, 1 + N) are sums over a candidate's tokens; exists (B, 1 + N) bool.
    Infinite for a missing negative, which adds nothing to the loss.
    """
    ratio = log_prob - reference
    return (beta * (ratio[:, :1] - ratio[:, 1:])).masked_fill(~exists[:, 1:], torch.inf)


def s_dpo_loss(margin: Tensor) -> Tensor:
    """-log sigmoid(-log sum_n exp(-margin_n)) of each row: margin (B, N) -> (B,).

    Every row needs a negative. Chen et al. 2024 (arXiv 2406.09215), equation 12. With one negative
    it is -log sigmoid(margin), the loss of DPO: Rafailov et al. 2023 (arXiv 2305.18290),
    equation 7.
    """
    return -logsigmoid(-(-margin).logsumexp(-1))


class SprecSampler(Sampler[int]):
    """The rows of a whole SPRec run: each iteration's rows twice, for SFT and for DPO.

    An iteration takes the next rows of the shuffled split; after its end the split is shuffled
    again.
    """

    def __init__(self, num_rows: int, rows_per_phase: int, iterations: int, seed: int) -> None:
        self.num_rows, self.rows_per_phase = num_rows, rows_per_phase
        self.iterations, self.seed = iterations, seed

    def __len__(self) -> int:
        return 2 * self.iterations * self.rows_per_phase

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        needed = self.iterations * self.rows_per_phase
        epochs = math.ceil(needed / self.num_rows)
        order = [torch.randperm(self.num_rows, generator=generator) for _ in range(epochs)]
        rows = torch.cat(order)[:needed].view(self.iterations, 1, self.rows_per_phase)
        return iter(rows.expand(-1, 2, -1).flatten().tolist())


def random_leaves(
    tree: PrefixTree, seed: int, row_ids: Sequence[int], target: Tensor, count: int
) -> Tensor:
    """`count` distinct leaves per row, uniform over all but its `target` (B,); (B, count) i64.

    They depend only on the seed and the row's id. `tree` and `target` are on the CPU.
    """
    leaves = (tree.fanout == 0).nonzero()[:, 0]
    samples = [
        np.random.default_rng([seed, row_id]).choice(len(leaves) - 1, count, replace=False)
        for row_id in row_ids
    ]
    index = torch.from_numpy(np.stack(samples))
    target_index = torch.searchsorted(leaves, target)[:, None]
    return leaves[index + (index >= target_index)]  # skips the target


def best_except(leaf: Tensor, target: Tensor, count: int) -> Tensor:
    """The first `count` of the ranked leaves (B, K) other than `target` (B, 1); (B, count)."""
    order = (leaf == target).int().argsort(dim=-1, stable=True)
    return leaf.gather(1, order)[:, :count]
