"""The true top K of a catalogue by best-first search, with a proof.

Scores are sums of log-probabilities, so they only fall along a path: no leaf below a node scores
more than the node. The search expands the best node first and ends when no open node scores more
than the K-th result. A beam search cannot tell whether it has missed a better item.

B rows, K results, M nodes expanded by a pass, N open nodes, F children of a node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine import SearchScoring
from rere.engine.model.decoder import eval_mode
from rere.engine.search.beam import Beams, empty_beams, keep_best
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.paths import KnownScores
from rere.prefix_tree import PrefixTree


class ProvenTopK(NamedTuple):
    """The best leaves found, and how many of them are proved to be the true best, in order."""

    leaf: Tensor  # (B, K) i64, -1 where there is none
    score: Tensor  # (B, K) f32
    num_proved: Tensor  # (B,) i64, leading ranks that are proved
    num_expanded: Tensor  # (B,) i64, nodes whose children the model has scored, with the root


class OpenNodes(NamedTuple):
    """Nodes whose score is known but not yet that of their children, best first."""

    node: Tensor  # (B, N) i64
    bound: Tensor  # (B, N) f32, no leaf below scores more; -inf where there is no node
    parent: Tensor  # (B, N) i64, index of the expanded path that it extends


@torch.no_grad()
def best_first_search(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_results: int,
    scoring: SearchScoring = "vocabulary",
    max_nodes: int = 1024,
    width: int = 16,
) -> ProvenTopK:
    """The `num_results` best paths of the tree for each prompt.

    A row ends when they are proved or once it has expanded `max_nodes` nodes. A pass expands
    `width` nodes per row. The length penalty is 0. Raises ValueError for numbers below 1, and the
    errors of `rere.engine.search.beam.beam_search`.
    """
    if min(num_results, max_nodes, width) < 1:
        raise ValueError("num_results, max_nodes and width must be at least 1")
    with eval_mode(model):
        # Whole edges, so that a pass completes the score of a node.
        scorer = PathScorer(model, tree, prompts, scoring, whole_edges=True)
        paths, known, _ = scorer.start()
        score = known.forced[:, :, : tree.root_length].sum(-1)
        results = empty_beams(score, num_results)
        none = paths.node[:, :0]
        expanded, waiting = known, OpenNodes(none, score[:, :0], none)
        num_expanded = torch.ones_like(paths.node[:, 0])
        while True:
            results, added = open_children(scorer, paths.node, score, known, results, expanded)
            waiting = add_open(waiting, added, results, max_nodes + width)
            chosen, waiting = take_best(waiting, width, num_expanded < max_nodes)
            paths = scorer.enter(chosen.node, chosen.bound, chosen.parent)
            plan = scorer.plan(paths, expanded)
            if plan.num_paths == 0:
                return prove(results, waiting, num_expanded)
            paths, known = scorer.feed(paths, expanded, plan)
            num_expanded = num_expanded + paths.score.isfinite().sum(-1)
            score = paths.score + sum_forced(scorer, paths.node, known)
            expanded = append_expanded(expanded, known)


def open_children(
    scorer: PathScorer,
    node: Tensor,
    score: Tensor,
    known: KnownScores,
    results: Beams,
    expanded: KnownScores,
) -> tuple[Beams, OpenNodes]:
    """The children of the newly expanded `node` (B, M): finished ones as results, others open.

    `score` (B, M) is that of the nodes' paths, which are the last M of `expanded`.
    """
    tree = scorer.tree
    is_leaf = tree.fanout[node] == 0
    results = keep_best(results, node, score.masked_fill(~is_leaf, -torch.inf))
    fanout = known.children.shape[-1]
    child, exists = tree.children(node, fanout)
    child = child.flatten(1)
    bound = (score[..., None] + known.children).masked_fill(~exists, -torch.inf).flatten(1)
    num_paths = expanded.first_forced.shape[1]
    parent = torch.arange(num_paths - node.shape[1], num_paths, device=node.device)
    parent = parent.repeat_interleave(fanout).expand_as(child)

    # A leaf without further tokens to predict is already a result.
    is_leaf = tree.fanout[child] == 0
    is_done = is_leaf if scorer.by_decision else is_leaf & (tree.edge_length[child] == 1)
    results = keep_best(results, child, bound.masked_fill(~is_done, -torch.inf))
    return results, OpenNodes(child, bound.masked_fill(is_done, -torch.inf), parent)


def add_open(waiting: OpenNodes, added: OpenNodes, results: Beams, max_open: int) -> OpenNodes:
    """The best `max_open` of both that may still enter the results.

    `max_open` exceeds what a row can still expand, so that dropped nodes affect no proof.
    """
    both = OpenNodes(*(torch.cat(pair, dim=1) for pair in zip(waiting, added, strict=True)))
    bound = both.bound.where(both.bound > results.score[:, -1:], -torch.inf)
    bound, best = bound.topk(min(max_open, bound.shape[1]))
    return OpenNodes(both.node.gather(1, best), bound, both.parent.gather(1, best))


def take_best(waiting: OpenNodes, width: int, may_expand: Tensor) -> tuple[OpenNodes, OpenNodes]:
    """The first `width` open nodes of the rows that `may_expand` (B,), and all the others."""
    rank = torch.arange(waiting.bound.shape[1], device=may_expand.device)
    is_chosen = (rank < width) & may_expand[:, None]
    chosen = waiting._replace(bound=waiting.bound.where(is_chosen, -torch.inf))
    chosen = OpenNodes(*(x[:, :width] for x in chosen))
    return chosen, waiting._replace(bound=waiting.bound.masked_fill(is_chosen, -torch.inf))


def sum_forced(scorer: PathScorer, node: Tensor, known: KnownScores) -> Tensor | float:
    """Log-probability (B, M) of the edge into `node` (B, M) without its first token."""
    if scorer.by_decision:
        return 0.0
    offset = torch.arange(known.forced.shape[-1], device=node.device)
    on_edge = offset < (scorer.tree.edge_length[node] - 1)[..., None]
    return known.forced.where(on_edge, 0).sum(-1)


def append_expanded(expanded: KnownScores, known: KnownScores) -> KnownScores:
    """All expanded paths, those of `known` last. Of these only their fed tokens are kept."""
    num_new = known.ancestors.shape[-1] - expanded.ancestors.shape[-1]
    ancestors = torch.cat([pad(expanded.ancestors, (0, num_new)), known.ancestors], dim=1)
    zero = known.children.new_zeros(*ancestors.shape[:2], 1)
    return KnownScores(zero, zero, zero[..., 0].long(), ancestors)


def prove(results: Beams, waiting: OpenNodes, num_expanded: Tensor) -> ProvenTopK:
    """The results, of which those are proved that score at least the bound of every open node."""
    bound = waiting.bound.amax(-1, keepdim=True)
    is_proved = results.score.isfinite() & (results.score >= bound)
    return ProvenTopK(*results, is_proved.sum(-1), num_expanded)
