"""The true top K of a catalogue, and how far it is proved.

Scores are sums of log-probabilities, so they only fall along a path: what is open below a node
scores at most what the node does. A best-first search therefore knows when no open path can
enter the top K any more, which a beam search never does.

B rows, K results, M paths expanded by a pass, N open paths, F children of a node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.model.decoder import eval_mode
from rere.engine.search.beam import Beams, merge, no_results
from rere.engine.search.path_scorer import KnownScores, PathScorer, Scoring


class ProvenTopK(NamedTuple):
    """The best leaves found, and how many of them are the true best in their true order."""

    leaf: Tensor  # (B, K) i64, -1 where there is none
    score: Tensor  # (B, K) f32
    proved: Tensor  # (B,) i64, the first so many ranks are proved
    expanded: Tensor  # (B,) i64, nodes that the model was asked about, the root included


class Open(NamedTuple):
    """Nodes that are known to follow but whose edge the model has not seen, best first."""

    node: Tensor  # (B, N) i64
    bound: Tensor  # (B, N) f32, no leaf below scores more; -inf where there is none
    origin: Tensor  # (B, N) i64, which expanded path it follows


@torch.no_grad()
def best_first_search(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_results: int,
    scoring: Scoring = "vocabulary",
    max_nodes: int = 1024,
    width: int = 16,
) -> ProvenTopK:
    """The `num_results` best paths of the tree for each prompt, by best-first search.

    It ends where they are proved, or once a row has expanded `max_nodes` nodes. A pass expands
    `width` of them a row. Length penalty 0. Raises ValueError for numbers below 1, and as
    `rere.engine.search.beam.beam_search` does.
    """
    if min(num_results, max_nodes, width) < 1:
        raise ValueError("num_results, max_nodes and width must be at least 1")
    with eval_mode(model):
        # Whole edges, so that a node's score is known at once.
        scorer = PathScorer(model, tree, prompts, scoring, whole_edges=True)
        paths, known, _ = scorer.start()
        score = known.forced[:, :, : tree.opening].sum(-1)
        results = no_results(score, num_results)
        none = paths.node[:, :0]
        seen, waiting = known, Open(none, score[:, :0], none)
        expanded = torch.ones_like(paths.node[:, 0])
        while True:
            results, added = expand(scorer, paths.node, score, known, results, seen)
            waiting = join(waiting, added, results, max_nodes + width)
            now, waiting = split(waiting, width, expanded < max_nodes)
            paths = scorer.enter(now.node, now.bound, now.origin)
            plan = scorer.plan(paths, seen)
            if plan.num_paths == 0:
                return certified(results, waiting, expanded)
            paths, known = scorer.feed(paths, seen, plan)
            expanded = expanded + paths.score.isfinite().sum(-1)
            score = paths.score + forced_sum(scorer, paths.node, known)
            seen = remember(seen, known)


def expand(
    scorer: PathScorer,
    node: Tensor,
    score: Tensor,
    known: KnownScores,
    results: Beams,
    seen: KnownScores,
) -> tuple[Beams, Open]:
    """Results and open paths below `node` (B, M), whose paths score `score`, the last seen."""
    tree = scorer.tree
    is_leaf = tree.fanout[node] == 0
    results = merge(results, node, score.masked_fill(~is_leaf, -torch.inf))
    fanout = known.children.shape[-1]
    child, exists = tree.children(node, fanout)
    child = child.flatten(1)
    bound = (score[..., None] + known.children).masked_fill(~exists, -torch.inf).flatten(1)
    num_seen = seen.since.shape[1]
    origin = torch.arange(num_seen - node.shape[1], num_seen, device=node.device)
    origin = origin.repeat_interleave(fanout).expand_as(child)

    # A leaf with no token left to predict is a result at once.
    is_leaf = tree.fanout[child] == 0
    is_done = is_leaf if scorer.by_decision else is_leaf & (tree.length[child] == 1)
    results = merge(results, child, bound.masked_fill(~is_done, -torch.inf))
    return results, Open(child, bound.masked_fill(is_done, -torch.inf), origin)


def join(waiting: Open, added: Open, results: Beams, most: int) -> Open:
    """The best `most` of the open paths that may still enter the results.

    No row has nodes left to expand for more, so that what is dropped bounds nothing.
    """
    joined = Open(*(torch.cat(pair, dim=1) for pair in zip(waiting, added, strict=True)))
    bound = joined.bound.where(joined.bound > results.score[:, -1:], -torch.inf)
    bound, best = bound.topk(min(most, bound.shape[1]))
    return Open(joined.node.gather(1, best), bound, joined.origin.gather(1, best))


def split(waiting: Open, width: int, goes_on: Tensor) -> tuple[Open, Open]:
    """The first `width` open paths of the rows that go on, and all the others."""
    place = torch.arange(waiting.bound.shape[1], device=goes_on.device)
    is_now = (place < width) & goes_on[:, None]
    now = waiting._replace(bound=waiting.bound.where(is_now, -torch.inf))
    now = Open(*(x[:, :width] for x in now))
    return now, waiting._replace(bound=waiting.bound.masked_fill(is_now, -torch.inf))


def forced_sum(scorer: PathScorer, node: Tensor, known: KnownScores) -> Tensor | float:
    """Log-probability (B, M) of the tokens on the edges into `node` behind their first ones."""
    if scorer.by_decision:
        return 0.0
    place = torch.arange(known.forced.shape[-1], device=node.device)
    on_edge = place < (scorer.tree.length[node] - 1)[..., None]
    return known.forced.where(on_edge, 0).sum(-1)


def remember(seen: KnownScores, known: KnownScores) -> KnownScores:
    """All expanded paths: which fed tokens they hold is all that is needed of them."""
    added = known.ancestors.shape[-1] - seen.ancestors.shape[-1]
    ancestors = torch.cat([pad(seen.ancestors, (0, added)), known.ancestors], dim=1)
    zero = known.children.new_zeros(*ancestors.shape[:2], 1)
    return KnownScores(zero, zero, zero[..., 0].long(), ancestors)


def certified(results: Beams, waiting: Open, expanded: Tensor) -> ProvenTopK:
    bound = waiting.bound.amax(-1, keepdim=True)
    is_proved = results.score.isfinite() & (results.score >= bound)
    return ProvenTopK(*results, is_proved.sum(-1), expanded)
