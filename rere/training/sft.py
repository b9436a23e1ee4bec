"""Supervised fine-tuning: train the model to generate the target's title after the prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from rere.config.training import SftOptions
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import PackedBatch, pack
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.search.noise import row_seeds
from rere.errors import out_of_memory
from rere.prefix_tree import PrefixTree
from rere.training.checkpoints import resumable
from rere.training.groups import num_decisions
from rere.training.setup import (
    Row,
    choose_precision,
    data_files,
    history_length,
    load_setup,
    memory_remedy,
)
from rere.training.trainer import Trainer, training_arguments


def sft(options: SftOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Fine-tune the model in the folder `init`; write model/, log.jsonl and run.json to `output`.

    The loss covers the response only. The validation loss stops the run early and selects the
    checkpoint, perhaps the initial model; of the test split only the lengths of prompts are read. A
    killed run resumes from its last checkpoint.
    """
    options, remedy = choose_precision(options), memory_remedy(options)
    inputs = [init, *data_files(data)]
    with resumable(output, options, seed, inputs) as checkpoints, out_of_memory(remedy):
        setup = load_setup(options, init, data, seed, min_rows=1)

        tree = setup.catalogue.tree
        decisions = num_decisions(tree)

        def collate(rows: list[Row]) -> dict[str, Any]:
            prompts, targets = setup.encode_prompts(rows), [row["target"] for row in rows]
            if options.scoring == "catalogue":
                leaf = tree.leaf_of_item[targets]
                return {"examples": CatalogueExamples(prompts, leaf, tree, decisions)}
            return {"examples": Examples(prompts, [setup.responses[item] for item in targets])}

        steps = math.ceil(options.epochs * len(setup.train) / options.batch_size)
        trainer = SftTrainer(
            lengths=[history_length(row, setup.responses) for row in setup.train],
            options=options,
            checkpoints=checkpoints,
            label="sft",
            model=setup.model,
            data_collator=collate,
            train_dataset=setup.train,
            eval_dataset=setup.valid,
            callbacks=[EarlyStoppingCallback(options.patience)],
            args=training_arguments(
                options,
                seed,
                checkpoints.folder,
                steps,
                options.batch_size,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
            ),
        )
        with checkpoints.signals:
            trainer.train(resume_from_checkpoint=checkpoints.latest)
            setup.save(output / "model", trainer)


@dataclass(frozen=True)
class Examples:
    """Rows of token ids: prompts and the responses to them."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]

    def select(self, rows: Sequence[int]) -> "Examples":
        return Examples([self.prompts[row] for row in rows], [self.responses[row] for row in rows])

    @property
    def num_predicted(self) -> int:
        return sum(map(len, self.responses))

    def pack(self) -> PackedBatch:
        return pack(self.prompts, [[ids] for ids in self.responses])


@dataclass(frozen=True)
class CatalogueExamples:
    """Rows whose response is scored over the tokens that continue a title of the catalogue.

    Only the decisions of a title are predicted: the other tokens have probability 1. That is the
    masked softmax of Wang et al. 2025 (arXiv 2504.04178), without its temperature.
    """

    prompts: Sequence[Sequence[int]]
    leaf: Tensor  # (B,) i64, of the responses
    tree: PrefixTree
    decisions: Tensor  # (N,) i64, the number on the path to each node

    def select(self, rows: Sequence[int]) -> "CatalogueExamples":
        prompts = [self.prompts[row] for row in rows]
        return replace(self, prompts=prompts, leaf=self.leaf[list(rows)])

    @property
    def num_predicted(self) -> int:
        """At least 1, though a catalogue of one title has no decision."""
        return max(1, int(self.decisions[self.leaf].sum()))

    def pack(self) -> PackedBatch:
        return pack_leaves(self.prompts, self.leaf[:, None], self.tree, "catalogue")


class EpochSeededSampler(LengthGroupedSampler):
    """Rows in an order that depends on seed and epoch only, wherever a run resumes."""

    def __init__(self, seed: int, rows: int, lengths: list[int]) -> None:
        super().__init__(rows, lengths=lengths, generator=torch.Generator())
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class SftTrainer(Trainer):
    """The loss: mean cross-entropy of the predicted tokens of a step."""

    def __init__(self, lengths: list[int], **more: Any) -> None:
        super().__init__(**more)
        self.lengths = lengths

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """A sampler that batches rows of similar length, which leaves little padding."""
        return EpochSeededSampler(self.args.seed, self.args.train_batch_size, self.lengths)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add the gradient of a step; return its loss."""
        model.train()
        examples = inputs["examples"]
        count = examples.num_predicted
        loss = torch.zeros((), device=self.args.device)
        seed = row_seeds(self.args.seed, self.state.global_step, [-2])  # the id of no row
        with self.ranks.random_numbers(int(seed)):
            for rows, weight in self.split_into_passes(range(len(examples.prompts))):
                packed = examples.select(rows).pack().to(loss.device)
                with self.autocast():
                    part = -token_log_probs(model, packed).sum() / count * weight
                self.accelerator.backward(part)
                loss += part.detach()
        self.ranks.sum_gradients(model.parameters())
        return self.ranks.sum(loss)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        batches, device = self.get_eval_dataloader(), self.args.device
        sums = torch.zeros(len(batches), 2, device=device)  # negative log-likelihood, tokens
        for number, inputs in self.ranks.deal(enumerate(batches)):
            examples = inputs["examples"]
            with self.autocast():
                sums[number, 0] = -token_log_probs(self.model, examples.pack().to(device)).sum()
            sums[number, 1] = examples.num_predicted
        # In the order of the batches, whatever the number of ranks.
        total, count = sum(self.ranks.sum(sums).unbind(), sums.new_zeros(2)).tolist()
        return {"loss": total / count}
