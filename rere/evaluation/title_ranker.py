"""Rank items after histories with a language model, by constrained beam search."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedModel

from rere.backbones import load_for_inference, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.evaluation import BeamSearch
from rere.devices import choose_dtype
from rere.engine.model.precision import arithmetic
from rere.engine.search.batch_size import max_batch_size
from rere.engine.search.beam import Beams, beam_search
from rere.engine.search.sizes import SearchSizes, choose_sizes
from rere.errors import InputError
from rere.evaluation.ranking import Ranking, rank_by_length, rank_leaves, with_first_title
from rere.prefix_tree import PrefixTree
from rere.pruning import RowTrees, prune, prune_rows
from rere.tokenization import PromptEncoder


@dataclass(frozen=True)
class TitleRanker:
    """A language model, titles, and the prefix tree of the items that may be ranked.

    `titles` are those of the catalogue, then others that only histories name. `tree` numbers the
    allowed items from 0; `items` has their numbers in the catalogue.
    """

    model: PreTrainedModel
    encoder: PromptEncoder
    tree: PrefixTree  # on the CPU
    items: np.ndarray  # i64, ascending
    options: BeamSearch
    dtype: str  # of its arithmetic
    sizes: SearchSizes

    @classmethod
    def load(
        cls, folder: Path, options: BeamSearch, device: torch.device
    ) -> tuple[Self, Catalogue]:
        """The ranker and the catalogue in the folder of a trained model.

        Raises InputError if the catalogue is missing or of another tokenizer.
        """
        model = load_for_inference(folder, options.dtype, device)
        path = folder / CATALOGUE
        catalogue = Catalogue.load(path, model.config.get_text_config().vocab_size)
        encoder = PromptEncoder(load_tokenizer(folder), catalogue.titles)
        if catalogue.fingerprint != encoder.fingerprint():
            raise InputError(
                f"{path}: made with another tokenizer or prompt wording; train the model again"
            )
        items, dtype = np.arange(len(catalogue.titles)), choose_dtype(options.dtype, model.device)
        with arithmetic(model.device, dtype):
            sizes = choose_sizes(model)
        return cls(model, encoder, catalogue.tree, items, options, dtype, sizes), catalogue

    def only(self, items: Sequence[int]) -> Self:
        numbers = self.numbers_of(items)
        return replace(
            self, tree=prune(self.tree, torch.from_numpy(numbers)), items=self.items[numbers]
        )

    def with_titles(self, titles: Sequence[str]) -> Self:
        """A ranker of new items; histories may name them or titles that were known before."""
        encoder = PromptEncoder(self.encoder.tokenizer, titles)
        tree = PrefixTree.build(encoder.encode_responses())
        encoder = PromptEncoder(encoder.tokenizer, [*titles, *self.encoder.titles])
        return replace(self, encoder=encoder, tree=tree, items=np.arange(len(titles)))

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        excluded: Sequence[Collection[int]],
        top: int,
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, Ranking]]:
        """As `Ranker.rank`; scores are log-probabilities of titles."""
        prompts = self.encoder.encode_histories(histories)
        width = max(self.options.num_beams, top)
        longest = max(map(len, prompts), default=0)
        batch_size = batch_size or max_batch_size(
            self.model, self.tree, longest, width, self.options.scoring, self.sizes
        )
        without = [self.leaves_without(items) for items in excluded]
        num_leaves = int((self.tree.fanout == 0).sum())
        left = [row for row, leaves in enumerate(without) if len(leaves) < num_leaves]
        yield from ((row, ([], [])) for row in {*range(len(prompts))}.difference(left))

        def rank(batch: list[int]) -> Iterator[Ranking]:
            leaf, score = self.search(
                [prompts[row] for row in batch], [without[row] for row in batch], width
            )
            for row, leaves, scores in zip(batch, leaf.tolist(), score.tolist(), strict=True):
                items_of = partial(self.items_of, excluded=excluded[row])
                items, values = rank_leaves(leaves, scores, items_of)
                yield items[:top], values[:top]

        yield from rank_by_length(prompts, left, batch_size, rank, ", num_beams or top")

    def search(
        self, prompts: Sequence[list[int]], without: Sequence[Collection[int]], width: int
    ) -> Beams:
        """The best `width` leaves of `tree` for each prompt, but those it is `without`."""
        tree: PrefixTree | RowTrees = self.tree_on_device
        if any(without):
            tree = prune_rows(self.tree, without).to(self.model.device)
        options = self.options
        with arithmetic(self.model.device, self.dtype):
            leaf, score = beam_search(
                self.model,
                tree,
                prompts,
                width,
                options.scoring,
                options.length_penalty,
                sizes=self.sizes,
            )
        if isinstance(tree, RowTrees):
            leaf = torch.where(leaf < 0, leaf, tree.original[leaf])
        return Beams(leaf, score)

    @cached_property
    def tree_on_device(self) -> PrefixTree:
        return self.tree.to(self.model.device)

    def leaves_without(self, excluded: Collection[int]) -> list[int]:
        """The leaves all of whose items are excluded."""
        numbers = self.numbers_of([*excluded])
        leaves = {*self.tree.leaf_of_item[numbers[numbers >= 0]].tolist()}
        return [leaf for leaf in leaves if not self.items_of(leaf, excluded)]

    def numbers_of(self, items: Sequence[int]) -> np.ndarray:
        """The numbers of items in the tree, (items,) i64; -1 for those not allowed."""
        wanted = np.asarray(items, dtype=np.int64)
        number = np.searchsorted(self.items, wanted).clip(max=len(self.items) - 1)
        return np.where(self.items[number] == wanted, number, -1)

    def items_of(self, leaf: int, excluded: Collection[int]) -> list[int]:
        """The items that a leaf ranks, in order of item id: those with its first one's title."""
        items = self.items[self.tree.items_of(leaf)].tolist()
        return with_first_title([i for i in items if i not in excluded], self.encoder.titles)
