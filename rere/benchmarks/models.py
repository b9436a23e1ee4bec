"""The model under test: searched by the engine or by transformers' `generate`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rere.backbones import load_for_inference, load_tokenizer
from rere.benchmarks.plain.generate import TokenTree, generate
from rere.benchmarks.timing import Prompts
from rere.data.dataset import read_items, read_split
from rere.devices import choose_device
from rere.engine.model.precision import arithmetic, full_float32
from rere.engine.search.beam import beam_search
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder

SCORINGS = ("vocabulary", "catalogue")


class Searcher(NamedTuple):
    """One of the compared searches: the engine's under a scoring, or `generate`."""

    name: str  # vocabulary, catalogue or generate
    dtype: str = "float32"


GENERATE = Searcher("generate")


class PromptRow(NamedTuple):
    """A row of a split: its prompt and the item id of its target."""

    row_id: int
    prompt: list[int]
    target: int


@dataclass(frozen=True)
class BenchmarkModel:
    """A model for arithmetic in each dtype, with the token sequences of its data set's titles."""

    name: str
    folder: Path
    data: Path
    models: dict[str, PreTrainedModel]  # by the dtype they compute in; weights as `precision` takes
    sequences: list[list[int]]
    eos: int
    dtype: str = "float32"
    """Arithmetic of training, whose weights are float32."""

    @property
    def float32(self) -> PreTrainedModel:
        return self.models["float32"]

    @property
    def device(self) -> torch.device:
        return next(iter(self.models.values())).device

    @property
    def vocab_size(self) -> int:
        return next(iter(self.models.values())).config.vocab_size

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree.build(self.sequences).to(self.device)

    @cached_property
    def host_tree(self) -> PrefixTree:
        return self.tree.to("cpu")

    @cached_property
    def token_tree(self) -> TokenTree:
        return TokenTree.build(self.sequences, self.vocab_size, self.device)

    @cached_property
    def leaf_of_sequence(self) -> dict[tuple[int, ...], int]:
        leaves = self.tree.leaf_of_item.tolist()
        return {tuple(tokens): leaf for tokens, leaf in zip(self.sequences, leaves, strict=True)}

    def sequence_of_leaf(self, leaf: int) -> list[int]:
        return self.sequences[self.tree.leaf_items[leaf][0]]

    def search(self, searcher: Searcher, num_beams: int, prompts: Prompts) -> list[list]:
        """Return the ranked leaves of each prompt, of `generate` ranked token sequences."""
        model = self.models[searcher.dtype]
        with self.precision(searcher.dtype):
            if searcher.name == GENERATE.name:
                return generate(model, self.token_tree, self.eos, prompts, num_beams)[0]
            return beam_search(model, self.tree, prompts, num_beams, searcher.name).leaf.tolist()

    def precision(self, dtype: str | None = None) -> AbstractContextManager[None]:
        """The project's arithmetic in `dtype`, by default that of training.

        float32 is without TF32, so that results can be compared.
        """
        dtype = dtype or self.dtype
        return full_float32(self.device) if dtype == "float32" else arithmetic(self.device, dtype)

    def to_leaves(self, found: list[list]) -> list[list[int]]:
        """Return the ranked leaves of each row that `search` found, without filler."""
        rows = [
            [self.leaf_of_sequence.get(tuple(x), -1) if isinstance(x, list) else x for x in row]
            for row in found
        ]
        return [[leaf for leaf in dict.fromkeys(row) if leaf >= 0] for row in rows]

    def sample_prompts(self, num_rows: int | None, seed: int) -> list[PromptRow]:
        """Return a sample of the test split, or all of it, the shortest prompts first.

        Batches then hold prompts of similar length and little padding, for every searcher.
        """
        rows = self.sample_rows("test", num_rows, seed)
        return sorted(rows, key=lambda row: len(row.prompt))

    def sample_rows(self, split: str, num_rows: int | None, seed: int) -> list[PromptRow]:
        titles = read_items(self.data)["title"].to_list()
        encoder = PromptEncoder(load_tokenizer(self.folder), titles)
        rows = read_split(self.data, split, num_rows)
        row_ids = rows["row_id"].to_list()
        prompts = encoder.encode_prompts(row_ids, rows["history"].to_list(), seed)
        return list(map(PromptRow, row_ids, prompts, rows["target"].to_list()))

    def describe(self, *words: str, dtype: str = "float32") -> str:
        """Return the `setting` of a table: model, data set, `words`, threads, dtype and device."""
        threads, is_cuda = f"{torch.get_num_threads()} threads", self.device.type == "cuda"
        return ", ".join([self.name, self.data.name, *words, threads, dtype, *["cuda"] * is_cuda])


def load_benchmark_model(
    name: str, folder: Path, data: Path, dtypes: Sequence[str] = ("float32",)
) -> BenchmarkModel:
    """Load the model in `folder` and the catalogue of the data set in `data`.

    All weights have a gradient. So autocast keeps those that it casts within a search, which
    `generate` needs for its head.
    """
    device = choose_device()
    tokenizer = load_tokenizer(folder)
    encoder = PromptEncoder(tokenizer, read_items(data)["title"].to_list())
    models = {dtype: load_for_inference(folder, dtype, device).requires_grad_() for dtype in dtypes}
    return BenchmarkModel(
        name, folder, data, models, sequences=encoder.encode_responses(), eos=tokenizer.eos_token_id
    )
