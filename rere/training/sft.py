"""Supervised fine-tuning: train the model to generate the target's title after the prompt."""

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from rere.config.training import SftOptions
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.errors import out_of_memory
from rere.training.checkpoints import resumable
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

        def collate(rows: list[Row]) -> dict[str, Any]:
            targets = [setup.responses[row["target"]] for row in rows]
            return {
                "packed": pack(setup.encode_prompts(rows), [[ids] for ids in targets]),
                # The trainer counts the labels of all passes of a step, without the first of each,
                # which no causal model predicts.
                "labels": torch.tensor([-100, *itertools.chain.from_iterable(targets)]),
            }

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
                passes=options.batch_size // options.rows_per_pass,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
            ),
        )
        with checkpoints.signals:
            trainer.train(resume_from_checkpoint=checkpoints.latest)
            setup.save(output / "model", trainer)


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
        return -token_log_probs(model, inputs["packed"]).sum() / num_items_in_batch

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        sums = torch.zeros(2, device=self.args.device)  # negative log-likelihood, tokens
        for inputs in self.get_eval_dataloader():
            with self.autocast():
                log_probs = token_log_probs(self.model, inputs["packed"])
            sums += torch.stack([-log_probs.sum(), (inputs["labels"] >= 0).sum()])
        total, count = sums.tolist()
        return {"loss": total / count}
