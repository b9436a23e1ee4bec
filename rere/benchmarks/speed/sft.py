"""Supervised fine-tuning against the stock `transformers.Trainer` with its usual collation.

The stock trainer shuffles rows, pads a batch to its longest, and takes the logits of every token.
Ours groups rows of like length, and takes those that predict the response. Both get token ids.

A row of data is a prompt with the response of its target.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from rere.backbones import load_tokenizer
from rere.data.splits import read_items, read_split
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.tokenization import PromptEncoder
from rere.benchmarks.timing import compared, in_turn
from rere.benchmarks.speed.scoring import close, fastest
from rere.benchmarks.subject import Subject
from rere.training.sft import SftTrainer

SFT = "supervised fine-tuning"
STOCK = "transformers Trainer"
OURS = "rere"
BATCH_SIZE = 32


class Row(NamedTuple):
    """A row of data."""

    prompt: Sequence[int]
    response: Sequence[int]


class PackedTrainer(transformers.Trainer):
    """The stock trainer with what `SftTrainer` changes of its steps."""

    _get_train_sampler = SftTrainer._get_train_sampler
    compute_loss = SftTrainer.compute_loss

    def __init__(self, lengths: list[int], **more: Any) -> None:
        super().__init__(**more)
        self.lengths = lengths
        self.model_accepts_loss_kwargs = True


def rows(
    subject: Subject, model: Path, folder: Path, num_rows: int, sizes: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    """The row of the table (`rere.benchmarks.speed.table`) on `num_rows` of a data set's training split.

    Each side takes of `sizes` the rows a pass, of the step's BATCH_SIZE, that it is fastest with,
    on a quarter of them.
    """
    tokenizer, data = load_tokenizer(model), sample(model, folder, num_rows, seed)
    some = data[: max(BATCH_SIZE, len(data) // 4)]
    label = f"speed: {subject.name}, {SFT}"
    trains = {OURS: partial(train, subject), STOCK: partial(train_stock, subject, tokenizer)}
    at_once = {side: fastest(call, some, sizes, label) for side, call in trains.items()}
    calls = {side: partial(call, at_once[side]) for side, call in trains.items()}
    timed = in_turn(calls, [data] * 3, label)
    ours, theirs = timed[OURS].median, timed[STOCK].median
    tokens = sum(len(row.prompt) + len(row.response) for row in data) / len(data)
    words = [subject.name, folder.name, f"{tokens:.0f} tokens a row", f"{BATCH_SIZE} rows a step"]
    words += [f"{at_once[OURS]} rows a pass (theirs {at_once[STOCK]})"]
    words += [f"{torch.get_num_threads()} threads", "float32"]
    yield {
        "what": SFT,
        "against": STOCK,
        "setting": ", ".join(words),
        **compared(ours, theirs),
        "equal": equals_stock(subject, tokenizer, data[: max(sizes)]),
    }


def sample(model: Path, folder: Path, num_rows: int, seed: int) -> list[Row]:
    """Rows of the training split, `num_rows` of them at most."""
    encoder = PromptEncoder(load_tokenizer(model), read_items(folder)["title"].to_list())
    chosen = read_split(folder, "train", num_rows)
    prompts = encoder.prompts(chosen["row_id"].to_list(), chosen["history"].to_list(), seed)
    responses = encoder.responses()
    return [Row(p, responses[t]) for p, t in zip(prompts, chosen["target"], strict=True)]


def train(subject: Subject, at_once: int, data: Sequence[Row]) -> float:
    """Train on all rows once; the mean loss."""
    trainer = PackedTrainer(
        lengths=[len(row.prompt) for row in data],
        model=subject.models["float32"],
        args=arguments(at_once, len(data)),
        train_dataset=list(data),
        data_collator=collate,
    )
    return quietly(trainer)


def train_stock(
    subject: Subject, tokenizer: PreTrainedTokenizerBase, at_once: int, data: Sequence[Row]
) -> float:
    """The same, as everyone does it."""
    trainer = transformers.Trainer(
        model=subject.models["float32"],
        args=arguments(at_once, len(data)),
        train_dataset=[labelled(row) for row in data],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return quietly(trainer)


def quietly(trainer: transformers.Trainer) -> float:
    trainer.remove_callback(PrinterCallback)
    return trainer.train().training_loss


def collate(data: Sequence[Row]) -> dict[str, Any]:
    """As in `rere.training.sft`."""
    packed = pack([row.prompt for row in data], [[row.response] for row in data])
    responses = itertools.chain.from_iterable(row.response for row in data)
    return {"packed": packed, "labels": torch.tensor([-100, *responses])}


def labelled(row: Row) -> dict[str, list[int]]:
    """A row as transformers takes it: a loss of the response alone."""
    ids = [*row.prompt, *row.response]
    return {"input_ids": ids, "labels": [-100] * len(row.prompt) + list(row.response)}


def arguments(at_once: int, num_rows: int) -> TrainingArguments:
    """Plain AdamW; the learning rate is 0, so that both train the same model all the time."""
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),
        learning_rate=0.0,
        max_steps=num_rows // BATCH_SIZE,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH_SIZE // at_once,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def equals_stock(subject: Subject, tokenizer: PreTrainedTokenizerBase, data: Sequence[Row]) -> bool:
    """Whether loss and gradient of a batch are those of the model's own loss."""
    model = subject.models["float32"]
    collated = collate(data)
    log_prob = token_log_probs(model, collated["packed"].to(subject.device))
    stock = DataCollatorForSeq2Seq(tokenizer)([labelled(row) for row in data]).to(subject.device)
    losses = (-log_prob.sum() / (len(collated["labels"]) - 1), model(**stock).loss)

    def with_gradient(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])

    return close(*map(with_gradient, losses))
