"""Say how much memory a run takes, before it runs."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rere.adapters import find_base, is_adapters
from rere.backbones import count_parameters, load_tokenizer, refusing, shape_of
from rere.config.evaluation import Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.data.dataset import read_items, read_split
from rere.devices import choose_dtype
from rere.engine import SearchScoring
from rere.engine.candidates.packing import PackedBatch
from rere.engine.search.batch_size import rows_within, search_bytes
from rere.engine.search.layout import full_pass_of
from rere.engine.search.rollout import num_samples
from rere.engine.search.sizes import MEMORY_SHARE, available_memory
from rere.planning.memory import (
    TrainingMemory,
    inference_weights,
    sharded_memory,
    training_memory,
)
from rere.planning.passes import TrainingOptions, largest_pass
from rere.prefix_tree import PrefixTree
from rere.provenance import peak_memory
from rere.tokenization import PromptEncoder
from rere.training.setup import Row, read_rows, select_part

SHARE_OF_TITLES = 0.9
"""A search feeds titles of this quantile of their lengths."""

MOMENTS = ("always", "while loading", "in a pass", "in a search")
"""When a run holds the parts of a plan: its fields in words."""


class Target(NamedTuple):
    """Where a run is to run."""

    device: torch.device
    dtype: str
    memory: float | None  # bytes; None: unknown
    processes: int = 1  # each with a device of its own

    @classmethod
    def choose(
        cls, device: torch.device, dtype: str, memory: float | None, processes: int = 1
    ) -> "Target":
        """The device with its own memory, if it is here, and the precision that `auto` means."""
        is_here = device.type != "cuda" or torch.cuda.is_available()
        memory = available_memory(device) if memory is None and is_here else memory
        return cls(device, choose_dtype(dtype, device), memory, processes)


class Part(NamedTuple):
    """Something that a run holds in memory."""

    name: str
    bytes: int
    remark: str = ""


class Plan(NamedTuple):
    """What a run holds at all times, and beside it at three moments; it may lack any of them."""

    lasting: list[Part]
    load: list[Part]
    update: list[Part]
    search: list[Part]

    @property
    def peak(self) -> int:
        """Bytes at the moment that needs most."""
        lasting, *moments = (sum(part.bytes for part in parts) for parts in self)
        return lasting + max(moments)


class Texts(NamedTuple):
    """The catalogue in a model's tokens."""

    encoder: PromptEncoder
    responses: list[list[int]]
    tree: PrefixTree

    @classmethod
    def read(cls, init: str, data: Path) -> "Texts":
        return cls.encode(load_tokenizer(init), read_items(data)["title"].to_list())

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> "Texts":
        encoder = PromptEncoder(tokenizer, titles)
        responses = encoder.encode_responses()
        return cls(encoder, responses, PrefixTree.build(responses))


def plan_training(
    options: TrainingOptions,
    init: str,
    data: Path,
    seed: int,
    target: Target,
    texts: Texts | None = None,
) -> Plan:
    """The memory of a training run from the model `init`, a folder or a Hugging Face id.

    Of the model only its config and tokenizer are read, and `texts` instead of the latter if they
    are given. Raises InputError as the run itself would for missing or malformed files.
    """
    start_process(target)
    config, texts = load_config(init), texts or Texts.read(init, data)
    rows = select_part(read_rows(data, "train"), options, data, min_rows=options.rows_per_pass)
    return plan_training_of(options, config, texts, rows, seed, target)


def plan_training_of(
    options: TrainingOptions,
    config: PreTrainedConfig,
    texts: Texts,
    rows: list[Row],
    seed: int,
    target: Target,
) -> Plan:
    """`plan_training` of a model of `config` on these `rows`."""
    measured = measure_pass(options, config, texts, rows, seed, target)
    return plan_measured(options, config, texts, measured, target)


class MeasuredPass(NamedTuple):
    """The largest pass of a training run in one process, and what the run holds in memory."""

    packed: PackedBatch
    memory: TrainingMemory


def measure_pass(
    options: TrainingOptions,
    config: PreTrainedConfig,
    texts: Texts,
    rows: list[Row],
    seed: int,
    target: Target,
) -> MeasuredPass:
    """The same on all targets of a kind of device and a precision."""
    start_process(target)
    options = options.model_copy(update={"dtype": target.dtype})
    packed = largest_pass(options, rows, *texts, seed)
    has_reference = is_synced = False
    if isinstance(options, RlOptions):
        has_reference, is_synced = options.beta > 0, options.sync_interval is not None
    elif isinstance(options, PreferenceOptions):
        has_reference, is_synced = True, options.algorithm == "sprec"
    memory = training_memory(config, options, packed, has_reference, is_synced, target.device)
    return MeasuredPass(packed, memory)


