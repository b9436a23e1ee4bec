"""Exact beam search over a prefix tree, behind prompts that are computed once.

Each row holds up to K unfinished beams (`Paths`) and the K best finished ones so far (`Beams`).
`step` extends every beam by the scores that are known, moves those that reach a leaf to the
finished ones and keeps the K best of the others. Once the next token of some beam has no score,
`PathScorer.feed` runs a forward pass. A row ends when no beam can beat its K finished ones.

Under `vocabulary` scores the result equals transformers' token-by-token search. A forward pass may
compute several tokens of an edge (`rere.engine.search.layout.limit_chains`); beams are still
pruned token by token, each row at its own pace. Under `catalogue` and `decisions` scores a step is
one decision: a child and all tokens of its edge.

B rows, K beams, F children of a node, C known tokens of an edge, W = 2 K continuations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine import SearchScoring
from rere.engine.model.decoder import eval_mode
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.paths import AuxiliaryScorer, KnownScores, Paths
from rere.engine.search.sizes import SearchSizes
from rere.prefix_tree import PrefixTree
from rere.pruning import RowTrees

FINISHED_SHARE = 0.5
"""Share of a batch's rows that must be finished before they are removed from the batch."""


class Beams(NamedTuple):
    """Finished paths, best first. Rows with fewer than K end in score -inf, leaf -1."""

    leaf: Tensor  # (B, K) i64, nodes of the tree
    score: Tensor  # (B, K) f32, log-probability of the whole path


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    tree: PrefixTree | RowTrees,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    scoring: SearchScoring = "vocabulary",
    length_penalty: float = 0.0,
    temperature: float = 1.0,
    auxiliary: AuxiliaryScorer | None = None,
    sizes: SearchSizes | None = None,
) -> Beams:
    """The `num_beams` best paths for each prompt, (B, num_beams), of the tree or the row's own.

    `tree` and `auxiliary` lie on the model's device. Final scores are divided by length **
    `length_penalty`, the length in tokens including the end of sequence. `sizes` are those of the
    model's device; None: its constants. Raises ValueError for num_beams below 1 and for a
    temperature of 0 or below; InputError for a prompt beyond the model's positions and for logits
    that are NaN.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, not {num_beams}")
    rows = torch.arange(len(prompts), device=model.device)
    with eval_mode(model):
        scorer = PathScorer(
            model, tree, prompts, scoring, temperature, auxiliary=auxiliary, sizes=sizes
        )
        beams, known, num_steps = scorer.start()
        found, results = (empty_beams(beams.score, num_beams) for _ in range(2))
        while True:
            for _ in range(num_steps):
                can_step = scorer.can_step(beams)
                # Most often an early decision already needs the next pass. A GPU, too, answers
                # sooner than it starts the hundred operations of a step without effect.
                if not can_step.any():
                    break
                beams, results = step(scorer, beams, known, results, can_step, length_penalty)
            plan = scorer.plan(beams, known)
            # Finished rows would be computed along with the others.
            if plan.num_rows <= (1 - FINISHED_SHARE) * len(rows):
                for of_all, of_some in zip(found, results, strict=True):
                    of_all[rows] = of_some
                if plan.num_rows == 0:
                    return found
                is_active = beams.score.isfinite().any(-1).int()
                active = is_active.argsort(descending=True, stable=True)[: plan.num_rows]
                rows, plan = rows[active], plan._replace(num_to_feed=plan.num_to_feed[active])
                beams = Paths(*(x[active] for x in beams))
                known = KnownScores(*(x[active] for x in known))
                results = Beams(*(x[active] for x in results))
                scorer.select(active)
            known = scorer.drop_unused_tokens(beams, known, plan)
            beams, known = scorer.feed(beams, known, plan)
            num_steps = plan.num_steps


def step(
    scorer: PathScorer,
    beams: Paths,
    known: KnownScores,
    results: Beams,
    can_step: Tensor,
    length_penalty: float,
) -> tuple[Paths, Beams]:
    """Extend each beam by a token, or a decision, in the rows where `can_step` (B, 1).

    While all beams of a row are inside edges, each has one continuation and none is pruned. They
    then take as many tokens at once as have scores in all of them.
    """
    tree, num_beams = scorer.tree, results.leaf.shape[1]
    node, num_taken, num_fed, score, parent = beams
    row = torch.arange(len(node), device=node.device)[:, None]
    forced, children = known.forced[row, parent], known.children[row, parent]  # (B, K, C or F)
    end = torch.minimum(tree.edge_length[node], num_fed + 1)  # tokens of the edge that are known
    is_at_end = num_taken >= end
    num_known = (end - num_taken).masked_fill(score.isneginf(), forced.shape[-1])
    stride = num_known.amin(-1, keepdim=True).clamp(min=1)
    ahead = torch.arange(forced.shape[-1], device=node.device)
    ahead = ahead - (num_taken - known.first_forced.gather(1, parent))[..., None]
    is_not_taken = (ahead < 0) | (ahead >= stride[..., None])
    inside = forced.masked_fill(is_not_taken, 0).sum(-1, keepdim=True)
    fanout = children.shape[-1]
    inside = pad(inside, (0, fanout - 1), value=-torch.inf)
    continued = score[..., None] + torch.where(is_at_end[..., None], children, inside)

    # 2 K continuations compete, so that K unfinished ones remain even if K of the best end.
    width = min(2 * num_beams, continued[0].numel())
    score, best = continued.flatten(1).topk(width)
    beam = best // fanout
    # A GPU gathers the four fields as fast as one.
    fields = torch.stack([node, num_taken, num_fed, parent])
    node, num_taken, num_fed, parent = gather_fields(fields, beam)
    enters = is_at_end.gather(1, beam) & (score > -torch.inf) & can_step
    node = torch.where(enters, tree.first_child[node] + best % fanout, node)
    num_taken = num_taken + stride
    if scorer.by_decision:
        num_taken = torch.where(enters, tree.edge_length[node], num_taken)
    else:
        num_taken = num_taken.masked_fill(enters, 1)
    num_fed = num_fed.masked_fill(enters, 0)

    # As in transformers, a path that ends outside the best K is discarded.
    ends = num_taken == scorer.leaf_length[node]
    result = bound = score
    if length_penalty:
        result = score / tree.depth[node].to(score.dtype) ** length_penalty
        bound = score / (tree.longest if length_penalty > 0 else 1) ** length_penalty
    first = slice(0, num_beams)
    result = result[:, first].masked_fill(~ends[:, first], -torch.inf)
    new_results = keep_best(results, node[:, first], result)

    # Scores only fall along a path: drop beams that can no longer beat the K results.
    is_closed = ends | (bound <= new_results.score[:, -1:])
    score, chosen = score.masked_fill(is_closed, -torch.inf).topk(min(num_beams, width))
    new_fields = gather_fields(torch.stack([node, num_taken, num_fed, parent]), chosen)

    old_score = beams.score
    if missing := score.shape[1] - old_score.shape[1]:
        fields = pad(fields, (0, missing))
        old_score = pad(old_score, (0, missing), value=-torch.inf)
    node, num_taken, num_fed, parent = torch.where(can_step, new_fields, fields)
    score = torch.where(can_step, score, old_score)
    return (
        Paths(node, num_taken, num_fed, score, parent),
        Beams(*(torch.where(can_step, a, b) for a, b in zip(new_results, results, strict=True))),
    )


def gather_fields(fields: Tensor, index: Tensor) -> Tensor:
    """Fields (4, B, K) of paths, those at `index` (B, N): (4, B, N)."""
    return fields.gather(2, index.expand(len(fields), -1, -1))


def empty_beams(score: Tensor, num_beams: int) -> Beams:
    """No finished path yet, in as many rows and the type of `score` (B, ...)."""
    empty = score.new_full((len(score), num_beams), -torch.inf)
    return Beams(torch.full_like(empty, -1, dtype=torch.long), empty)


def keep_best(results: Beams, leaf: Tensor, score: Tensor) -> Beams:
    """The best K of the results so far and new ones, `leaf` and `score` (B, N)."""
    scores, best = torch.cat([results.score, score], dim=1).topk(results.score.shape[1])
    leaves = torch.cat([results.leaf, leaf], dim=1).gather(1, best)
    return Beams(leaves.masked_fill(scores.isneginf(), -1), scores)
