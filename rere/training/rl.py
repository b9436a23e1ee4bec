"""ReRe: reinforcement learning with constrained beam rollouts.

One step: roll out (beam search over the catalogue), reward (rule and ranking), advantage (GRPO),
objective (policy gradient and KL). Every candidate of a group is a valid, distinct item.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from rere.backbones import load_model
from rere.catalogue import Catalogue, PrefixTree
from rere.config import RlOptions
from rere.data.splits import read_items
from rere.engine.beam import Beams, beam_search
from rere.engine.leaves import pack_leaves
from rere.engine.packing import Packed
from rere.engine.scoring import token_log_probs, token_scores
from rere.errors import InputError
from rere.evaluation.metrics import METRICS, gains, target_ranks
from rere.prompts import PromptEncoder
from rere.training import advantages, objectives
from rere.training.checkpoints import resumable
from rere.training.models import load, save
from rere.training.rewards import REWARDS
from rere.training.trainer import Trainer, encode, read_rows, training_arguments


def rl(options: RlOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Train the model in the folder `init`; writes model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split chooses the weights; the test split is never
    read. A run that was killed goes on from its last checkpoint.
    """
    with resumable(output, options, seed, [init, data]) as checkpoints:
        set_seed(seed)
        tokenizer, model = load(init, options)
        encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
        responses = encoder.responses()
        catalogue = Catalogue.build(encoder, responses)
        train = read_rows(data, "train")
        if len(train) < options.prompts:
            raise InputError(f"{data}: has {len(train)} training rows, fewer than prompts a step")

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            targets = torch.tensor([row["target"] for row in rows])
            return {"prompts": encode(encoder, rows, seed), "target": targets}

        trainer = RlTrainer(
            tree=catalogue.tree,
            options=options,
            checkpoints=checkpoints,
            label="rl",
            model=model,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=read_rows(data, "valid", options.valid_rows),
            args=training_arguments(
                options,
                seed,
                checkpoints.folder,
                options.steps,
                options.prompts,
                metric_for_best_model="eval_ndcg@10",
                greater_is_better=True,
            ),
        )
        trainer.train(resume_from_checkpoint=checkpoints.latest)
        save(model, encoder, catalogue, output / "model")


