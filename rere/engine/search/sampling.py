"""Candidates drawn from the constrained policy, behind a prompt that is computed once.

The policy is the model's over the tokens that the catalogue allows, at a temperature; the
log-probabilities that come back are those of that very distribution. A forced token has
probability 1, so only decisions are drawn, and paths that meet are computed once.

B rows, G samples, K paths, F children of a node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.model.decoder import eval_mode
from rere.engine.search.noise import gumbel, uniform
from rere.engine.search.path_scorer import KnownScores, Paths, PathScorer, take


class Samples(NamedTuple):
    """Leaves of the tree with their log-probabilities, in the order in which they were drawn."""

    leaf: Tensor  # (B, G) i64, -1 where there is none
    score: Tensor  # (B, G) f32, log-probability of the path, -inf where there is none


class StochasticBeams(NamedTuple):
    """Paths on their way and finished leaves, highest perturbed log-probability first."""

    node: Tensor  # (B, K) i64
    score: Tensor  # (B, K) f32, log-probability
    perturbed: Tensor  # (B, K) f32, log-probability plus Gumbel noise; -inf where there is none
    path: Tensor  # (B, K) i64, which path of what is known each comes from


class Perturbed(NamedTuple):
    """Samples without replacement, highest perturbed log-probability first."""

    leaf: Tensor  # (B, G) i64, -1 where the catalogue holds no more
    score: Tensor  # (B, G) f32, log-probability
    perturbed: Tensor  # (B, G) f32, log-probability plus Gumbel noise
    threshold: Tensor  # (B,) f32, the perturbed one that comes next; -inf without one


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    seeds: Tensor,
    temperature: float = 1.0,
) -> Samples:
    """`num_samples` independent draws a prompt, with replacement.

    `tree` and `seeds` (B,) i64 (`rere.engine.search.noise.row_seeds`) lie on the model's device. Raises
    ValueError for a number of samples below 1 and a temperature that is not above 0.
    """
    check(num_samples)
    with eval_mode(model):
        scorer = PathScorer(model, tree, prompts, "catalogue", temperature)
        paths, known, _ = scorer.start()
        node = torch.zeros(len(prompts), num_samples, dtype=torch.long, device=seeds.device)
        path, score = node, paths.score.expand(node.shape)
        number = torch.arange(num_samples, device=node.device).expand_as(node)
        for decision in range(tree.longest + 1):
            chosen, log_prob = choose(
                take(known.children, path),
                tree.fanout[node],
                uniform(seeds, number * (tree.longest + 1) + decision),
            )
            decides = tree.fanout[node] > 0
            node = torch.where(decides, tree.first_child[node] + chosen, node)
            score = torch.where(decides, score + log_prob, score)
            paths, path = distinct(scorer, node, path)
            plan = scorer.plan(paths, known)
            if plan.num_paths == 0:
                break
            _, known = scorer.feed(paths, known, plan)
            path = path.clamp(max=plan.num_paths - 1)  # those of finished samples lie beyond
        return Samples(node, score)


def choose(children: Tensor, fanout: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Which child the uniform numbers `u` (B, G) choose, and its log-probability, both (B, G).

    By the inverse of the distribution function; `children` (B, G, F) are log-probabilities.
    """
    cumulative = children.exp().cumsum(-1)
    below = torch.searchsorted(cumulative, u[..., None] * cumulative[..., -1:], right=True)
    # What rounding leaves at the end belongs to the last child.
    chosen = torch.minimum(below[..., 0], (fanout - 1).clamp(min=0))
    return chosen, children.gather(-1, chosen[..., None])[..., 0]


