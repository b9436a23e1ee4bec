"""What is measured: a model on a catalogue, searched by us or by `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, set_seed

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import PrefixTree
from rere.config import Speed
from rere.data.splits import read_items, read_split
from rere.engine.beam import beam_search
from rere.prompts import MAX_PROMPT_TOKENS, PromptEncoder
from rere.speed.generate import TokenTree, generate
from rere.speed.measure import Prompts, peak_memory

ROOM = 512
"""Positions of the random model behind the longest prompt; no title is as long."""


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
        """The ranked leaves of one batch that `search` returned; filler is left out."""
        rows = [
            [self.leaf.get(tuple(x), -1) if isinstance(x, list) else x for x in r] for r in found
        ]
        return [[leaf for leaf in dict.fromkeys(row) if leaf >= 0] for row in rows]


def load(options: Speed, model: Path, data: Path, trained: bool, dtypes: Sequence[str]) -> Subject:
    """The trained model of a folder, or a random one with its tokenizer, on a data set."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(model)
    encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())

    def make() -> PreTrainedModel:
        return load_model(model) if trained else random_model(options, len(tokenizer))

    random = f"qwen2 {options.num_layers}x{options.hidden_size}"
    return Subject(
        name=" ".join(filter(None, (options.backbone, options.method))) if trained else random,
        models={dtype: make().eval().to(device, getattr(torch, dtype)) for dtype in dtypes},
        sequences=encoder.responses(),
        eos=tokenizer.eos_token_id,
    )


def random_model(options: Speed, vocab_size: int) -> Qwen2ForCausalLM:
    """A Qwen2 of the configured size with weights drawn from the seed."""
    set_seed(options.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=options.hidden_size,
            intermediate_size=4 * options.hidden_size,
            num_hidden_layers=options.num_layers,
            num_attention_heads=options.num_heads,
            num_key_value_heads=options.num_heads,
            max_position_embeddings=max(MAX_PROMPT_TOKENS, *options.prompt_lengths) + ROOM,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def sample(options: Speed, model: Path, data: Path) -> tuple[list[list[int]], list[int]]:
    """Prompts of a sample of the test split and their target items, the shortest prompts first.

    Rows of like length share a batch, so that little of it is padding, on every side.
    """
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    rows = read_split(data, "test", options.rows)
    prompts = encoder.prompts(rows["row_id"].to_list(), rows["history"].to_list(), options.seed)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return [prompts[row] for row in order], [rows["target"][row] for row in order]


def peak_of_search(
    options: Speed,
    model: Path,
    data: Path,
    trained: bool,
    side: Side,
    num_beams: int,
    prompts: list[list[int]],
) -> float | None:
    """MB above the weights that one side takes for a batch; to be called in a fresh process."""
    subject = load(options, model, data, trained, [side.dtype])
    # What is imported, and built of the catalogue, at the first search is there before.
    subject.search(side, 2, [prompts[0][:2]])
    return peak_memory(lambda: subject.search(side, num_beams, prompts), subject.device)
