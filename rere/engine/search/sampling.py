"""Sample candidates from the constrained policy, behind a prompt that is computed once.

The policy is the model's distribution over the tokens that the catalogue allows, at a temperature.
The returned log-probabilities are those of this distribution. A token without alternatives has
probability 1, so that only decisions are sampled. Paths that several samples share are computed
once.

B rows, G samples, K paths, F children of a node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.model.decoder import eval_mode
from rere.engine.search.noise import gumbel, uniform
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.paths import KnownScores, Paths, gather_rows
from rere.prefix_tree import PrefixTree

UNIT = 2.0**40
"""Probability 1 in integers, which add up to the same sum in any order; floats on a GPU do not."""


class Samples(NamedTuple):
    """Leaves of the tree with their log-probabilities, in the order of sampling."""

    leaf: Tensor  # (B, G) i64, -1 where there is none
    score: Tensor  # (B, G) f32, log-probability of the path, -inf where there is none


class StochasticBeams(NamedTuple):
    """Unfinished paths and finished leaves, highest perturbed log-probability first."""

    node: Tensor  # (B, K) i64
    score: Tensor  # (B, K) f32, log-probability
    perturbed: Tensor  # (B, K) f32, log-probability plus Gumbel noise; -inf where there is none
    parent: Tensor  # (B, K) i64, index of the path in `KnownScores` that each extends


class PerturbedSamples(NamedTuple):
    """Samples without replacement, highest perturbed log-probability first."""

    leaf: Tensor  # (B, G) i64, -1 where the catalogue has fewer
    score: Tensor  # (B, G) f32, log-probability
    perturbed: Tensor  # (B, G) f32, log-probability plus Gumbel noise
    threshold: Tensor  # (B,) f32, the next lower perturbed log-probability; -inf for none


@torch.no_grad()
def sample_candidates(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    seeds: Tensor,
    temperature: float = 1.0,
) -> Samples:
    """`num_samples` independent samples per prompt, with replacement.

    `tree` and `seeds` (B,) i64 (`rere.engine.search.noise.row_seeds`) lie on the model's device.
    Raises ValueError for num_samples below 1 and for a temperature of 0 or below.
    """
    check_num_samples(num_samples)
    with eval_mode(model):
        scorer = PathScorer(model, tree, prompts, "catalogue", temperature)
        paths, known, _ = scorer.start()
        node = torch.zeros(len(prompts), num_samples, dtype=torch.long, device=seeds.device)
        parent, score = node, paths.score.expand(node.shape)
        sample = torch.arange(num_samples, device=node.device).expand_as(node)
        for decision in range(tree.longest + 1):
            chosen, log_prob = sample_by_inverse_cdf(
                gather_rows(known.children, parent),
                tree.fanout[node],
                uniform(seeds, sample * (tree.longest + 1) + decision),
            )
            is_inner = tree.fanout[node] > 0
            node = torch.where(is_inner, tree.first_child[node] + chosen, node)
            score = torch.where(is_inner, score + log_prob, score)
            paths, parent = distinct_paths(scorer, node, parent)
            plan = scorer.plan(paths, known)
            if plan.num_paths == 0:
                break
            _, known = scorer.feed(paths, known, plan)
            # The index of a finished sample may be out of range, and is not used.
            parent = parent.clamp(max=plan.num_paths - 1)
        return Samples(node, score)


def sample_by_inverse_cdf(
    log_probs: Tensor, num_choices: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """The choice that each uniform number `u` (B, G) selects, and its log-probability, (B, G) both.

    `log_probs` (B, G, F) are those of the choices, of which the first `num_choices` (B, G) exist.
    """
    cumulative = (log_probs.double().exp() * UNIT).long().cumsum(-1)
    below = (u[..., None].double() * cumulative[..., -1:]).long()
    below = torch.searchsorted(cumulative, below, right=True)
    # Rounding may lead beyond the last choice.
    chosen = torch.minimum(below[..., 0], (num_choices - 1).clamp(min=0))
    return chosen, log_probs.gather(-1, chosen[..., None])[..., 0]


def distinct_paths(scorer: PathScorer, node: Tensor, parent: Tensor) -> tuple[Paths, Tensor]:
    """One path to each distinct inner node of `node` (B, G), and which of them each sample is on.

    `parent` (B, G) is the index of the path in `KnownScores` that each sample extends.
    """
    fanout = scorer.tree.fanout
    beyond = len(fanout)
    ordered, order = node.masked_fill(fanout[node] == 0, beyond).sort(-1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = is_new.cumsum(-1) - 1
    nodes = torch.full_like(node, beyond).scatter(1, rank, ordered)
    parents = torch.zeros_like(node).scatter(1, rank, parent.gather(1, order))
    exists = nodes < beyond
    score = torch.zeros(exists.shape, device=node.device).masked_fill(~exists, -torch.inf)
    paths = scorer.enter(nodes.where(exists, 0), score, parents)
    return paths, torch.zeros_like(node).scatter(1, order, rank)


def keep_distinct(samples: Samples, num_kept: int, first: Tensor | None = None) -> Samples:
    """The first `num_kept` samples, in their order except that repetitions come last.

    A leaf of `first` (B,) comes before all others in the rows that contain it: the released code
    prefers the target in this way.
    """
    leaf = samples.leaf
    earlier = torch.ones(leaf.shape[1], leaf.shape[1], device=leaf.device).tril(-1).bool()
    is_repeat = ((leaf[:, :, None] == leaf[:, None, :]) & earlier).any(-1)
    key = is_repeat.long()
    if first is not None:
        key = key - 2 * ((leaf == first[:, None]) & ~is_repeat).long()
    order = key.argsort(dim=-1, stable=True)[:, :num_kept]
    return Samples(*(x.gather(1, order) for x in samples))


@torch.no_grad()
def stochastic_beam_search(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    seeds: Tensor,
    temperature: float = 1.0,
) -> PerturbedSamples:
    """`num_beams` samples per prompt without replacement, by the Gumbel-top-k trick.

    Kool, van Hoof and Welling, "Stochastic beams and where to find them", ICML 2019: the leaves
    with the highest log-probability plus Gumbel noise, found from the root down. Finished leaves
    compete with unfinished paths. `seeds` and errors as in `sample_candidates`.
    """
    check_num_samples(num_beams)
    with eval_mode(model):
        # The score of one more beam is the threshold.
        scorer = PathScorer(model, tree, prompts, "catalogue", temperature)
        start, known, _ = scorer.start()
        noise = gumbel(seeds, start.node).to(start.score.dtype)
        beams = StochasticBeams(start.node, start.score, noise, start.parent)
        while True:
            beams = extend_beams(tree, beams, known, num_beams + 1, seeds)
            is_open = (tree.fanout[beams.node] > 0) & beams.perturbed.isfinite()
            # `feed` expects the unfinished paths first.
            order = (~is_open).long().argsort(dim=-1, stable=True)
            score = beams.score.masked_fill(~is_open, -torch.inf)
            paths = scorer.enter(*(x.gather(1, order) for x in (beams.node, score, beams.parent)))
            plan = scorer.plan(paths, known)
            if plan.num_paths == 0:
                return top_samples(beams, num_beams)
            _, known = scorer.feed(paths, known, plan)
            beams = beams._replace(parent=order.argsort(dim=-1).clamp(max=plan.num_paths - 1))


def extend_beams(
    tree: PrefixTree, beams: StochasticBeams, known: KnownScores, width: int, seeds: Tensor
) -> StochasticBeams:
    """The best `width` of the children of all unfinished beams and of the finished leaves.

    The children's noise is conditional on their maximum, the parent's perturbed log-probability,
    in the numerically stable form of Kool et al.
    """
    children = gather_rows(known.children, beams.parent)  # (B, K, F)
    fanout = children.shape[-1]
    node, exists = tree.children(beams.node, fanout)
    score = beams.score[..., None] + children
    noisy = (score + gumbel(seeds, node)).masked_fill(~exists, -torch.inf)
    highest = noisy.amax(-1, keepdim=True)
    parent = beams.perturbed[..., None]
    v = parent - noisy + log1m_exp(noisy - highest)
    given = parent - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    given = given.masked_fill(~exists | ~parent.isfinite(), -torch.inf)

    # A leaf has no children; let it compete as its own first child.
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
        parent=beams.parent.gather(1, best // fanout),
    )


def top_samples(beams: StochasticBeams, num_beams: int) -> PerturbedSamples:
    """The first `num_beams`, filled up where the catalogue has fewer, and the threshold."""
    missing = (0, num_beams + 1 - beams.node.shape[1])
    leaf = pad(beams.node, missing, value=-1)
    score, perturbed = (pad(x, missing, value=-torch.inf) for x in (beams.score, beams.perturbed))
    exists = perturbed.isfinite()
    leaf, score = leaf.where(exists, -1), score.where(exists, -torch.inf)
    return PerturbedSamples(
        leaf[:, :num_beams], score[:, :num_beams], perturbed[:, :num_beams], perturbed[:, num_beams]
    )


def log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, precise at both ends."""
    return torch.where(x > -0.6931472, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def check_num_samples(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"at least 1 candidate must be sampled, not {num_samples}")