def distinct(scorer: PathScorer, node: Tensor, path: Tensor) -> tuple[Paths, Tensor]:
    """The paths to the different inner nodes among `node` (B, G), and which of them each is on.

    `path` (B, G) is which path of what is known each comes from.
    """
    fanout = scorer.tree.fanout
    beyond = len(fanout)
    ordered, place = node.masked_fill(fanout[node] == 0, beyond).sort(-1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = is_new.cumsum(-1) - 1
    nodes = torch.full_like(node, beyond).scatter(1, rank, ordered)
    origin = torch.zeros_like(node).scatter(1, rank, path.gather(1, place))
    exists = nodes < beyond
    score = torch.zeros(exists.shape, device=node.device).masked_fill(~exists, -torch.inf)
    paths = scorer.enter(nodes.where(exists, 0), score, origin)
    return paths, torch.zeros_like(node).scatter(1, place, rank)


def keep_distinct(samples: Samples, num_logits: int, first: Tensor | None = None) -> Samples:
    """`num_logits` of the samples: different ones in their order, then repetitions in theirs.

    Dynamic sampling draws half as many again and keeps these. With `first` (B,), a leaf a row,
    that one comes before all others where it was drawn at all: the released code's variant, which
    looks at the target.
    """
    leaf = samples.leaf
    earlier = torch.ones(leaf.shape[1], leaf.shape[1], device=leaf.device).tril(-1).bool()
    repeats = ((leaf[:, :, None] == leaf[:, None, :]) & earlier).any(-1)
    key = repeats.long()
    if first is not None:
        key = key - 2 * ((leaf == first[:, None]) & ~repeats).long()
    order = key.argsort(dim=-1, stable=True)[:, :num_logits]
    return Samples(*(x.gather(1, order) for x in samples))


@torch.no_grad()
def stochastic_beam_search(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    seeds: Tensor,
    temperature: float = 1.0,
) -> Perturbed:
    """`num_beams` draws a prompt without replacement, by the Gumbel-top-k trick.

    Kool, van Hoof and Welling, "Stochastic beams and where to find them", ICML 2019: the leaves
    whose log-probability plus Gumbel noise is highest, found top down. Finished leaves compete
    with what goes on. `seeds` and errors as in `sample`.
    """
    check(num_beams)
    with eval_mode(model):
        # One more beam tells the threshold.
        scorer = PathScorer(model, tree, prompts, "catalogue", temperature)
        start, known, _ = scorer.start()
        noise = gumbel(seeds, start.node).to(start.score.dtype)
        beams = StochasticBeams(start.node, start.score, noise, start.origin)
        while True:
            beams = perturb(tree, beams, known, num_beams + 1, seeds)
            goes_on = (tree.fanout[beams.node] > 0) & beams.perturbed.isfinite()
            # Those that go on first, as a pass takes them.
            place = (~goes_on).long().argsort(dim=-1, stable=True)
            score = beams.score.masked_fill(~goes_on, -torch.inf)
            paths = scorer.enter(*(x.gather(1, place) for x in (beams.node, score, beams.path)))
            plan = scorer.plan(paths, known)
            if plan.num_paths == 0:
                return finished(beams, num_beams)
            _, known = scorer.feed(paths, known, plan)
            beams = beams._replace(path=place.argsort(dim=-1).clamp(max=plan.num_paths - 1))


def perturb(
    tree: PrefixTree, beams: StochasticBeams, known: KnownScores, width: int, seeds: Tensor
) -> StochasticBeams:
    """Every beam that can takes a decision: the best `width` of all children and finished leaves.

    The children's noise is drawn given that the highest of them is their parent's (Kool et al.).
    """
    children = take(known.children, beams.path)  # (B, K, F)
    fanout = children.shape[-1]
    node, exists = tree.children(beams.node, fanout)
    score = beams.score[..., None] + children
    noisy = (score + gumbel(seeds, node)).masked_fill(~exists, -torch.inf)
    highest = noisy.amax(-1, keepdim=True)
    parent = beams.perturbed[..., None]
    v = parent - noisy + log1m_exp(noisy - highest)
    given = parent - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    given = given.masked_fill(~exists | ~parent.isfinite(), -torch.inf)

    # A leaf stands in the place of its first child.
    ends = (tree.fanout[beams.node] == 0)[..., None] & (
        torch.arange(fanout, device=node.device) == 0
    )
    given = torch.where(ends, parent, given)
    node = torch.where(ends, beams.node[..., None], node)
    score = torch.where(ends, beams.score[..., None], score)
    perturbed, best = given.flatten(1).topk(min(width, given[0].numel()))
    return StochasticBeams(
        node=node.flatten(1).gather(1, best),
        score=score.flatten(1).gather(1, best),
        perturbed=perturbed,
        path=beams.path.gather(1, best // fanout),
    )


def finished(beams: StochasticBeams, num_beams: int) -> Perturbed:
    """The first `num_beams`, filled up where the catalogue holds fewer, and the threshold."""
    missing = (0, num_beams + 1 - beams.node.shape[1])
    leaf = pad(beams.node, missing, value=-1)
    score, perturbed = (pad(x, missing, value=-torch.inf) for x in (beams.score, beams.perturbed))
    exists = perturbed.isfinite()
    leaf, score = leaf.where(exists, -1), score.where(exists, -torch.inf)
    return Perturbed(
        leaf[:, :num_beams], score[:, :num_beams], perturbed[:, :num_beams], perturbed[:, num_beams]
    )


def log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, precise at both ends."""
    return torch.where(x > -0.6931472, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def check(number: int) -> None:
    if number < 1:
        raise ValueError(f"at least 1 candidate must be drawn, not {number}")