class RlTrainer(Trainer):
    """The update of ReRe. B prompts a step, G candidates each, N candidate tokens a row."""

    def __init__(self, tree: PrefixTree, **more: Any) -> None:
        super().__init__(**more)
        self.host_tree, self.tree = tree, tree.to(self.args.device)
        if self.options.collapse_steps is not None:
            self.add_callback(CollapseStop(self.options.collapse_steps))
        self.reference = None
        if self.options.beta > 0 and self.options.lora_rank is None:
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Roll out, reward, advantage, objective: the gradient of a step, and its loss.

        In eval mode, since what is updated is the policy that was searched, without dropout: its
        ratio to itself is 1, and its KL to where it started 0.
        """
        self.started = time.perf_counter()
        options, prompts = self.options, inputs["prompts"]
        model.eval()
        self.move_reference()

        # Roll out: groups of leaves of the tree, -1 where the catalogue has fewer than G.
        leaf, sequence = self.roll_out(prompts)  # (B, G), and their log-probabilities
        exists = leaf >= 0

        # Reward: a hit is a candidate with the target's title, hence with its leaf.
        hit = leaf == self.tree.leaf_of_item[inputs["target"]][:, None]
        rewards = {name: REWARDS[name](hit, sequence) for name in options.reward}
        reward = torch.stack([*rewards.values()]).sum(0)

        # Advantage: how much better than its group a candidate did.
        advantage = advantages.grpo(reward, exists)
        silent = advantages.silent(advantage)

        # Objective: a mean over all candidates of the step, pass after pass.
        count = exists.sum()
        beta, passes = options.beta, self.passes(silent.tolist())
        if not passes:
            beta, passes = 0.0, [[0]]  # its gradient is 0: the optimiser steps all the same
        loss, kl_sum, entropy_sum, tokens = torch.zeros(4, device=leaf.device)
        leaf_on_host = leaf.cpu()
        for rows in passes:
            packed = pack_leaves(
                [prompts[row] for row in rows], leaf_on_host[rows], self.host_tree, options.scoring
            ).to(leaf.device)
            with self.autocast():
                log_prob, entropy = token_scores(model, packed)  # (B, N)
                kl = None
                if beta > 0:
                    kl = objectives.k3(log_prob, self.reference_log_probs(packed))
                    kl_sum += kl.detach().sum()
                part = objectives.grpo(log_prob, advantage[rows], kl, beta, packed, count)
            self.accelerator.backward(part)
            loss += part.detach()
            entropy_sum += entropy.sum()
            tokens += (packed.candidate < packed.num_candidates).sum()

        self.record(
            reward=reward.sum(-1).mean(),
            **{f"reward_{name}": part.sum(-1).mean() for name, part in rewards.items()},
            hit_rate=hit.any(-1).float().mean(),
            distinct=num_distinct(leaf).float().mean(),
            **({"kl": kl_sum / tokens} if options.beta > 0 else {}),
            entropy=entropy_sum / tokens,
            skipped=reward.new_tensor(1 - sum(map(len, passes)) / len(prompts)),
            candidates=count,
        )
        return loss

    def roll_out(self, prompts: list[list[int]]) -> Beams:
        """The best G leaves for each prompt and their log-probabilities, both (B, G)."""
        rows, model = self.options.rows_per_pass, self.language_model
        with self.autocast():
            found = [
                beam_search(
                    model,
                    self.tree,
                    prompts[start : start + rows],
                    self.options.group_size,
                    self.options.scoring,
                )
                for start in range(0, len(prompts), rows)
            ]
        return Beams(*map(torch.cat, zip(*found, strict=True)))

    def passes(self, silent: list[bool]) -> list[list[int]]:
        """The rows of each pass of an update.

        Rows that teach and rows that do not share no pass where the latter may be left out: the
        arithmetic of the former is then the same with them and without.
        """
        options, rows = self.options, range(len(silent))
        exact = options.beta == 0
        if not exact and options.skip_silent != "approximate":
            blocks = [list(rows)]
        else:
            blocks = [[row for row in rows if silent[row] == which] for which in (False, True)]
            if options.skip_silent != "never":
                blocks.pop()
        size = options.rows_per_pass
        return [block[i : i + size] for block in blocks for i in range(0, len(block), size)]

    # ------------------------------------------------------------------------------- reference

    @torch.no_grad()
    def reference_log_probs(self, packed: Packed) -> Tensor:
        """The reference's log-probabilities (B, N): of its own weights, or without adapters."""
        if self.reference is not None:
            return token_log_probs(self.reference, packed)
        policy = self.accelerator.unwrap_model(self.model)
        with policy.disable_adapter():
            return token_log_probs(policy, packed)

    @torch.no_grad()
    def move_reference(self) -> None:
        """Every `sync_interval` steps: reference = mix * policy + (1 - mix) * reference.

        TR-DPO, Gorbatovski et al. 2024 (arXiv 2404.09656), the soft update.
        """
        step, interval = self.state.global_step, self.options.sync_interval
        if interval is None or step == 0 or step % interval:
            return
        for ours, policy in zip(
            self.reference.parameters(), self.language_model.parameters(), strict=True
        ):
            ours.lerp_(policy, self.options.sync_mix)

    def save_more(self, folder: Path) -> None:
        if self.options.sync_interval is not None:
            self.reference.save_pretrained(folder / "reference")

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.options.sync_interval is not None:
            moved = load_model(Path(resume_from_checkpoint) / "reference")
            self.reference.load_state_dict(moved.state_dict())

    # ---------------------------------------------------------------------- log and validation

    def step_values(self) -> dict[str, float]:
        values = super().step_values()
        seconds = time.perf_counter() - self.started
        return values | {"candidates_per_second": values.pop("candidates") / seconds}

    def validate(self) -> dict[str, float]:
        """NDCG@10 of the rollout's own search on the validation sample."""
        ranked, targets = [], []
        for inputs in self.get_eval_dataloader():
            leaf, _ = self.roll_out(inputs["prompts"])
            pair = (leaf, self.tree.leaf_of_item[inputs["target"]])
            leaf, target = self.accelerator.gather_for_metrics(pair)
            ranked.append(leaf.cpu())
            targets.append(target.cpu())
        ranks = target_ranks(torch.cat(ranked).numpy(), torch.cat(targets).numpy())
        values = gains(ranks).mean(axis=0)
        return {"ndcg@10": float(values[METRICS.index("NDCG@10")])}


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


def num_distinct(leaf: Tensor) -> Tensor:
    """How many different leaves each group holds, (B, G) -> (B,); -1 is none."""
    leaf = leaf.sort(-1).values
    new = leaf[:, 1:] != leaf[:, :-1]
    return (leaf[:, 0] >= 0) + (new & (leaf[:, 1:] >= 0)).sum(-1)
