"""Preference optimisation: DPO, S-DPO and SPRec, one loop for all.

A row has its target and negatives, all of them titles of the catalogue. They hang from one prompt
as a tree, and the loss (`rere.training.preferences`) is of their log-probabilities under the policy
and under the reference, the model that training started from.

`dpo` and `s_dpo` draw a row's negatives from the other titles, evenly, once for the whole run, as
S-DPO does from its items.

`sprec` (Gao et al. 2024, arXiv 2412.09243) goes through iterations: some steps of SFT on fresh
rows, then as many of DPO on the same rows, whose negative is what the model itself recommends. Here
that is the best of a constrained beam search that is not the target, and the model that searches is
the one after the iteration's SFT, which is the reference, too. The released code has the same
reference; its negatives are written greedily, without a catalogue, before the SFT, and it starts a
new schedule of the learning rate at every turn, where here one spans the run.

Training is in eval mode, since ratios are of the policy to itself where nothing has been learnt.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, set_seed

from rere.catalogue import Catalogue, PrefixTree
from rere.config.training import PreferenceOptions
from rere.data.splits import read_items
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.tokenization import PromptEncoder
from rere.training.checkpoints import resumable
from rere.training.groups import slices
from rere.training.models import load, save
from rere.training.preferences import margins, s_dpo
from rere.training.reference import Reference
from rere.training.trainer import (
    Trainer,
    encode,
    read_train,
    read_valid,
    shortest_first,
    training_arguments,
)
from rere.training.validation import SELECTION, search_ndcg


def preference(options: PreferenceOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Train the model in the folder `init`; writes model/, log.jsonl and run.json to `output`.

    NDCG@10 on a fixed sample of the validation split chooses the weights; the test split is never
    read. A run that was killed goes on from its last checkpoint. Raises InputError for fewer
    training rows than a step takes, and for fewer titles than a row's candidates.
    """
    with resumable(output, options, seed, [init, data]) as checkpoints:
        set_seed(seed)
        tokenizer, model = load(init, options)
        encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
        responses = encoder.responses()
        catalogue = Catalogue.build(encoder, responses)
        train = read_train(data, options.train_part, options.batch_size, "batch_size")
        if (titles := len(catalogue.tree.leaf_items)) <= options.num_negatives:
            raise InputError(f"{data}: has {titles} titles; a target and its negatives need more")

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            rows = shortest_first(rows, responses)  # of a step, which is cut into passes
            return {
                "prompts": encode(encoder, rows, seed),
                "row_id": [row["row_id"] for row in rows],
                "target": torch.tensor([row["target"] for row in rows]),
            }

        trainer = PreferenceTrainer(
            tree=catalogue.tree,
            options=options,
            checkpoints=checkpoints,
            label="preference",
            model=model,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=read_valid(data, options.valid_rows, responses),
            args=training_arguments(
                options,
                seed,
                checkpoints.folder,
                options.steps,
                options.batch_size,
                metric_for_best_model=f"eval_{SELECTION}",
                greater_is_better=True,
            ),
        )
        trainer.train(resume_from_checkpoint=checkpoints.latest)
        save(model, encoder, catalogue, output / "model")


