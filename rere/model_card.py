"""The model card of a stored model: README.md, in the format of the Hugging Face hub.

Training writes it beside the weights. What is known only later, the test metrics and the name of
the repository, has a place in it that `complete_card` fills in.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from rere.config.evaluation import CUTOFFS
from rere.config.run import CARD
from rere.tokenization import (
    INSTRUCTIONS,
    MAX_PROMPT_TOKENS,
    SEPARATOR,
    PromptEncoder,
    prompt_text,
    response_text,
)

REPO = "OWNER/NAME"
"""Stands for the repository."""
TEST_METRICS = "<!-- test metrics -->"
"""Stands for the section of the test metrics."""

TAG = "rere"
RANDOM = "random-weights"
"""The tag of models that were trained from random weights, so that they have no base model."""
COMMIT = "base_model_commit"
LICENSE = ("license", "license_name", "license_link")


class Base(NamedTuple):
    """What is known of the published model that training began with."""

    model: str | None = None  # id on the hub
    license: Mapping[str, str] = {}  # metadata of its card
    is_random: bool = False  # there is none
    commit: str | None = None  # of the model on the hub

    @property
    def metadata(self) -> dict[str, Any]:
        names = {"base_model": self.model, COMMIT: self.commit}
        return {**{key: name for key, name in names.items() if name}, **self.license}


class TrainedRun(NamedTuple):
    """How a model was trained."""

    dataset: str
    num_rows: int
    stage: str
    summary: str  # of the stage
    init: str  # what its training began with
    options: Mapping[str, Any]
    seed: int
    metric: str  # that selected the checkpoint
    best_value: float | None
    best_step: int | None
    base: Base
    adapters_of: str | None = None  # of a model that is stored without its base's weights


def read_base(folder: Path) -> Base:
    """What the card in the folder of a model says of its base; nothing without a readable card.

    The card of any model has its licence. Its base model is taken from cards of this module only:
    elsewhere it is the one before, not the model in the folder.
    """
    try:
        metadata = metadata_load(folder / CARD) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return Base()
    values = {key: metadata[key] for key in LICENSE if isinstance(metadata.get(key), str)}
    tags, *names = (metadata.get(key) for key in ("tags", "base_model", COMMIT))
    if not isinstance(tags, list) or TAG not in tags:
        return Base(license=values)
    model, commit = (name if isinstance(name, str) else None for name in names)
    return Base(model, values, RANDOM in tags, commit)


def backbone_card(text: str, base: Base) -> str:
    """The card of a backbone, which `read_base` reads again."""
    return f"{header(base)}\n\n{text}\n"


def header(base: Base, *tags: str) -> str:
    """The YAML block of a card."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG, *tags, *([RANDOM] if base.is_random else [])],
        **base.metadata,
    )
    return f"---\n{data.to_yaml()}\n---"


def trained_card(run: TrainedRun, encoder: PromptEncoder, max_history: int) -> str:
    """The card of a trained model: data, stage, base, validation, prompt, use, options."""
    options = yaml.safe_dump(dict(run.options), sort_keys=False, allow_unicode=True)
    sections = [
        header(run.base, "recommendation", run.stage),
        f"# {run.dataset}, `rere {run.stage}`",
        f"A language model that recommends the next of {len(encoder.titles):,} items after a "
        "user's history. It was trained with `rere`, a study of ReRe (arXiv 2510.12211).",
        summary(run, len(encoder.titles)),
        TEST_METRICS,
        *prompt_sections(encoder, max_history),
        *use_sections(encoder, run.adapters_of is not None),
        "## Options",
        f"All options of `rere {run.stage}` that change results, also those at their defaults:",
        fenced(options.strip(), "yaml"),
    ]
    return "\n\n".join(sections) + "\n"


