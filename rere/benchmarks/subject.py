"""What is measured: a model on a catalogue, searched by us or by `generate`."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import PrefixTree
from rere.data.splits import read_items, read_split
from rere.engine.search.beam import beam_search
from rere.tokenization import PromptEncoder
from rere.benchmarks.plain.generate import TokenTree, generate
from rere.benchmarks.timing import Prompts, peak_memory

SCORINGS = ("vocabulary", "catalogue")
"""Ours."""


class Side(NamedTuple):
    """One of those that search: we under a scoring, or `generate`."""

    what: str  # vocabulary, catalogue or generate
    dtype: str = "float32"


GENERATE = Side("generate")


@dataclass(frozen=True)
class Subject:
    """A model in float32, and in bfloat16, and the token sequences of a catalogue."""

    name: str
    models: dict[str, PreTrainedModel]  # by dtype
    sequences: list[list[int]]
    eos: int

    @property
    def device(self) -> torch.device:
        return next(iter(self.models.values())).device

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree.build(self.sequences).to(self.device)

    @cached_property
    def host_tree(self) -> PrefixTree:
        """The tree where batches are packed."""
        return self.tree.to("cpu")

    @cached_property
    def token_tree(self) -> TokenTree:
        vocab_size = next(iter(self.models.values())).config.vocab_size
        return TokenTree.build(self.sequences, vocab_size).to(self.device)

    @cached_property
    def leaf(self) -> dict[tuple[int, ...], int]:
        """The leaf of the tree that each sequence ends in."""
        leaves = self.tree.leaf_of_item.tolist()
        return {tuple(tokens): leaf for tokens, leaf in zip(self.sequences, leaves, strict=True)}

    def search(self, side: Side, num_beams: int, prompts: Prompts) -> list[list]:
        """Ranked leaves of each prompt, or with `generate` ranked token sequences, on the host."""
        model = self.models[side.dtype]
        if side == GENERATE:
            return generate(model, self.token_tree, self.eos, prompts, num_beams)[0]
        return beam_search(model, self.tree, prompts, num_beams, side.what).leaf.tolist()

    def leaves(self, found: list[list]) -> list[list[int]]:
        """The ranked leaves of the rows that `search` returned; filler is left out."""
        rows = [
            [self.leaf.get(tuple(x), -1) if isinstance(x, list) else x for x in r] for r in found
        ]
        return [[leaf for leaf in dict.fromkeys(row) if leaf >= 0] for row in rows]


def load(name: str, model: Path, data: Path, dtypes: Sequence[str]) -> Subject:
    """The model in a folder, on a data set."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(model)
    encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
    return Subject(
        name=name,
        models={
            dtype: load_model(model).eval().to(device, getattr(torch, dtype)) for dtype in dtypes
        },
        sequences=encoder.responses(),
        eos=tokenizer.eos_token_id,
    )


def reference_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights a little larger, so that there is a divergence to compare."""
    reference = copy.deepcopy(model).requires_grad_(False)
    for weight in reference.parameters():
        weight.mul_(1.01)
    return reference


def optimizer_of(model: PreTrainedModel) -> torch.optim.Optimizer:
    """The Trainer's, but a step leaves the weights as they are: all steps start from the same."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)


def sample(
    model: Path, data: Path, rows: int | None, seed: int
) -> tuple[list[list[int]], list[int]]:
    """Prompts of a sample of the test split, or of all of it, and their target items.

    The shortest prompts come first: rows of like length share a batch, so that little of it is
    padding, on every side.
    """
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    chosen = read_split(data, "test", rows)
    prompts = encoder.prompts(chosen["row_id"].to_list(), chosen["history"].to_list(), seed)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return [prompts[row] for row in order], [chosen["target"][row] for row in order]


def peak_of_search(
    model: Path, data: Path, side: Side, num_beams: int, prompts: Prompts
) -> float | None:
    """MB above the weights that one side takes for a batch; to be called in a fresh process."""
    subject = load("", model, data, [side.dtype])
    # What is imported, and built of the catalogue, at the first search is there before.
    subject.search(side, 2, [prompts[0][:2]])
    return peak_memory(lambda: subject.search(side, num_beams, prompts), subject.device)