class PreferenceTrainer(Trainer):
    """The update. B rows a pass, 1 + N candidates each, the target first."""

    def __init__(self, tree: PrefixTree, **more: Any) -> None:
        super().__init__(**more)
        self.host_tree, self.tree = tree, tree.to(self.args.device)
        self.plays_itself = self.options.algorithm == "sprec"
        self.reference = Reference(self.model, moves=self.plays_itself)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The gradient of a step, and its loss, a mean over its rows."""
        model.eval()
        learns_targets, place = False, 0
        if self.plays_itself:
            turn, place = divmod(self.state.global_step, self.options.steps_per_turn)
            learns_targets = turn % 2 == 0
        if learns_targets:
            return self.learn_targets(model, inputs)
        if self.plays_itself and place == 0:
            self.reference.move(self.language_model)
        return self.learn_preferences(model, inputs)

    def learn_preferences(self, model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        options, prompts = self.options, inputs["prompts"]
        target = self.tree.leaf_of_item[inputs["target"]][:, None]
        negative = self.negatives(prompts, inputs["row_id"], target)
        leaf = torch.cat([target, negative], dim=1)  # (rows of the step, 1 + N)
        on_host, sums = leaf.cpu(), torch.zeros(3, device=leaf.device)
        for rows in slices(len(prompts), options.rows_per_pass):
            packed = pack_leaves(prompts[rows], on_host[rows], self.host_tree, options.scoring)
            packed = packed.to(leaf.device)
            with self.autocast():
                reference = self.reference.log_probs(self.model, packed)
                log_prob = token_log_probs(model, packed)
                margin = margins(
                    sum_by_candidate(log_prob, packed),
                    sum_by_candidate(reference, packed),
                    options.beta,
                    leaf[rows] >= 0,
                )
                loss = s_dpo(margin).sum() / len(prompts)
            self.accelerator.backward(loss)
            least = margin.detach().amin(-1)  # of the negative that comes closest
            sums += torch.stack([loss.detach(), least.sum(), (least > 0).sum()])
        self.record(margin=sums[1] / len(prompts), accuracy=sums[2] / len(prompts))
        return sums[0]

    def learn_targets(self, model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        """The loss of SFT: minus the mean log-probability of the targets' tokens."""
        options, prompts = self.options, inputs["prompts"]
        target = self.host_tree.leaf_of_item[inputs["target"].cpu()][:, None]
        packs = [
            pack_leaves(prompts[rows], target[rows], self.host_tree, options.scoring)
            for rows in slices(len(prompts), options.rows_per_pass)
        ]
        count = sum(int((each.candidate < each.num_candidates).sum()) for each in packs)
        total = torch.zeros((), device=self.args.device)
        for packed in packs:
            with self.autocast():
                loss = -token_log_probs(model, packed.to(total.device)).sum() / count
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    @torch.no_grad()
    def negatives(self, prompts: list[list[int]], row_ids: list[int], target: Tensor) -> Tensor:
        """Leaves (B, N) that are not the `target` (B, 1); -1 where a search found too few."""
        options, count = self.options, self.options.num_negatives
        if not self.plays_itself:
            own, seed = target[:, 0].cpu(), self.args.seed
            return random_leaves(self.host_tree, seed, row_ids, own, count).to(target.device)
        found = []
        for rows in slices(len(prompts), options.rows_per_pass):
            with self.autocast():
                leaf, _ = beam_search(
                    self.reference.model,
                    self.tree,
                    prompts[rows],
                    options.num_beams,
                    options.scoring,
                )
            found.append(best_but(leaf, target[rows], count))
        return torch.cat(found)

    # ------------------------------------------------------------- checkpoints, order, validation

    def save_more(self, folder: Path) -> None:
        self.reference.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.reference.load(Path(resume_from_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        if not self.plays_itself:
            return super()._get_train_sampler(train_dataset)
        options = self.options
        rows_per_turn = options.steps_per_turn * options.batch_size
        turns = options.steps // options.steps_per_turn
        return TwiceEach(len(self.train_dataset), rows_per_turn, turns // 2, self.args.seed)

    def validate(self) -> dict[str, float]:
        return search_ndcg(self, self.tree, self.options.num_beams)


class TwiceEach(Sampler):
    """The rows of a whole run: those of each iteration one after another, and then again.

    Each iteration takes the next rows of a shuffled split, which is shuffled again at its end.
    """

    def __init__(self, num_rows: int, rows_per_turn: int, iterations: int, seed: int) -> None:
        self.num_rows, self.rows_per_turn = num_rows, rows_per_turn
        self.iterations, self.seed = iterations, seed

    def __len__(self) -> int:
        return 2 * self.iterations * self.rows_per_turn

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        needed = self.iterations * self.rows_per_turn
        epochs = math.ceil(needed / self.num_rows)
        order = [torch.randperm(self.num_rows, generator=generator) for _ in range(epochs)]
        turns = torch.cat(order)[:needed].view(self.iterations, 1, self.rows_per_turn)
        return iter(turns.expand(-1, 2, -1).flatten().tolist())


def random_leaves(
    tree: PrefixTree, seed: int, row_ids: Sequence[int], target: Tensor, count: int
) -> Tensor:
    """`count` leaves of each row, distinct, any but the row's `target` (B,); (B, count) i64.

    All of them are as likely. A row's are a function of the seed and its id. `tree` and `target`
    lie on the host.
    """
    leaves = (tree.fanout == 0).nonzero()[:, 0]
    drawn = [
        np.random.default_rng([seed, row_id]).choice(len(leaves) - 1, count, replace=False)
        for row_id in row_ids
    ]
    place = torch.from_numpy(np.stack(drawn))
    own = torch.searchsorted(leaves, target)[:, None]
    return leaves[place + (place >= own)]


def best_but(leaf: Tensor, target: Tensor, count: int) -> Tensor:
    """The first `count` of ranked leaves (B, K) that are not the `target` (B, 1), (B, count)."""
    order = (leaf == target).int().argsort(dim=-1, stable=True)
    return leaf.gather(1, order)[:, :count]
