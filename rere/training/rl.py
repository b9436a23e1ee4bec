"""Reinforcement learning for recommenders: ReRe, and what it is compared with.

One step: roll out (beam search over the catalogue), reward (rule and ranking), advantage (GRPO),
objective (policy gradient and KL). Each of them is a named option; in parentheses is ReRe's.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from rere.catalogue import Catalogue
from rere.config.training import RlOptions
from rere.data.splits import read_items
from rere.engine.candidates.packing import Packed
from rere.engine.candidates.scoring import token_scores
from rere.engine.model.prompt_cache import KeptPrompts
from rere.engine.search.noise import row_seeds
from rere.errors import InputError
from rere.tokenization import PromptEncoder
from rere.training.advantages import ADVANTAGES, has_zero_advantage
from rere.training.checkpoints import resumable
from rere.training.groups import RewardedGroups, Rollouts, dynamic_sampling, slices
from rere.training.models import load, save
from rere.training.objectives import KL, OBJECTIVES
from rere.training.reference import Reference
from rere.training.rewards import make_rewards, users_sources
from rere.training.trainer import (
    Trainer,
    encode,
    read_train,
    read_valid,
    shortest_first,
    training_arguments,
)
from rere.training.validation import SELECTION, search_ndcg


def rl(
    options: RlOptions,
    init: Path,
    data: Path,
    seed: int,
    output: Path,
    factors: Path | None = None,
) -> None:
    """Train the model in the folder `init`; writes model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split chooses the weights; the test split is never
    read. The collaborative reward needs the file `factors`. A run that was killed goes on from its
    last checkpoint.
    """
    given = [factors, options.embeddings and Path(options.embeddings), *users_sources(options)]
    inputs = [init, data, *filter(None, given)]
    with resumable(output, options, seed, inputs) as checkpoints:
        set_seed(seed)
        tokenizer, model = load(init, options)
        encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
        responses = encoder.responses()
        catalogue = Catalogue.build(encoder, responses)
        train = read_train(data, options.train_part, options.prompts, "prompts a step")
        args = training_arguments(
            options,
            seed,
            checkpoints.folder,
            options.steps,
            options.prompts,
            metric_for_best_model=f"eval_{SELECTION}",
            greater_is_better=True,
        )
        rewards = make_rewards(options, encoder.titles, data, factors, args.device)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            rows = shortest_first(rows, responses)  # of a step, which is cut into passes
            return {
                "prompts": encode(encoder, rows, seed),
                "row_id": [row["row_id"] for row in rows],
                "history": [row["history"] for row in rows],
                "target": torch.tensor([row["target"] for row in rows]),
            }

        trainer = RlTrainer(
            rollouts=Rollouts(options, seed, catalogue.tree, rewards, args.device),
            options=options,
            checkpoints=checkpoints,
            label="rl",
            model=model,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=read_valid(data, options.valid_rows, responses),
            args=args,
        )
        trainer.train(resume_from_checkpoint=checkpoints.latest)
        save(model, encoder, catalogue, output / "model")


@dataclass
class Pass:
    """Some groups of a step as one forward pass takes them; filled when an update comes to it."""

    rows: list[int]
    prompts: KeptPrompts | None = None  # where the search has computed them for the first update
    packed: Packed | None = None
    reference: Tensor | None = None  # (B, N), log-probabilities of the reference, for a KL
    old: Tensor | None = None  # (B, N), those of the policy that rolled out; None while it is it


class RlTrainer(Trainer):
    """The update. B prompts a step, G candidates each, N candidate tokens a row, R rewards."""

    def __init__(self, rollouts: Rollouts, **more: Any) -> None:
        super().__init__(**more)
        self.rollouts, options = rollouts, self.options
        clip = {} if options.clip is None else {"clip": tuple(options.clip)}
        self.objective = partial(OBJECTIVES[options.objective].loss, **clip)
        if options.collapse_steps is not None:
            self.add_callback(CollapseStop(options.collapse_steps))
        self.reference = None
        if options.beta > 0:
            moves = options.sync_interval is not None
            self.reference = Reference(self.model, moves, options.temperature)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Roll out, reward, advantage, objective: the gradient of a step, and its loss.

        In eval mode, since what is updated is the policy that was searched, without dropout: its
        ratio to itself is 1, and its KL to where it started 0.
        """
        self.started = time.perf_counter()
        options = self.options
        model.eval()
        step, interval = self.state.global_step, options.sync_interval
        if interval is not None and step > 0 and step % interval == 0:
            self.reference.move(self.language_model, options.sync_mix)

        # Roll out and reward: groups of the step's prompts, some replaced.
        if self.keeps(len(inputs["prompts"])):
            inputs["prompts"] = KeptPrompts(inputs["prompts"])
        drawn = self.roll_out(inputs)
        groups, extra_prompts = dynamic_sampling(
            drawn, self.others(inputs["row_id"]), self.has_zero_advantage
        )

        # Advantage: how much better than its group, or than all groups, a candidate did.
        advantage = ADVANTAGES[options.advantage](groups.reward, groups.exists)

        # Objective: a mean over all candidates or tokens of the step, pass after pass, and again
        # for each update but the last one, which is the Trainer's.
        length = self.rollouts.lengths(groups)
        count = OBJECTIVES[options.objective].count(length, self.rollouts.longest).clamp(min=1)
        passes, beta = (
            self.passes(groups.prompts, has_zero_advantage(advantage).tolist()),
            options.beta,
        )
        skipped = 1 - sum(len(each.rows) for each in passes) / len(groups.prompts)
        if not passes:
            passes, beta = [Pass([0])], 0.0  # its gradient is 0: the optimiser steps all the same
        pack, sums = self.rollouts.packing(groups), torch.zeros(4, device=length.device)
        for update in range(options.updates):
            if update > 0:
                self.step_optimizer(model)
            sums += self.update(model, passes, pack, advantage, beta, count)
        loss, kl, entropy, tokens = sums

        self.record(
            **drawn.metrics(self.rollouts.rewards),  # of the policy, before any was replaced
            **({"kl": kl / tokens} if options.beta > 0 else {}),
            entropy=entropy / tokens,
            skipped=sums.new_tensor(skipped),
            **(
                {"extra_prompts": sums.new_tensor(extra_prompts)}
                if options.dynamic_sampling
                else {}
            ),
            candidates=drawn.exists.sum() * (1 + extra_prompts / len(groups.prompts)),
        )
        return loss / options.updates

    def update(
        self,
        model: PreTrainedModel,
        passes: list[Pass],
        pack: Callable[[list[int]], Packed],
        advantage: Tensor,
        beta: float,
        count: Tensor,
    ) -> Tensor:
        """The gradient of one update; its loss, and KL, entropy and number of tokens, (4,)."""
        options, sums = self.options, torch.zeros(4, device=advantage.device)
        for each in passes:
            if each.packed is None:
                each.packed = pack(each.rows).to(advantage.device)
                if beta > 0:
                    with self.autocast():
                        each.reference = self.reference.log_probs(
                            self.model, each.packed, each.prompts
                        )
            with self.autocast():
                log_prob, entropy = token_scores(  # (B, N)
                    model, each.packed, options.temperature, each.prompts
                )
                kl = KL[options.kl](log_prob, each.reference) if beta > 0 else None
                loss = self.objective(
                    log_prob, advantage[each.rows], kl, beta, each.packed, count, each.old
                )
            self.accelerator.backward(loss)
            each.prompts = None  # their gradient is computed, and other weights are next
            if each.old is None and options.updates > 1:
                each.old = log_prob.detach()
            kl_sum = entropy.new_zeros(()) if kl is None else kl.detach().sum()
            tokens = (each.packed.candidate < each.packed.num_candidates).sum()
            sums += torch.stack([loss.detach(), kl_sum, entropy.sum(), tokens])
        return sums

    def passes(self, prompts: list[list[int]], silent: list[bool]) -> list[Pass]:
        """The passes of an update, one where its prompts are kept.

        Rows that teach and rows that do not share no pass where the latter may be left out: the
        arithmetic of the former is then the same with them and without.
        """
        options, rows = self.options, range(len(silent))
        if self.all_share:
            blocks = [list(rows)]
        else:
            blocks = [[row for row in rows if silent[row] == which] for which in (False, True)]
            if options.skip_zero_advantage != "never":
                blocks.pop()
        size = options.rows_per_pass
        kept = prompts if isinstance(prompts, KeptPrompts) else None
        return [Pass(block[rows], kept) for block in blocks for rows in slices(len(block), size)]

    @property
    def all_share(self) -> bool:
        """Whether groups that teach something or nothing are not told apart."""
        return self.options.beta > 0 and self.options.skip_zero_advantage != "approximate"

    def keeps(self, num_prompts: int) -> bool:
        """Whether prompts are computed once, for the search and the first update.

        Not where that would hold the activations of more than a pass, or of groups that leave.
        """
        options = self.options
        in_one_pass = self.all_share and num_prompts <= options.rows_per_pass
        return in_one_pass and not options.dynamic_sampling and not options.gradient_checkpointing

    def step_optimizer(self, model: PreTrainedModel) -> None:
        """An update within a step."""
        self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        model.zero_grad()

    # --------------------------------------------------------------------------------- rollouts

    def roll_out(self, inputs: dict[str, Any]) -> RewardedGroups:
        with self.autocast():
            return self.rollouts(self.language_model, inputs, self.state.global_step)

    def others(self, row_ids: list[int]) -> Iterator[RewardedGroups]:
        """Up to `dynamic_sampling` batches of groups of other prompts, rolled out as they are asked for.

        Which training rows they are is a function of seed and step.
        """
        seed = row_seeds(self.args.seed, self.state.global_step, [-1])  # no row of its own
        generator = torch.Generator().manual_seed(int(seed))
        order = torch.randperm(len(self.train_dataset), generator=generator)
        taken, rows = set(row_ids), (self.train_dataset[row] for row in order.tolist())
        other = (row for row in rows if row["row_id"] not in taken)
        for _ in range(self.options.dynamic_sampling):
            if batch := list(itertools.islice(other, self.options.prompts)):
                yield self.roll_out(self._prepare_inputs(self.data_collator(batch)))

    def has_zero_advantage(self, groups: RewardedGroups) -> list[bool]:
        """Which groups teach nothing, where that is a group's own affair."""
        return has_zero_advantage(
            ADVANTAGES[self.options.advantage](groups.reward, groups.exists)
        ).tolist()

    # ------------------------------------------------------------- checkpoints, log, validation

    def save_more(self, folder: Path) -> None:
        if self.reference is not None:
            self.reference.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.reference is not None:
            self.reference.load(Path(resume_from_checkpoint))

    def step_values(self) -> dict[str, float]:
        values = super().step_values()
        seconds = time.perf_counter() - self.started
        return values | {"candidates_per_second": values.pop("candidates") / seconds}

    def validate(self) -> dict[str, float]:
        return search_ndcg(self, self.rollouts.tree, self.options.group_size)


class CollapseStop(TrainerCallback, ExportableState):
    """Ends a run whose groups hold one item each and no target, `limit` steps in a row."""

    def __init__(self, limit: int) -> None:
        self.limit, self.steps = limit, 0

    def on_log(self, args, state, control, logs, **_):
        if "distinct" in logs:
            collapsed = logs["hit_rate"] == 0 and logs["distinct"] <= 1
            self.steps = self.steps + 1 if collapsed else 0
            if self.steps == self.limit:
                raise InputError(
                    f"for {self.limit} steps up to {state.global_step} no group had a hit or a "
                    "second item: the policy has collapsed; lower learning_rate or raise beta"
                )

    def state(self) -> dict[str, Any]:
        return {"args": {"limit": self.limit}, "attributes": {"steps": self.steps}}
