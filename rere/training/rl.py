"""Reinforcement learning for recommenders: ReRe and the methods it is compared with.

A step rolls out candidates, rewards them, computes advantages and minimises an objective. Each part
is a named option. ReRe's are constrained beam search, rule and ranking rewards, GRPO's advantage,
and GRPO's objective with a KL to the reference model.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.config.rl import RlOptions
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import token_scores
from rere.engine.search.noise import row_seeds
from rere.errors import out_of_memory
from rere.training.advantages import ADVANTAGES, has_zero_advantage
from rere.training.callbacks import CollapseStop
from rere.training.checkpoints import resumable
from rere.training.groups import RewardedGroups, Rollouts, dynamic_sampling
from rere.training.objectives import KL, OBJECTIVES, is_linear, policy_loss
from rere.training.reference import Reference
from rere.training.rewards import make_rewards, own_reward_files
from rere.training.setup import choose_precision, data_files, load_setup, memory_remedy
from rere.training.sharding import unsharded
from rere.training.trainer import Trainer, training_arguments
from rere.training.validation import SELECTION_METRIC, validate_ndcg


def rl(
    options: RlOptions,
    init: Path,
    data: Path,
    seed: int,
    output: Path,
    factors: Path | None = None,
) -> None:
    """Train the model in the folder `init`; write model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split selects the checkpoint, perhaps the initial
    model; of the test split only the lengths of prompts are read. The collaborative reward needs
    the file `factors`. A killed run resumes from its last checkpoint.
    """
    embeddings = Path(options.embeddings) if options.embeddings else None
    inputs = [
        init,
        *data_files(data),
        *filter(None, [factors, embeddings]),
        *own_reward_files(options),
    ]
    options, remedy = choose_precision(options), memory_remedy(options)
    with resumable(output, options, seed, inputs) as checkpoints, out_of_memory(remedy):
        setup = load_setup(options, init, data, seed, min_rows=options.prompts)
        args = training_arguments(
            options,
            seed,
            checkpoints.folder,
            options.num_steps(len(setup.train)),
            options.prompts,
            metric_for_best_model=f"eval_{SELECTION_METRIC}",
            greater_is_better=True,
        )
        rewards = make_rewards(options, setup.encoder.titles, data, factors, args.device)
        trainer = RlTrainer(
            rollouts=Rollouts(options, seed, setup.catalogue.tree, rewards, args.device),
            options=options,
            checkpoints=checkpoints,
            label="rl",
            model=setup.model,
            data_collator=setup.collate,
            train_dataset=setup.train,
            eval_dataset=setup.valid,
            args=args,
        )
        with checkpoints.signals:
            trainer.train(resume_from_checkpoint=checkpoints.latest)
            setup.save(output / "model", trainer)


@dataclass
class UpdatePass:
    """Some groups of a step, for one forward and backward pass; the first update fills it in."""

    rows: list[int]
    weight: float = 1.0  # of their loss
    packed: PackedBatch | None = None
    reference: Tensor | None = None  # (B, N), log-probabilities under the reference, for the KL
    old: Tensor | None = None  # (B, N), under the policy that rolled out; None in the first update


class RlTrainer(Trainer):
    """Takes RL steps: roll out groups of candidates, reward them, update the policy.

    B prompts per step, G candidates per prompt, N candidate tokens per prompt.
    """

    options: RlOptions

    def __init__(self, rollouts: Rollouts, **more: Any) -> None:
        options: RlOptions = more["options"]
        if options.beta > 0:
            is_synced = options.sync_interval is not None
            more["reference"] = Reference(
                more["model"], is_synced, options.dtype, options.temperature
            )
        super().__init__(**more)
        self.rollouts = rollouts
        self.objective = OBJECTIVES[options.objective]
        if options.clip is not None:
            low, high = options.clip
            self.objective = self.objective._replace(clip=(low, high))
        self.add_callback(CollapseStop(options.collapse_steps))
        self.sizes = self.choose_sizes()

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run a step up to its last gradient; return the mean loss of its updates.

        The model is in eval mode: without dropout, the policy that is updated is the one that
        rolled out. Its first ratio is 1, and the KL to an equal reference is 0.
        """
        self.started = time.perf_counter()
        options = self.options
        model.eval()
        self.sync_reference()

        # Roll out and reward; dynamic sampling replaces some groups.
        initial = groups = self.roll_out(inputs)  # of all ranks
        extra_prompts = 0
        if options.dynamic_sampling:
            groups, extra_prompts = dynamic_sampling(
                initial, self.roll_out_extra(inputs["row_id"]), self.is_zero_advantage
            )

        # Advantage: (B, G).
        advantage = ADVANTAGES[options.advantage](groups.reward, groups.exists)

        # Objective: a mean over the whole step, summed over passes. The Trainer takes the
        # optimiser step of the last update.
        length = self.rollouts.num_scored(groups)
        count = self.objective.divisor(length, self.rollouts.max_scored).clamp(min=1)
        is_zero = has_zero_advantage(advantage).tolist()
        blocks, beta = self.plan_blocks(is_zero), options.beta
        skipped = 1 - sum(map(len, blocks)) / len(groups.prompts)
        passes = [UpdatePass(*each) for block in blocks for each in self.split_into_passes(block)]
        if not any(blocks):
            passes, beta = [UpdatePass([0])], 0.0  # a zero gradient, so that the optimiser steps
        pack, sums = self.rollouts.packer(groups), torch.zeros(5, device=length.device)
        for update in range(options.updates):
            if update > 0:
                self.step_optimizer(model)
            sums += self.update(model, passes, pack, advantage, beta, count)

        self.record_metrics(
            **initial.metrics(self.rollouts.rewards),  # before any group was replaced
            **self.update_metrics(sums),
            zero_advantage=sums.new_tensor(sum(is_zero) / len(is_zero)),
            skipped=sums.new_tensor(skipped),
            extra_prompts=sums.new_tensor(extra_prompts) if options.dynamic_sampling else None,
            candidates=initial.exists.sum() * (1 + extra_prompts / len(groups.prompts)),
        )
        return sums[0] / options.updates

    def update(
        self,
        model: PreTrainedModel,
        passes: list[UpdatePass],
        pack: Callable[[list[int]], PackedBatch],
        advantage: Tensor,
        beta: float,
        count: Tensor,
    ) -> Tensor:
        """Add the gradient of one update, in the passes of this rank.

        Returns sums (5,) of all ranks: loss, KL, tokens where k3 is linear, entropy, tokens.
        """
        options, sums = self.options, torch.zeros(5, device=advantage.device)
        for each in passes:
            if each.packed is None:
                each.packed = pack(each.rows).to(advantage.device)
                if self.reference is not None and beta > 0:
                    with self.autocast():
                        each.reference = self.reference.log_probs(each.packed)
            with self.autocast():
                log_prob, entropy = token_scores(model, each.packed, options.temperature)  # (B, N)
                kl = None if each.reference is None else KL[options.kl](log_prob, each.reference)
                loss = each.weight * policy_loss(
                    self.objective,
                    log_prob,
                    each.old,
                    advantage[each.rows],
                    None if kl is None else beta * kl,
                    each.packed,
                    count,
                )
            self.accelerator.backward(loss)
            if each.old is None and options.updates > 1:
                each.old = log_prob.detach()
            kl_sums = entropy.new_zeros(2)
            if kl is not None and each.reference is not None:
                linear = is_linear(log_prob.detach(), each.reference)
                kl_sums = torch.stack([kl.detach().sum(), linear.sum()])
            tokens = (each.packed.candidate < each.packed.num_candidates).sum()
            sums += each.weight * torch.stack([loss.detach(), *kl_sums, entropy.sum(), tokens])
        self.ranks.sum_gradients(model.parameters())
        return self.ranks.sum(sums)

    def update_metrics(self, sums: Tensor) -> dict[str, Tensor | None]:
        """Scalars for the step's line in the log, given the sums (5,) of its updates."""
        _, kl, kl_linear, entropy, tokens = sums.unbind()
        has_kl = self.options.beta > 0
        return {
            "kl": kl / tokens if has_kl else None,
            "kl_linear": kl_linear if has_kl and self.options.kl == "k3" else None,
            "entropy": entropy / tokens,
        }

    def plan_blocks(self, is_zero: list[bool]) -> list[list[int]]:
        """The groups of an update, in blocks that share no pass.

        Groups that may be skipped are a block of their own, so skipping them does not change the
        arithmetic of the others.
        """
        options, rows = self.options, range(len(is_zero))
        # With a KL no group is skipped, unless its KL may be left out.
        if options.beta > 0 and options.skip_zero_advantage != "approximate":
            return [list(rows)]
        blocks = [[row for row in rows if is_zero[row] == which] for which in (False, True)]
        return blocks if options.skip_zero_advantage == "never" else blocks[:1]

    def step_optimizer(self, model: PreTrainedModel) -> None:
        """The optimiser step of an update that is not the last of its rollout."""
        self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        model.zero_grad()

    def roll_out(self, inputs: dict[str, Any]) -> RewardedGroups:
        """The groups of a step's prompts, of which this rank rolls out its share."""
        prompts, rows = inputs["prompts"], self.ranks.rows
        if self.ranks.rank >= len(prompts):
            rows = slice(1)  # any row, which is left out again
        own = {name: values[rows] for name, values in inputs.items()}
        with self.autocast(), unsharded(self.model):
            groups = self.rollouts(self.language_model, own, self.state.global_step, self.sizes)
        return groups.gathered(self.ranks, prompts)

    def roll_out_extra(self, row_ids: list[int]) -> Iterator[RewardedGroups]:
        """Yield up to `dynamic_sampling` batches of groups of other prompts, rolled out lazily.

        Their training rows depend only on the seed and the step.
        """
        seed = row_seeds(self.args.seed, self.state.global_step, [-1])  # -1 is the id of no row
        generator = torch.Generator().manual_seed(int(seed))
        order = torch.randperm(len(self.train_dataset), generator=generator)
        used, rows = set(row_ids), (self.train_dataset[row] for row in order.tolist())
        unused = (row for row in rows if row["row_id"] not in used)
        for _ in range(self.options.dynamic_sampling):
            if batch := list(itertools.islice(unused, self.options.prompts)):
                yield self.roll_out(self._prepare_inputs(self.data_collator(batch)))

    def is_zero_advantage(self, groups: RewardedGroups) -> list[bool]:
        """Which groups have zero advantage; for advantages that do not depend on other groups."""
        advantage = ADVANTAGES[self.options.advantage](groups.reward, groups.exists)
        return has_zero_advantage(advantage).tolist()

    def sync_reference(self) -> None:
        """Move the reference towards the policy every `sync_interval` steps."""
        step, interval = self.state.global_step, self.options.sync_interval
        is_due = interval is not None and step > 0 and step % interval == 0
        if self.reference is not None and is_due:
            self.reference.sync(self.language_model, self.options.sync_mix)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()  # with the limit of the run before
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CollapseStop):
                callback.limit = self.options.collapse_steps

    def read_metrics(self) -> dict[str, float]:
        metrics = super().read_metrics()
        seconds = time.perf_counter() - self.started
        return metrics | {"candidates_per_second": metrics.pop("candidates") / seconds}

    def validate(self) -> dict[str, float]:
        return validate_ndcg(
            self,
            self.rollouts.tree,
            self.options.group_size,
            self.options.scoring,
            self.sizes,
        )
