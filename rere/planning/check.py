"""Say whether a backbone fits a data set and a device, before its weights are downloaded.

Each question is a function that returns an `Answer`. Only tokenizer and config of the backbone are
read. What depends on its architecture is tried on a small random model of it.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tabulate import tabulate
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rere.backbones import load_tokenizer, refusing, shape_of
from rere.catalogue import find_shadowed
from rere.config.rl import RlOptions
from rere.config.training import SftOptions
from rere.data.dataset import read_items
from rere.engine.model.decoder import find_mask_fault
from rere.engine.model.precision import arithmetic
from rere.engine.search.beam import beam_search
from rere.errors import InputError, first_line
from rere.planning.passes import TrainingOptions
from rere.planning.plan import (
    Target,
    Texts,
    load_config,
    plan_training_of,
    start_process,
    verdict,
)
from rere.planning.small_model import small_model
from rere.token_lengths import check_prompts
from rere.tokenization import MAX_PROMPT_TOKENS, shorten
from rere.training.models import prepare
from rere.training.setup import Row, read_rows, select_part

RUNS: dict[str, TrainingOptions] = {"rl": RlOptions(), "sft": SftOptions()}
"""The runs whose memory is planned."""

TITLES = "titles stay apart"
CONTEXT = "prompts fit"
MASKS = "candidates share their prompt"
LORA = "LoRA finds layers"
PRECISION = "bfloat16 scores are finite"
MEMORY = {name: f"{name} fits into memory" for name in RUNS}
QUESTIONS = [TITLES, CONTEXT, MASKS, LORA, PRECISION, *MEMORY.values()]

NUM_PROMPTS, NUM_BEAMS = 32, 10
"""Lists that are compared between bfloat16 and float32, and their titles."""
LORA_RANK = 8


class Answer(NamedTuple):
    """The answer to a question, in words."""

    question: str
    answer: Literal["yes", "no", "unknown"]
    why: str
    remedy: str = ""
    fails: bool = False  # a run with the default options would


def check(
    backbone: str, revision: str | None, data: Path, seed: int, target: Target
) -> list[Answer]:
    """The answers for a backbone, a folder or a Hugging Face id, and a data folder.

    Raises InputError if tokenizer, config or data are missing or malformed, and for a model that is
    no causal language model of transformers.
    """
    start_process(target)
    tokenizer, config = load_tokenizer(backbone, revision), load_config(backbone, revision)
    with refusing(backbone, "a language model"):
        shape_of(config)
        model, name = small_model(config)
    titles, rows = read_items(data)["title"].to_list(), read_rows(data, "train")
    by_masks = masks_steer(model, name)
    answers = [by_masks, adapters_find_layers(config)]
    try:
        texts = encode_titles(tokenizer, titles, config)
    except InputError as error:
        answers.append(refused(TITLES, error))
        open_questions = [CONTEXT, PRECISION, *MEMORY.values()]
        answers += [Answer(each, "unknown", f"see {TITLES}") for each in open_questions]
    else:
        by_context = prompts_fit(texts, config, data, seed)
        answers += [titles_are_apart(texts), by_context]
        if by_context.fails:
            answers.append(Answer(PRECISION, "unknown", f"see {CONTEXT}"))
        else:
            answers.append(bfloat16_is_finite(model, texts, rows, seed, target.dtype))
        for run in RUNS:
            if by_masks.fails:
                answers.append(Answer(MEMORY[run], "unknown", f"see {MASKS}"))
                continue
            answers.append(memory_fits(run, config, texts, rows, data, seed, target))
    return sorted(answers, key=lambda answer: QUESTIONS.index(answer.question))


def refused(question: str, error: InputError) -> Answer:
    """The answer where a run would raise this error, whose message ends with the remedy."""
    why, _, remedy = str(error).rpartition("; ")
    return Answer(question, "no", why, remedy, fails=True)


def encode_titles(
    tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], config: PreTrainedConfig
) -> Texts:
    """The titles in tokens; raises InputError where a run could not encode or feed them."""
    texts, vocab_size = Texts.encode(tokenizer, titles), config.get_text_config().vocab_size
    if (largest := max(map(max, texts.responses), default=0)) >= vocab_size:
        raise InputError(
            f"the tokenizer has a token {largest}, the model only {vocab_size} tokens; take "
            "another backbone"
        )
    return texts


def titles_are_apart(texts: Texts) -> Answer:
    """Whether different titles have different tokens."""
    titles = texts.encoder.titles
    count = f"{len(titles):,} items with {len(set(titles)):,} titles"
    pairs = find_shadowed(texts.tree.leaf_of_item, titles)
    if not pairs:
        return Answer(TITLES, "yes", f"{count}, which end with {texts.encoder.tokenizer.eos_token}")
    item, other = (shorten(titles[each]) for each in pairs[0])
    lost = len({titles[item] for item, _ in pairs})
    why = f"{lost} of {count} have the tokens of another, such as {item} those of {other}"
    remedy = "they are never recommended; rename them or take another backbone"
    return Answer(TITLES, "no", why, remedy)


def prompts_fit(texts: Texts, config: PreTrainedConfig, data: Path, seed: int) -> Answer:
    """Whether the longest prompt and the longest title fit into the model's positions."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    try:
        check_prompts(texts.encoder, texts.responses, data, seed, context)
    except InputError as error:
        return refused(CONTEXT, error)
    longest = max(map(len, texts.responses))
    limit = "any number of positions" if context is None else f"{context:,} positions"
    why = f"prompts of up to {MAX_PROMPT_TOKENS} tokens, titles of up to {longest}, {limit}"
    return Answer(CONTEXT, "yes", why)


