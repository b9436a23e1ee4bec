"""What every training stage starts from: model, catalogue and rows."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import set_seed

from rere.backbones import halve_linear_layers, restore_linear_layers
from rere.catalogue import Catalogue
from rere.config.training import Training
from rere.data.dataset import SPLITS, read_items, read_split
from rere.devices import choose_device, choose_dtype
from rere.errors import InputError
from rere.model_card import Base, TrainedRun, read_base, trained_card
from rere.ranks import join
from rere.token_lengths import check_prompts
from rere.tokenization import PromptEncoder
from rere.training.checkpoints import MEMORY_OPTIONS, RESULT_NEUTRAL
from rere.training.models import Model, Start, find_start, load_trainable, save_trained
from rere.training.sharding import load_weights, whole_weights
from rere.training.trainer import Trainer

Row = dict[str, Any]
"""A row of a split: row_id, history and target."""


AnyTraining = TypeVar("AnyTraining", bound=Training)


def choose_precision(options: AnyTraining) -> AnyTraining:
    """The options with the precision that `dtype: auto` means on this machine's device."""
    join()  # of several GPUs a process must have its own before it asks for one
    dtype = choose_dtype(options.dtype, choose_device())
    return options.model_copy(update={"dtype": dtype})


@dataclass(frozen=True)
class TrainingSetup:
    """The model to train, the catalogue in its tokens, and the rows to train and validate on."""

    model: Model
    encoder: PromptEncoder
    responses: list[list[int]]  # token ids of each item's title
    catalogue: Catalogue
    train: list[Row]
    valid: list[Row]  # a fixed sample, shortest history first
    seed: int
    dataset: str
    base: Base
    init: str  # what training starts from, as the card names it
    start: Start | None  # of adapters that are saved without it
    folder: Path  # of the initial model

    def encode_prompts(self, rows: list[Row]) -> list[list[int]]:
        """The token ids of the rows' prompts."""
        return self.encoder.encode_prompts(
            [row["row_id"] for row in rows], [row["history"] for row in rows], self.seed
        )

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """A batch of prompts with their targets, sorted so that passes have little padding."""
        rows = sort_by_length(rows, self.responses)
        return {
            "prompts": self.encode_prompts(rows),
            "row_id": [row["row_id"] for row in rows],
            "history": [row["history"] for row in rows],
            "target": torch.tensor([row["target"] for row in rows]),
        }

    def save(self, output: Path, trainer: Trainer) -> None:
        """Write the trained model with its tokenizer, catalogue and card, on the first rank."""
        is_first, weights = trainer.ranks.is_first, None
        if trainer.is_sharded:
            weights = whole_weights(trainer.model, is_first)
        if not is_first:
            return
        options, state = trainer.options, trainer.state
        left_out = RESULT_NEUTRAL | MEMORY_OPTIONS | {"seed"}  # paths above all, perhaps private
        run = TrainedRun(
            dataset=self.dataset,
            num_rows=len(self.train),
            stage=trainer.label,
            summary=" ".join((options.__doc__ or "").split()),
            init=self.init,
            options=options.model_dump(mode="json", exclude=left_out),
            seed=self.seed,
            metric=str(trainer.args.metric_for_best_model).removeprefix("eval_"),
            best_value=state.best_metric,
            best_step=state.best_global_step,
            base=self.base,
            adapters_of=self.start and self.start.name,
        )
        card = trained_card(run, self.encoder, self.catalogue.max_history)
        model = self.model
        if weights is not None:
            model = load_trainable(self.folder, options)[1]
            load_weights(model, weights)
        elif isinstance(model, PeftModel) and self.start is None:
            restore_linear_layers(model.get_base_model(), self.folder)
        save_trained(model, self.encoder, self.catalogue, card, output, self.start)


def load_setup(
    options: Training, init: Path, data: Path, seed: int, min_rows: int
) -> TrainingSetup:
    """Seed all random number generators, then load the model in `init` and the rows in `data`.

    Raises InputError for fewer than `min_rows` training rows, and for a row of any split whose
    prompt is too long.
    """
    set_seed(seed)
    tokenizer, model = load_trainable(init, options)
    items = read_items(data)
    encoder = PromptEncoder(tokenizer, items["title"].to_list())
    responses = encoder.encode_responses()
    train = read_rows(data, "train")
    part = select_part(train, options, data, min_rows)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    max_history = max(len(row["history"]) for row in train)
    check_prompts(encoder, responses, data, seed, context)
    start = find_start(init, model) if options.save == "adapters" else None
    if isinstance(model, PeftModel) and options.dtype == "bfloat16":
        halve_linear_layers(model.get_base_model())
    return TrainingSetup(
        model,
        encoder,
        responses,
        Catalogue.build(encoder, responses, items["raw_id"].to_list(), max_history),
        part,
        sort_by_length(read_rows(data, "valid", options.valid_rows), responses),
        seed,
        data.resolve().name,
        read_base(init),
        describe_init(init),
        start,
        init,
    )


def select_part(train: list[Row], options: Training, data: Path, min_rows: int) -> list[Row]:
    """The rows in the options' `train_part`; raises InputError if they are below `min_rows`."""
    first, end = (round(share * len(train)) for share in options.train_part)
    if end - first < min_rows:
        raise InputError(
            f"{data}: has {end - first} training rows in train_part, fewer than {min_rows}; "
            "widen train_part or lower the rows per step"
        )
    return train[first:end]


def describe_init(init: Path) -> str:
    """What training starts from, without its path, which may be private."""
    folder = init.resolve()
    seed = re.fullmatch(r"seed(\d+)", folder.parent.name)
    if folder.name == "model" and seed:
        return f"the model of `{folder.parent.parent.name}`, seed {seed[1]}"
    return f"the model `{folder.name}`"


def data_files(data: Path) -> list[Path]:
    """The files of a data set that training reads, without splits that have none."""
    files = [data / f"{name}.parquet" for name in ("items", *SPLITS)]
    return [file for file in files if file.is_file()]


def memory_remedy(options: Training) -> str:
    """What to change where training runs out of memory."""
    rows = options.rows_option
    return (
        f"lower rows_per_pass ({options.rows_per_pass}) or {rows} ({getattr(options, rows)}), or "
        "set gradient_checkpointing: true; `rere plan` says what fits"
    )


def read_rows(data: Path, split: str, rows: int | None = None) -> list[Row]:
    """A split, or a fixed sample of `rows` of its rows."""
    return read_split(data, split, rows).select("row_id", "history", "target").to_dicts()


def sort_by_length(rows: list[Row], responses: list[list[int]]) -> list[Row]:
    return sorted(rows, key=lambda row: history_length(row, responses))


def history_length(row: Row, responses: list[list[int]]) -> int:
    """The number of tokens of the titles in a row's history."""
    return sum(len(responses[item]) for item in row["history"])
