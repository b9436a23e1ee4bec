"""ReRe: reinforcement learning with constrained beam rollouts.

One step: roll out (beam search over the catalogue), reward (rule and ranking), advantage (GRPO),
objective (policy gradient and KL). Every candidate of a group is a valid, distinct item.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from rere.catalogue import Catalogue, PrefixTree
from rere.config import RlOptions
from rere.data.splits import read_items
from rere.engine.beam import beam_search
from rere.engine.packing import pack
from rere.engine.scoring import sum_by_candidate, token_log_probs
from rere.errors import InputError
from rere.evaluation.metrics import METRICS, gains, target_ranks
from rere.prompts import PromptEncoder
from rere.training import advantages, objectives
from rere.training.checkpoints import resumable
from rere.training.rewards import total_reward
from rere.training.trainer import Trainer, encode, load, read_rows, save, training_arguments


def rl(options: RlOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Train the model in the folder `init`; writes model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split chooses the weights; the test split is never
    read. A run that was killed goes on from its last checkpoint.
    """
    with resumable(output, options, seed, [init, data]) as checkpoints:
        set_seed(seed)
        tokenizer, model = load(init)
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
            options=options,
            tree=catalogue.tree,
            responses=responses,
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
        save(model, encoder, catalogue, trainer, output)


class RlTrainer(Trainer):
    """The update of ReRe. B prompts a pass, G candidates each, N candidate tokens a row."""

    loss_is_scaled_for_ga = False  # each pass is a mean over as many prompts

    def __init__(self, tree: PrefixTree, responses: list[list[int]], **more: Any) -> None:
        super().__init__(**more)
        self.responses = responses
        self.tree = tree.to(self.args.device)
        self.reference = None
        if self.options.beta > 0:
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> Tensor:
        options, prompts, target = self.options, inputs["prompts"], inputs["target"]

        # Roll out: dropout off, so that what is scored is what was searched.
        policy = self.accelerator.unwrap_model(model)
        leaf, _ = beam_search(policy, self.tree, prompts, options.group_size)
        exists = leaf >= 0  # (B, G)
        candidates = [
            [self.responses[self.tree.leaf_items[n][0]] for n in row if n >= 0]
            for row in leaf.tolist()
        ]
        packed = pack(prompts, candidates, options.group_size).to(leaf.device)
        log_prob = token_log_probs(model, packed)  # (B, N)

        # Reward: a hit is a candidate with the target's title, hence with its leaf.
        hit = leaf == self.tree.leaf_of_item[target][:, None]
        sequence = sum_by_candidate(log_prob.detach(), packed).masked_fill(~exists, -torch.inf)
        reward = total_reward(options.reward, hit, sequence)
        advantage = advantages.grpo(reward, exists)

        kl = None
        if self.reference is not None:
            with torch.no_grad():
                reference = token_log_probs(self.reference, packed)
            kl = objectives.k3(log_prob, reference)
            self.record(kl=kl.sum() / (packed.candidate < packed.num_candidates).sum())
        self.record(reward=reward.sum(-1).mean(), hit_rate=hit.any(-1).float().mean())
        return objectives.grpo(log_prob, advantage, kl, options.beta, packed)

    def validate(self) -> dict[str, float]:
        """NDCG@10 of the rollout's own search on the validation sample."""
        policy = self.accelerator.unwrap_model(self.model)
        ranked, targets = [], []
        for inputs in self.get_eval_dataloader():
            leaf, _ = beam_search(policy, self.tree, inputs["prompts"], self.options.group_size)
            pair = (leaf, self.tree.leaf_of_item[inputs["target"]])
            leaf, target = self.accelerator.gather_for_metrics(pair)
            ranked.append(leaf.cpu())
            targets.append(target.cpu())
        ranks = target_ranks(torch.cat(ranked).numpy(), torch.cat(targets).numpy())
        values = gains(ranks).mean(axis=0)
        return {"ndcg@10": float(values[METRICS.index("NDCG@10")])}