def plan_measured(
    options: TrainingOptions,
    config: PreTrainedConfig,
    texts: Texts,
    measured: MeasuredPass,
    target: Target,
) -> Plan:
    """`plan_training` of a run whose largest pass is known."""
    options = options.model_copy(update={"dtype": target.dtype})
    packed, memory = measured
    if options.sharded and target.processes > 1:
        memory = sharded_memory(memory, config, options, target.processes)
    logits = packed.num_logits * config.get_text_config().vocab_size * 4
    size = f"the largest pass: {len(packed.input_ids)} prompts, {packed.num_tokens} tokens"
    lasting = [
        Part("weights", memory.weights),
        *([Part("reference", memory.reference)] if memory.reference else []),
        Part("optimiser state", memory.optimizer),
    ]
    return Plan(
        lasting=[*start_process(target), *lasting],
        load=plan_load(config, lasting, target),
        update=[
            Part("gradients", memory.gradients),
            *gathered(memory.gathered_in_pass, "two layers, embeddings, their gradients"),
            Part("activations", memory.activations - logits, size),
            Part("logits", logits, f"of {packed.num_logits} tokens"),
        ],
        search=[
            *gathered(memory.gathered_in_search, "all weights"),
            *plan_training_search(
                options, config, texts.tree, packed.num_prompt_columns + 1, memory, target
            ),
        ],
    )


def gathered(size: int, remark: str) -> list[Part]:
    """The weights that a rank gathers from the others, if the model is sharded."""
    return [Part("gathered", size, remark)] if size else []


def plan_training_search(
    options: TrainingOptions,
    config: PreTrainedConfig,
    tree: PrefixTree,
    prompt_length: int,
    memory: TrainingMemory,
    target: Target,
) -> list[Part]:
    """The largest search of a training run, beside `memory`; SFT has none."""
    rows, budget = options.rows_per_pass, None
    match options:
        case SftOptions():
            return []
        case PreferenceOptions():
            paths = options.num_beams
        case RlOptions():
            paths = num_samples(options.rollout, options.group_size)
            if options.is_constrained:  # then all prompts of a step are searched at once
                rows = math.ceil(options.prompts / target.processes)
                budget = search_budget(target, memory.held_in_search)
    part = plan_search(config, tree, rows, prompt_length, paths, options.scoring, target, budget)
    return [part]


def plan_recommend(
    options: Recommend,
    model: str,
    data: Path,
    seed: int,
    target: Target,
    texts: Texts | None = None,
) -> Plan:
    """The memory of ranking the catalogue for the test rows with the model `model`."""
    start_process(target)
    config, texts = load_config(model), texts or Texts.read(model, data)
    lengths = prompt_lengths(texts, data, options.rows, seed)
    return plan_recommend_of(options, config, texts, lengths, target)


def prompt_lengths(texts: Texts, data: Path, rows: int | None, seed: int) -> list[int]:
    """The tokens of each test row's prompt."""
    test = read_split(data, "test", rows)
    prompts = texts.encoder.encode_prompts(
        test["row_id"].to_list(), test["history"].to_list(), seed
    )
    return [len(prompt) for prompt in prompts]


def plan_recommend_of(
    options: Recommend,
    config: PreTrainedConfig,
    texts: Texts,
    lengths: list[int],
    target: Target,
) -> Plan:
    """`plan_recommend` of a model of `config` on prompts of these `lengths`."""
    lasting = [Part("weights", inference_weights(config, target.dtype))]
    search = plan_search(
        config,
        texts.tree,
        options.batch_size or len(lengths),
        max(lengths, default=1),
        options.num_beams,
        options.scoring,
        target,
        None if options.batch_size else search_budget(target, lasting[0].bytes),
    )
    process = start_process(target)
    return Plan([*process, *lasting], plan_load(config, lasting, target), [], [search])


def plan_load(config: PreTrainedConfig, lasting: list[Part], target: Target) -> list[Part]:
    """What loading takes on the CPU beyond what then lasts: the file, and its float32 copy."""
    if target.device.type != "cpu":
        return []
    read = 2 * inference_weights(config, "float32")
    return [Part("file and copy", max(0, read - sum(part.bytes for part in lasting)))]


