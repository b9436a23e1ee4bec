"""What is measured: a trained model on a catalogue, asked for candidates in every way.

R rows, K candidates or results a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import PrefixTree
from rere.config import Candidates
from rere.data.splits import read_items, read_split
from rere.engine.batching import rows_that_fit
from rere.engine.certificate import certified_top
from rere.engine.frontier import Scoring
from rere.engine.noise import row_seeds
from rere.engine.rollout import roll_out
from rere.evaluation.recommend import catalogue_of
from rere.prompts import PromptEncoder

CERTIFIED = "certified"
TOP = 10
"""Ranks that are proved."""


class Side(NamedTuple):
    """One of the ways that are measured."""

    what: str  # one of `rere.engine.rollout.Rollout`, or CERTIFIED
    scoring: Scoring
    candidates: int  # K


class Found(NamedTuple):
    """What a side found, on the host."""

    leaf: Tensor  # (R, K) i64, -1 for what is no item
    exists: Tensor  # (R, K) bool
    proved: Tensor  # (R,) i64, ranks proved; 0 but of CERTIFIED
    expanded: Tensor  # (R,) i64, nodes; 0 but of CERTIFIED

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(*map(torch.cat, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Subject:
    """A model, the tree of its catalogue, and rows, the shortest prompts first."""

    model: PreTrainedModel
    tree: PrefixTree  # on the model's device
    prompts: list[list[int]]
    seeds: Tensor  # (R,) i64, on the model's device
    targets: Tensor  # (R,) i64, leaves, on the host
    max_nodes: int

    def batches(self, num_beams: int) -> list[range]:
        """Rows, as many at a time as a search with `num_beams` has room for."""
        longest = len(self.prompts[-1])
        size = rows_that_fit(self.model, self.tree, longest, num_beams, "vocabulary")
        numbers = range(len(self.prompts))
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def find(self, side: Side, rows: range) -> Found:
        """Get the candidates of some of the rows."""
        prompts = self.prompts[rows.start : rows.stop]
        seeds = self.seeds[rows.start : rows.stop]
        if side.what == CERTIFIED:
            leaf, _, proved, expanded = certified_top(
                self.model, self.tree, prompts, TOP, side.scoring, self.max_nodes
            )
            exists = leaf >= 0
        else:
            found = roll_out(
                self.model, self.tree, prompts, side.what, side.candidates, seeds, side.scoring
            )
            leaf, exists = found.leaf, found.exists
            proved = expanded = torch.zeros_like(leaf[:, 0])
        return Found(leaf.cpu(), exists.cpu(), proved.cpu(), expanded.cpu())

    def is_proved(self, certified: Found) -> Tensor:
        """Which rows (R,) have the whole of their top proved: all items where there are fewer."""
        num_leaves = int((self.tree.fanout == 0).sum())
        return certified.proved >= min(TOP, num_leaves)


def load(options: Candidates, model: Path, data: Path) -> Subject:
    """The trained model of a folder in float32, and a sample of the test split."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_model(model).eval().to(device)
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    tree = catalogue_of(model, policy, encoder).tree
    rows = read_split(data, "test", options.rows)
    row_ids = rows["row_id"].to_list()
    prompts = encoder.prompts(row_ids, rows["history"].to_list(), options.seed)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return Subject(
        model=policy,
        tree=tree.to(device),
        prompts=[prompts[row] for row in order],
        seeds=row_seeds(options.seed, 0, row_ids)[order].to(device),
        targets=tree.leaf_of_item[rows["target"].to_list()][order],
        max_nodes=options.max_nodes,
    )