def masks_steer(model: PreTrainedModel, name: str) -> Answer:
    """Whether candidates can share their prompt: the fast path, which training needs."""
    fault = find_mask_fault(model)
    if fault is None:
        return Answer(MASKS, "yes", f"the fast path, by {name}")
    why = f"{fault}, by {name}"
    return Answer(MASKS, "no", why, "it can recommend, slowly, but not be trained", fails=True)


def adapters_find_layers(config: PreTrainedConfig) -> Answer:
    """How many layers `lora_rank` would adapt, in the whole model, and their names."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = prepare(shape_of(config), RlOptions(lora_rank=LORA_RANK))
    except (ValueError, TypeError, RuntimeError) as error:
        return Answer(LORA, "no", first_line(error), "leave out lora_rank")
    assert isinstance(model, PeftModel)
    layers = [name for name, each in model.named_modules() if isinstance(each, LoraLayer)]
    names = sorted({name.rpartition(".")[2] for name in layers})
    return Answer(LORA, "yes", f"{len(layers)} layers: {', '.join(names)}")


def bfloat16_is_finite(
    model: PreTrainedModel, texts: Texts, rows: Sequence[Row], seed: int, dtype: str
) -> Answer:
    """Whether a search in bfloat16 has no NaN, and how many of its lists are float32's."""
    ids = [row["row_id"] for row in rows[:NUM_PROMPTS]]
    histories = [row["history"] for row in rows[:NUM_PROMPTS]]
    lists = []
    try:
        prompts = texts.encoder.encode_prompts(ids, histories, seed)
        for precision in ("float32", "bfloat16"):
            with arithmetic(model.device, precision):
                beams = beam_search(model, texts.tree, prompts, NUM_BEAMS, "catalogue")
            if not beams.score[beams.leaf >= 0].isfinite().all():
                raise InputError(f"scores in {precision} are not finite; take dtype: float32")
            lists.append(beams.leaf)
    except InputError as error:
        return refused(PRECISION, error)._replace(fails=dtype == "bfloat16" or not lists)
    return compare_lists(*lists)


def compare_lists(first: torch.Tensor, second: torch.Tensor) -> Answer:
    """The answer for the leaves (B, K) of lists in both precisions."""
    equal = (first == second).all(1).float().mean()
    shared = (first[:, :, None] == second[:, None, :]).any(2).float().mean()
    why = (
        f"{equal:.0%} of {len(first)} lists of {first.shape[1]} titles are those of float32, and "
        f"{shared:.0%} of their titles (a smoke test: the weights are random)"
    )
    return Answer(PRECISION, "yes", why)


def memory_fits(
    run: str,
    config: PreTrainedConfig,
    texts: Texts,
    train: list[Row],
    data: Path,
    seed: int,
    target: Target,
) -> Answer:
    """Whether a run with the default options fits into the device's memory."""
    options = RUNS[run]
    try:
        rows = select_part(train, options, data, min_rows=options.rows_per_pass)
    except InputError as error:
        return refused(MEMORY[run], error)
    plan = plan_training_of(options, config, texts, rows, seed, target)
    peak, where = f"{plan.peak / 1e9:.1f}", f"GB, {target.dtype} on {target.device}"
    if target.memory is None:
        remedy = "say --memory, as the device is not here"
        return Answer(MEMORY[run], "unknown", f"{peak} {where}", remedy)
    why = f"{peak} of {target.memory / 1e9:.1f} {where}"
    if plan.peak <= target.memory:
        return Answer(MEMORY[run], "yes", why)
    remedy = " ".join(verdict(plan, target, options)[1:]).rstrip(".")
    return Answer(MEMORY[run], "no", why, remedy[:1].lower() + remedy[1:], fails=True)


def as_json(answers: list[Answer]) -> str:
    """The answers on one line, and whether a run would fail."""
    listed = [answer._asdict() for answer in answers]
    return json.dumps({"answers": listed, "fails": any(answer.fails for answer in answers)})


def as_text(answers: list[Answer]) -> str:
    """The answers as a table of a line each."""
    rows = [
        (answer.question, answer.answer, "; ".join(filter(None, [answer.why, answer.remedy])))
        for answer in answers
    ]
    return str(tabulate(rows, tablefmt="plain", disable_numparse=True))


def raise_if_failing(answers: list[Answer]) -> None:
    """Raise InputError that names the questions for which a run would fail."""
    if failing := [answer.question for answer in answers if answer.fails]:
        raise InputError(f"a run would fail, as these lines say: {', '.join(failing)}")
