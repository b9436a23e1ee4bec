"""Exact constrained beam search behind a prompt that is computed once.

Under `vocabulary` scores it is the token-synchronous search of transformers: a forward pass may
feed chains of forced tokens (`rere.engine.search.layout.look_ahead`), and the pruning over them is
replayed, each row at its own pace. Under `catalogue` and `decisions` scores beams are compared
decision by decision.

B rows, K beams, F children of a node, W = 2 K continuations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.model.decoder import eval_mode
from rere.engine.search.path_scorer import (
    AuxiliaryScorer,
    KnownScores,
    Paths,
    PathScorer,
    Scoring,
    take,
)

NEVER_WAITS = {"cpu"}
"""Devices whose tensors the host reads without waiting."""

FINISHED = 0.5
"""Share of a batch's rows that have to be finished for the others to go on without them."""


class Beams(NamedTuple):
    """Finished hypotheses, best first. Rows with fewer than K end in score -inf, leaf -1."""

    leaf: Tensor  # (B, K) i64, nodes of the tree
    score: Tensor  # (B, K) f32, log-probability of the whole path


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    scoring: Scoring = "vocabulary",
    length_penalty: float = 0.0,
    temperature: float = 1.0,
    auxiliary: AuxiliaryScorer | None = None,
) -> Beams:
    """The `num_beams` best paths of the tree for each prompt, (B, num_beams).

    `tree` lies on the model's device. Final scores are divided by length ** `length_penalty`,
    the length in tokens including the end of sequence. An `auxiliary` lies on the model's device,
    too. Raises ValueError for num_beams below 1
    and a temperature that is not above 0, InputError for a prompt beyond the model's positions
    and for logits that are not numbers.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, not {num_beams}")
    rows = torch.arange(len(prompts), device=model.device)
    with eval_mode(model):
        scorer = PathScorer(model, tree, prompts, scoring, temperature, auxiliary=auxiliary)
        beams, known, num_steps = scorer.start()
        found, results = (no_results(beams.score, num_beams) for _ in range(2))
        while True:
            for _ in range(num_steps):
                can_step = scorer.can_step(beams)
                # Most often a decision early on asks for the next pass.
                if model.device.type in NEVER_WAITS and not can_step.any():
                    break
                beams, results = step(scorer, beams, known, results, can_step, length_penalty)
            plan = scorer.plan(beams, known)
            # A row in which no path goes on would be computed, to no end, with the others.
            if plan.num_rows <= (1 - FINISHED) * len(rows):
                for of_all, of_some in zip(found, results, strict=True):
                    of_all[rows] = of_some
                if plan.num_rows == 0:
                    return found
                goes_on = beams.score.isfinite().any(-1).int()
                kept = goes_on.argsort(descending=True, stable=True)[: plan.num_rows]
                rows, plan = rows[kept], plan._replace(count=plan.count[kept])
                beams, known, results = (
                    type(x)(*(y[kept] for y in x)) for x in (beams, known, results)
                )
                scorer.select(kept)
            known = scorer.forget(beams, known, plan)
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
    """Each beam takes a token, or a decision, in the rows that `can_step` (B, 1).

    While all beams of a row are on edges they do not compete: it takes as many tokens at once as
    all of them can.
    """
    tree, num_beams = scorer.tree, results.leaf.shape[1]
    node, taken, fed, score, origin = beams
    end = torch.minimum(tree.length[node], fed + 1)  # of an edge, or of what is known of it
    in_chain = taken < end
    forced, since = take(known.forced, origin), known.since.gather(1, origin)
    room = (end - taken).masked_fill(score.isneginf(), forced.shape[-1])
    stride = room.amin(-1, keepdim=True).clamp(min=1)
    place = torch.arange(forced.shape[-1], device=node.device) - (taken - since)[..., None]
    takes = (place >= 0) & (place < stride[..., None])
    only = forced.where(takes, 0).sum(-1, keepdim=True)
    children = take(known.children, origin)
    fanout = children.shape[-1]
    only = pad(only, (0, fanout - 1), value=-torch.inf)
    continued = score[..., None] + torch.where(in_chain[..., None], only, children)
    continued = continued.masked_fill(~can_step[..., None], -torch.inf)

    # Twice the beams compete, so that K go on even when K of the best end.
    width = min(2 * num_beams, continued[0].numel())
    score, best = continued.flatten(1).topk(width)
    beam = best // fanout
    node, taken, fed, origin = (x.gather(1, beam) for x in (node, taken, fed, origin))
    enters = ~in_chain.gather(1, beam) & score.isfinite()
    node = torch.where(enters, tree.first_child[node] + best % fanout, node)
    taken = torch.where(enters, tree.length[node] if scorer.by_decision else 1, taken + stride)
    fed = fed.masked_fill(enters, 0)

    # As in transformers, an end outside the best K is no result.
    ends = (tree.fanout[node] == 0) & (taken == tree.length[node])
    is_result = ends & (torch.arange(width, device=ends.device) < num_beams)
    result = score / tree.depth[node].to(score.dtype) ** length_penalty
    new_results = merge(results, node, result.masked_fill(~is_result, -torch.inf))

    # Scores only fall along a path: a beam that cannot beat K results any more is dropped.
    hope = score / (tree.longest if length_penalty > 0 else 1) ** length_penalty
    goes_on = ~ends & (hope > new_results.score[:, -1:])
    score, chosen = score.masked_fill(~goes_on, -torch.inf).topk(min(num_beams, width))
    node, taken, fed, origin = (x.gather(1, chosen) for x in (node, taken, fed, origin))
    new_beams = Paths(node, taken, fed, score, origin)

    spare = (0, score.shape[1] - beams.score.shape[1])
    beams = Paths(*(pad(x, spare) for x in beams))._replace(
        score=pad(beams.score, spare, value=-torch.inf)
    )
    return (
        Paths(*(torch.where(can_step, a, b) for a, b in zip(new_beams, beams, strict=True))),
        Beams(*(torch.where(can_step, a, b) for a, b in zip(new_results, results, strict=True))),
    )


def no_results(score: Tensor, num_beams: int) -> Beams:
    """What a search begins with, in rows and type as `score` (B, ...)."""
    empty = score.new_full((len(score), num_beams), -torch.inf)
    return Beams(torch.full_like(empty, -1, dtype=torch.long), empty)


def merge(results: Beams, leaf: Tensor, score: Tensor) -> Beams:
    """The best K of the results so far and new ones."""
    scores, best = torch.cat([results.score, score], dim=1).topk(results.score.shape[1])
    leaves = torch.cat([results.leaf, leaf], dim=1).gather(1, best)
    return Beams(leaves.masked_fill(scores.isneginf(), -1), scores)
