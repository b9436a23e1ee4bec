"""What is measured: a model on a catalogue, asked for candidates in every way.

R rows, K candidates or results a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import PrefixTree
from rere.config.benchmarks import Candidates
from rere.data.splits import read_items, read_split
from rere.engine.search.best_first import best_first_search
from rere.engine.search.path_scorer import Scoring
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.evaluation.recommend import catalogue_of
from rere.tokenization import PromptEncoder

CERTIFIED = "certified"
TOP = 10
"""Ranks that are proved."""


class Side(NamedTuple):
    """One of the ways that are measured."""

    what: str  # one of `rere.config.training.RolloutStrategy`, or CERTIFIED
    scoring: Scoring
    candidates: int


class Found(NamedTuple):
    """What a side found for a row, on the host."""

    leaves: list[int]  # -1 for what is no item
    proved: bool  # whether they are the true top
    expanded: int  # nodes; 0 but of CERTIFIED


@dataclass(frozen=True)
class Subject:
    """A model, the tree of its catalogue, and rows, the shortest prompts first."""

    model: PreTrainedModel
    tree: PrefixTree  # on the model's device
    prompts: list[list[int]]
    seeds: Tensor  # (R,) i64, on the model's device
    targets: list[int]  # leaves
    max_nodes: int

    def find(self, side: Side, rows: range) -> list[Found]:
        """The candidates of some of the rows, without empty places."""
        prompts = self.prompts[rows.start : rows.stop]
        if side.what == CERTIFIED:
            return self.certify(side.scoring, prompts)
        seeds = self.seeds[rows.start : rows.stop]
        found = roll_out(
            self.model, self.tree, prompts, side.what, side.candidates, seeds, side.scoring
        )
        pairs = zip(found.leaf.tolist(), found.exists.sum(-1).tolist(), strict=True)
        return [Found(leaves[:count], False, 0) for leaves, count in pairs]

    def certify(self, scoring: Scoring, prompts: Sequence[Sequence[int]]) -> list[Found]:
        """The best TOP leaves of each prompt, and whether that is proved."""
        most = min(TOP, int((self.tree.fanout == 0).sum()))
        leaf, _, proved, expanded = best_first_search(
            self.model, self.tree, prompts, most, scoring, self.max_nodes
        )
        columns = (leaf.tolist(), (proved == most).tolist(), expanded.tolist())
        return [Found(*row) for row in zip(*columns, strict=True)]


def load(options: Candidates, model: Path, data: Path) -> Subject:
    """The model of a folder in float32, and a sample of the test split."""
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
        targets=tree.leaf_of_item[rows["target"].to_list()][order].tolist(),
        max_nodes=options.max_nodes,
    )
