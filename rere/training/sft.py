"""Supervised fine-tuning: train the model to generate the target's title after the prompt."""

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from rere.catalogue import Catalogue
from rere.config.training import SftOptions
from rere.data.dataset import read_items
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.tokenization import PromptEncoder
from rere.training.checkpoints import resumable
from rere.training.models import load_trainable, save_trained
from rere.training.trainer import (
    Trainer,
    encode,
    history_length,
    read_train,
    read_valid,
    training_arguments,
)


def sft(options: SftOptions, init: Path, data: Path, seed: int, output: Path) -> None:
    """Fine-tune the model in the folder `init`; write model/, log.jsonl and run.json to `output`.

    The loss covers the response only. The validation loss stops the run early and selects the
    checkpoint; the test split is never read. A killed run resumes from its last checkpoint.
    """
    with resumable(output, options, seed, [init, data]) as checkpoints:
        set_seed(seed)
        tokenizer, model = load_trainable(init, options)
        encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
        responses = encoder.responses()
        catalogue = Catalogue.build(encoder, responses)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            targets = [responses[row["target"]] for row in rows]
            return {
                "packed": pack(encode(encoder, rows, seed), [[ids] for ids in targets]),
                # The trainer counts the labels of all passes of a step, without the first of each,
                # which no causal model predicts.
                "labels": torch.tensor([-100, *itertools.chain.from_iterable(targets)]),
            }

        train = read_train(data, options.train_part, 1, "one")
        steps = math.ceil(options.epochs * len(train) / options.batch_size)
        trainer = SftTrainer(
            lengths=[history_length(row, responses) for row in train],
            options=options,
            checkpoints=checkpoints,
            label="sft",
            model=model,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=read_valid(data, options.valid_rows, responses),
            callbacks=[EarlyStoppingCallback(options.patience)],
            args=training_arguments(
                options,
                seed,
                checkpoints.folder,
                steps,
                options.batch_size,
                passes=options.batch_size // options.rows_per_pass,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
            ),
        )
        trainer.train(resume_from_checkpoint=checkpoints.latest)
        save_trained(model, encoder, catalogue, output / "model")


class EpochSeededSampler(LengthGroupedSampler):
    """Rows in an order that depends on seed and epoch only, wherever a run resumes."""

    def __init__(self, seed: int, rows: int, lengths: list[int]) -> None:
        super().__init__(rows, lengths=lengths, generator=torch.Generator())
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class SftTrainer(Trainer):
    """The loss: mean cross-entropy of the response tokens of a step."""

    def __init__(self, lengths: list[int], **more: Any) -> None:
        super().__init__(**more)
        self.lengths = lengths
        # Makes the Trainer pass the number of labels of the whole step to compute_loss.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """A sampler that batches rows of similar length, which leaves little padding."""
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSeededSampler(self.args.seed, rows, self.lengths)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor,
        return_outputs: bool = False,
    ) -> Tensor:
        # The count is of all devices, whose gradients are then averaged.
        devices = self.accelerator.num_processes
        return -token_log_probs(model, inputs["packed"]).sum() * devices / num_items_in_batch

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        self.model.eval()
        sums = torch.zeros(2, device=self.args.device)  # negative log-likelihood, tokens
        for inputs in self.get_eval_dataloader():
            with self.autocast():
                log_probs = token_log_probs(self.model, inputs["packed"])
            sums += torch.stack([-log_probs.sum(), (inputs["labels"] >= 0).sum()])
        total, count = self.accelerator.reduce(sums).tolist()
        return {"loss": total / count}