def plan_search(
    config: PreTrainedConfig,
    tree: PrefixTree,
    rows: int,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
    target: Target,
    budget: float | None,
) -> Part:
    """The memory of a search of up to `rows` rows, as many as fit into `budget`; None: all."""
    full_pass = full_pass_of(target.device, count_parameters(shape_of(config)))

    def needed(rows: int, itemsize: int, share_of_titles: float) -> int:
        sizes = rows, prompt_length, num_beams, scoring
        return search_bytes(config, tree, *sizes, full_pass, itemsize, share_of_titles)

    if budget is not None:
        rows = rows_within(budget, target.device, lambda n: needed(n, 4, 1.0), rows)
    itemsize = 2 if target.dtype == "bfloat16" else 4
    return Part(
        "search", needed(rows, itemsize, SHARE_OF_TITLES), f"{rows} rows, {num_beams} beams"
    )


def search_budget(target: Target, held: int) -> float:
    """The bytes that a search may fill beside `held` others, as a run chooses them."""
    memory = math.inf if target.memory is None else target.memory
    free = memory if target.device.type == "cpu" else max(0, memory - held)
    return MEMORY_SHARE * free


def start_process(target: Target) -> list[Part]:
    """What a process held when this was first called, before it loads a model; none on a GPU."""
    if target.device.type != "cpu":
        return []
    return [Part("process", process_memory(), "Python and libraries")]


@cache
def process_memory() -> int:
    """Bytes that this process held when it was first asked, before it planned anything."""
    return int(peak_memory()["peak_memory_mb"] * 1e6)


def load_config(model: str, revision: str | None = None) -> PreTrainedConfig:
    """The architecture of a model in a folder or on the hub; of adapters, that of their base."""
    if is_adapters(model):
        model = find_base(Path(model))
    with refusing(model, "a language model's config"):
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)


def as_json(plan: Plan, target: Target) -> str:
    """The plan on one line."""
    return json.dumps(as_dict(plan, target))


def as_dict(plan: Plan, target: Target) -> dict[str, Any]:
    """The plan as bytes by moment and part, the peak, and the target's memory."""
    moments = {
        moment: {part.name: part.bytes for part in parts}
        for moment, parts in plan._asdict().items()
    }
    memory = None if target.memory is None else int(target.memory)
    return {**moments, "peak": plan.peak, "memory": memory}


def as_text(plan: Plan, target: Target, options: Recommend | TrainingOptions) -> str:
    """The plan as a table in GB (1e9 bytes), and whether it fits."""
    rows = [
        (part.name, f"{part.bytes / 1e9:.2f}", moment, part.remark)
        for moment, parts in zip(MOMENTS, plan, strict=True)
        for part in parts
    ]
    rows.append(("peak", f"{plan.peak / 1e9:.2f}", f"{target.dtype}, {target.device}", ""))
    sides = ("left", "right", "left", "left")
    table = tabulate(rows, ["", "GB", "", ""], "plain", colalign=sides, disable_numparse=True)
    lines = [table, *verdict(plan, target, options)]
    return "\n".join(line.rstrip() for text in lines for line in text.splitlines())


def verdict(plan: Plan, target: Target, options: Recommend | TrainingOptions) -> list[str]:
    """Whether a plan fits into memory, and what could be changed."""
    if target.memory is None:
        return ["Whether it fits: say --memory, since the device is not here."]
    fits = plan.peak <= target.memory
    lines = [f"{'Fits' if fits else 'Does not fit'} into {target.memory / 1e9:.1f} GB."]
    if isinstance(options, Recommend):
        return lines if fits else [*lines, "Lower num_beams, or set batch_size or dtype: bfloat16."]
    most = most_rows_per_pass(plan, target.memory, options)
    if most > 0 and most != options.rows_per_pass:
        lines.append(f"About rows_per_pass: {most} is the most that fits.")
    elif not fits:
        set_already = {
            "gradient_checkpointing: true": options.gradient_checkpointing,
            "optimizer: adafactor": options.optimizer == "adafactor" or options.sharded,
            "lora_rank: 16": options.lora_rank is not None,
            "sharded: true with several processes": options.sharded
            or options.optimizer == "adafactor",
        }
        others = [option for option, is_set in set_already.items() if not is_set]
        lines.append(f"Set {' or '.join(others)}." if others else "Take a smaller model.")
    return lines


def most_rows_per_pass(plan: Plan, memory: float, options: TrainingOptions) -> int:
    """The most rows per pass with which updates fit; 0 if none do.

    Activations and logits are taken to grow with the rows.
    """
    by_row = sum(part.bytes for part in plan.update if part.name in ("activations", "logits"))
    fixed = sum(part.bytes for part in [*plan.lasting, *plan.update]) - by_row
    most = (memory - fixed) * options.rows_per_pass / by_row
    rows = getattr(options, options.rows_option)
    return max((n for n in range(1, rows + 1) if rows % n == 0 and n <= most), default=0)