def summary(run: TrainedRun, num_items: int) -> str:
    """The table of what the model was made from, how, and how well it did in validation."""
    base, names = run.base, run.base.license
    source = f"the page of {base.model} on the hub" if base.model else "where you got it"
    licence = names.get("license_name") or names.get("license")
    licence = licence or f"not found in its files; see {source}"
    model = "none: the first stage began with random weights" if base.is_random else base.model
    if base.commit:
        model = f"{model}, commit {base.commit}"
    rows = {
        "data set": f"{run.dataset}: {num_items:,} items, {run.num_rows:,} training rows",
        "stage": f"`rere {run.stage}`. {run.summary}",
        "started from": run.init,
        "base model": model or "unknown",
        **({"weights": f"LoRA adapters of {run.adapters_of}"} if run.adapters_of else {}),
        **({} if base.is_random else {"licence of the base model": licence}),
        "seed": str(run.seed),
        "validation": validation(run),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {row} |" for name, row in rows.items())])


def validation(run: TrainedRun) -> str:
    """The best validation, whose weights were kept."""
    if run.best_value is None:
        return "none"
    where = f"step {run.best_step}" if run.best_step else "step 0, the initial model"
    return f"{run.metric} {run.best_value:.4f} at {where}, the best; its weights were kept"


def prompt_sections(encoder: PromptEncoder, max_history: int) -> list[str]:
    """The prompt and the response, for the first titles of the catalogue."""
    history, answer = example(encoder)
    return [
        "## Prompt",
        "The prompt for a history of titles, oldest first:",
        fenced(prompt_text(INSTRUCTIONS[0], history), "text"),
        f"`{SEPARATOR!r}` separates titles, and the prompt ends with a line break. A response to "
        f"it, which the token `{encoder.tokenizer.eos_token}` follows:",
        fenced(repr(response_text(answer)), "text"),
        f"A history is cut to its latest {max_history} items, and to as many as a prompt of "
        f"{MAX_PROMPT_TOKENS} tokens holds. Its instruction is one of these in training, and the "
        "first of them in `Recommender`:",
        "\n".join(f"* {instruction}" for instruction in INSTRUCTIONS),
    ]


def use_sections(encoder: PromptEncoder, is_adapters: bool) -> list[str]:
    """Code that recommends, with `rere` and without."""
    history, _ = example(encoder)
    packages, loader = "`transformers` alone", "AutoModelForCausalLM"
    imports = f"from transformers import {loader}, AutoTokenizer"
    if is_adapters:
        packages, loader = "`transformers` and `peft`", "AutoPeftModelForCausalLM"
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    bos = "tokenizer.bos_token_id, " if encoder.bos else ""
    return [
        "## Use",
        "Recommend items of the catalogue, by constrained beam search:",
        fenced(
            "from huggingface_hub import snapshot_download\n"
            "from rere import Recommender\n\n"
            f'recommender = Recommender(snapshot_download("{REPO}"))\n'
            f"for item in recommender.recommend({history!r}, top=10):\n"
            "    print(item.id, item.title, item.score)",
            "python",
        ),
        f"Generate text with {packages}, which may be the title of no item:",
        fenced(
            f"import torch\n{imports}\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{REPO}")\n'
            f'model = {loader}.from_pretrained("{REPO}")\n'
            f"prompt = {prompt_text(INSTRUCTIONS[0], history)!r}\n"
            f"ids = torch.tensor([[{bos}*tokenizer(prompt, add_special_tokens=False).input_ids]])\n"
            "mask = torch.ones_like(ids)\n"
            "output = model.generate(ids, attention_mask=mask, max_new_tokens=64)\n"
            "print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))",
            "python",
        ),
    ]


def example(encoder: PromptEncoder) -> tuple[list[str], str]:
    """A history and the title after it: the first ones of the catalogue, no user's."""
    return list(encoder.titles[:2]), encoder.titles[:3][-1]


def fenced(text: str, language: str) -> str:
    """A block of code, whatever backticks the text has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def complete_card(card: str, repo: str, metrics: Mapping[str, Any] | None) -> str:
    """A card with the name of its repository and, if there are any, the test metrics.

    `metrics` is the content of a metrics.json.
    """
    card = card.replace(f'"{REPO}"', f'"{repo}"')
    return card if metrics is None else card.replace(TEST_METRICS, test_section(metrics), 1)


def test_section(metrics: Mapping[str, Any]) -> str:
    """The section of the test metrics, title level, with their intervals."""

    def cell(name: str) -> str:
        value, low, high = (metrics[f"{name}{suffix}"] for suffix in ("", "_low", "_high"))
        return f"{value:.4f} [{low:.4f}, {high:.4f}]"

    rows = [f"| {k} | {cell(f'HR@{k}')} | {cell(f'NDCG@{k}')} |" for k in CUTOFFS]
    return "\n".join(
        [
            "## Test metrics",
            "",
            f"Means over {metrics['rows']:,} test rows of {metrics['dataset']}, ranked against the "
            "whole catalogue, and 95 % bootstrap intervals over users:",
            "",
            "| K | HR@K | NDCG@K |",
            "|---|---|---|",
            *rows,
        ]
    )
