"""Paths that grow through the prefix tree, and what the model says about their next tokens.

A forward pass feeds the edges that paths have entered; every path then knows the
log-probabilities of the tokens that may follow, up to where it enters another edge. How paths
advance on what they know is the search's affair (`rere.engine.search.beam`).

Three scorings. `vocabulary`: log-probabilities over the whole vocabulary, a token a step.
`catalogue`: over the tokens that the tree allows. A forced token has probability 1 there, so a
step takes a whole edge, and edges into leaves are never computed. `decisions`: over the whole
vocabulary, but forced tokens count for nothing, so that steps are those of `catalogue`.

B rows, K paths, M of them feeding, Q tokens fed by a pass, S by all, F children of a node,
C tokens of a chain, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.model.activation_reuse import recall_of
from rere.engine.model.decoder import decoder
from rere.engine.model.prompt_cache import KeptPrompts
from rere.engine.model.softmax import logsumexp_of_rows, upcast
from rere.engine.model.unpadding import UnpaddedTokens
from rere.engine.search.layout import (
    MAX_CHAIN,
    Layout,
    lay_out,
    lay_out_apart,
    look_ahead,
    own_edge,
)
from rere.errors import InputError

Scoring = Literal["vocabulary", "catalogue", "decisions"]

FULL_PASS = {"cpu": (768, 1.75e10)}
"""Tokens, and tokens times parameters, that fill a pass: fewer take about as long."""
FULL_PASS_ELSEWHERE = (1024, 1e12)


def full_pass(model: PreTrainedModel) -> int:
    """Tokens that fill a pass."""
    tokens, work = FULL_PASS.get(model.device.type, FULL_PASS_ELSEWHERE)
    return min(tokens, int(work / model.num_parameters()))


class Paths(NamedTuple):
    """Paths on their way, best first. Rows with fewer than K end in score -inf."""

    node: Tensor  # (B, K) i64, whose edge the path is on
    taken: Tensor  # (B, K) i64, how many of the edge's tokens it has taken
    fed: Tensor  # (B, K) i64, how many of them the model has seen
    score: Tensor  # (B, K) f32
    origin: Tensor  # (B, K) i64, which path of `KnownScores` it continues


class KnownScores(NamedTuple):
    """What the model has told about the paths that were there when it was last asked."""

    children: Tensor  # (B, K, F) log-probability of each child's first token, -inf without one
    forced: Tensor  # (B, K, C) log-probability of the edge's tokens from `since` on
    since: Tensor  # (B, K) i64
    ancestors: Tensor  # (B, K, S) bool, which fed tokens are on the path


class AuxiliaryScorer(NamedTuple):
    """Another model's say: a path's score is a mean of what the two give it.

    `node_log_probs` (B, N) f32 is the other's log-probability of all that lies below each node of the
    tree (`rere.engine.mass`), of the N nodes; `weight`, up to 1, is the searched model's own.
    """

    node_log_probs: Tensor
    weight: float


class PassPlan(NamedTuple):
    """A forward pass, and its sizes: all that the host has to know of the paths."""

    count: Tensor  # (B, K) i64, tokens that each path feeds
    num_rows: int  # with paths that go on
    num_paths: int  # in the fullest row
    num_feeding: int  # M, those that feed tokens
    num_columns: int  # for the tokens they feed, or those before their last ones
    fanout: int  # F
    num_tokens: int  # fed by all rows
    num_ends: int  # paths of all rows that feed some
    num_steps: int  # steps that paths can go afterwards
    num_live: int  # fed tokens that paths follow, in the row with most of them


class PathScorer:
    """A model's view of the paths through a tree behind a batch of prompts.

    Log-probabilities are those at `temperature`, above 0. Under `vocabulary` a pass feeds as much
    of the edges as it has room for, or the whole of them with `whole_edges`. An `auxiliary` has its
    say where paths decide. Raises ValueError for another temperature, and for an auxiliary under
    `vocabulary`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tree: PrefixTree,
        prompts: Sequence[Sequence[int]],
        scoring: Scoring,
        temperature: float = 1.0,
        whole_edges: bool = False,
        auxiliary: AuxiliaryScorer | None = None,
    ) -> None:
        check_temperature(temperature)
        if auxiliary is not None and scoring == "vocabulary":
            raise ValueError("an auxiliary decides, and vocabulary scores are of tokens")
        self.tree, self.by_decision = tree, scoring != "vocabulary"
        self.normalised = scoring == "catalogue"
        self.temperature, self.auxiliary = temperature, auxiliary
        self.decoder = decoder(model, prompts, tree.longest)
        self.recall = None
        if isinstance(prompts, KeptPrompts) and scoring == "vocabulary":
            self.recall = prompts.recall = recall_of(model, len(prompts), len(tree.token))
        self.whole_edges = whole_edges
        self.longest_chain = tree.longest if whole_edges else min(MAX_CHAIN, tree.longest)
        self.full_pass = full_pass(model)

    def start(self) -> tuple[Paths, KnownScores, int]:
        """One path a row, at the root, and how many steps it can go.

        What all items begin with is computed with the prompt.
        """
        opening = self.tree.token[: self.tree.opening]
        num_fed = len(opening) if self.tree.first_fanout else len(opening) - 1
        keep = 1 if self.by_decision else 1 + num_fed
        logits = upcast(self.decoder.prefill(opening[:num_fed], keep))
        place = torch.arange(len(logits), device=logits.device).view(-1, keep)
        zero = torch.zeros_like(place[:, :1])
        forced = logits.new_zeros(len(place), 1, len(opening) + 1)
        norm = None if self.normalised else logsumexp_of_rows(logits, self.temperature)
        if not self.by_decision:
            predicts = place[:, : len(opening)]
            forced[:, 0, :-1] = logits[predicts, opening] / self.temperature - norm[predicts]
        known = KnownScores(
            children=self._children(
                logits, norm, place[:, -1:], zero, max(1, self.tree.first_fanout)
            ),
            forced=forced,
            since=zero,
            ancestors=torch.zeros(*zero.shape, 0, dtype=torch.bool, device=zero.device),
        )
        paths = Paths(zero, zero, zero + num_fed, logits.new_zeros(zero.shape), zero)
        return paths, known, len(opening) + 1

    def enter(self, node: Tensor, score: Tensor, origin: Tensor) -> Paths:
        """Paths that have just entered the edges into `node` (B, K)."""
        fed = torch.zeros_like(node)
        return Paths(
            node, self.tree.length[node] if self.by_decision else fed + 1, fed, score, origin
        )

    def can_step(self, paths: Paths) -> Tensor:
        """Rows (B, 1) with paths that go on and all know what may follow."""
        ended = paths.score.isneginf()
        knows = (paths.fed >= paths.taken) | ended
        return knows.all(-1, keepdim=True) & ~ended.all(-1, keepdim=True)

    def plan(self, paths: Paths, known: KnownScores) -> PassPlan:
        """What the next pass needs. The one host synchronisation of a pass.

        Raises InputError where the model's logits are not numbers.
        """
        exists = paths.score.isfinite()
        count = self._to_feed(paths)
        sizes = [
            exists.any(-1).sum(),
            exists.sum(-1).amax(),
            (count > 0).sum(-1).amax(),
            (count - 1 if self.by_decision else count).clamp(min=0).sum(-1).amax(),
            self.tree.fanout[paths.node].where(exists, 1).amax().clamp(min=1),
            count.sum(),
            (count > 0).sum(),
            (paths.fed + count + 1 - paths.taken).where(exists, 1).amax(),
            live(paths, known).sum(-1).amax(),
            known.children.isnan().any() | known.forced.isnan().any(),
        ]
        *sizes, is_nan = torch.stack(sizes).tolist()
        if is_nan:
            raise InputError("the model's logits are not numbers; its weights are broken")
        return PassPlan(count, *sizes)

    def forget(self, paths: Paths, known: KnownScores, plan: PassPlan) -> KnownScores:
        """Drop the fed tokens that no path follows any more, once they are half of all.

        For searches that never come back to a path they left.
        """
        if 2 * plan.num_live > known.ancestors.shape[-1]:
            return known
        kept = live(paths, known).int().argsort(dim=-1, descending=True, stable=True)
        kept = kept[:, : plan.num_live]
        self.decoder.keep(kept)
        kept = kept[:, None, :].expand(-1, known.ancestors.shape[1], -1)
        return known._replace(ancestors=known.ancestors.gather(2, kept))

    def select(self, rows: Tensor) -> None:
        """Go on with the rows `rows` (N,) alone."""
        self.decoder.select(rows)
        if self.recall is not None:
            self.recall.select(rows)
        if self.auxiliary is not None:
            self.auxiliary = self.auxiliary._replace(
                node_log_probs=self.auxiliary.node_log_probs[rows]
            )

    def feed(self, paths: Paths, known: KnownScores, plan: PassPlan) -> tuple[Paths, KnownScores]:
        """One forward pass over the tokens that paths have entered, and what it tells of them."""
        paths = Paths(*(x[:, : plan.num_paths] for x in paths))
        known = KnownScores(*(take(x, paths.origin) for x in known))
        count = plan.count[:, : plan.num_paths]
        feeds = count > 0
        feeding = feeds.int().argsort(dim=-1, descending=True, stable=True)
        feeding = feeding[:, : plan.num_feeding]  # (B, M)
        rank = (feeds.cumsum(-1) - 1).clamp(min=0)  # (B, K), a feeding path's place among the M
        lay = lay_out_apart if self.by_decision else lay_out
        layout = lay(count.gather(1, feeding), plan.num_columns)

        path = feeding.gather(1, layout.owner)  # (B, Q)
        node = paths.node.gather(1, path)
        at = (paths.fed.gather(1, path) + layout.place).where(layout.exists, 0)
        depth = (self.tree.depth[node] - self.tree.length[node]).where(layout.exists, 0) + at
        tree_place = self.tree.edge[node] + at
        ids = self.tree.token[tree_place]
        visible = torch.cat([take(known.ancestors, path), own_edge(layout)], dim=-1)
        # Under `vocabulary` all have logits, under the others the last ones of their paths.
        keep, num_logits = ids.shape[1], plan.num_tokens
        if self.by_decision:
            keep, num_logits = plan.num_feeding, plan.num_ends
        columns = UnpaddedTokens(layout.exists, plan.num_tokens, keep, num_logits)
        recording = self.recall and self.recall.recording(tree_place, columns)
        with recording or nullcontext():
            logits = upcast(self.decoder.feed(ids, depth, visible, columns))
        place = columns.place
        end = place.gather(1, layout.end - (ids.shape[1] - keep))

        node, fed = paths.node.gather(1, feeding), paths.fed.gather(1, feeding)
        norm = None if self.normalised else logsumexp_of_rows(logits, self.temperature)
        forced = known.forced
        if not self.by_decision:
            forced = self._forced(logits, norm, node, fed, layout, place)
            forced = renew(known.forced, forced, feeds, rank)
        children = self._children(logits, norm, end, node, plan.fanout)
        every = torch.arange(plan.num_paths, device=path.device)
        fed_now = (path[:, None, :] == every[:, None]) & layout.exists[:, None, :]
        known = KnownScores(
            children=renew(known.children, children, feeds, rank),
            forced=forced,
            since=torch.where(feeds, paths.fed + 1, known.since),
            ancestors=torch.cat([known.ancestors, fed_now], dim=-1),
        )
        return paths._replace(fed=paths.fed + count, origin=every.expand_as(count)), known

    def _to_feed(self, paths: Paths) -> Tensor:
        """How many tokens each path feeds next, (B, K); none where it knows what may follow."""
        left = self.tree.length[paths.node] - (self.tree.fanout[paths.node] == 0).long() - paths.fed
        left = left.where((paths.fed < paths.taken) & paths.score.isfinite(), 0)
        if self.by_decision or self.whole_edges:
            return left
        return look_ahead(left, self.full_pass)

    def _children(
        self, logits: Tensor, norm: Tensor | None, end: Tensor, node: Tensor, fanout: int
    ) -> Tensor:
        """Log-probabilities (B, M, F) of the children of `node` (B, M), by the logits at `end`.

        Without `norm`, the log of the vocabulary's sum, they are normalised among themselves.
        """
        child, exists = self.tree.children(node, fanout)
        token = self.tree.token[self.tree.edge[child]]
        scores = logits[end[..., None], token] / self.temperature
        among = scores.masked_fill(~exists, -torch.inf)
        total = among.logsumexp(-1) if norm is None else norm[end]
        scores = scores - total[..., None]
        if self.auxiliary is not None:
            node_log_probs, weight = self.auxiliary
            theirs = take(node_log_probs, child.flatten(1)).view_as(scores)
            theirs = theirs - take(node_log_probs, node)[..., None]
            scores = weight * scores + (1 - weight) * theirs
        return scores.masked_fill(~exists, -torch.inf)

    def _forced(
        self,
        logits: Tensor,
        norm: Tensor,
        node: Tensor,
        fed: Tensor,
        layout: Layout,
        place: Tensor,
    ) -> Tensor:
        """Log-probabilities (B, M, C) of the edge's tokens that follow those fed now."""
        step = torch.arange(self.longest_chain, device=node.device)
        column = torch.minimum(layout.start[..., None] + step, layout.end[..., None])
        after = place.gather(1, column.flatten(1)).view_as(column)
        at = torch.minimum(fed[..., None] + 1 + step, self.tree.length[node][..., None] - 1)
        token = self.tree.token[self.tree.edge[node][..., None] + at]
        return logits[after, token] / self.temperature - norm[after]


def live(paths: Paths, known: KnownScores) -> Tensor:
    """Which fed tokens (B, S) some path follows."""
    followed = take(known.ancestors, paths.origin) & paths.score.isfinite()[..., None]
    return followed.any(1)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")


def take(values: Tensor, index: Tensor) -> Tensor:
    """values[b, index[b, k]] for (B, N) or (B, N, ...) values."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]


def renew(old: Tensor, new: Tensor, changed: Tensor, rank: Tensor) -> Tensor:
    """Rows of `old` (B, K, X), where `changed` replaced by the one of `new` (B, M, Y) at `rank`.

    Y wide; what `old` has beyond that is not needed any more.
    """
    missing = new.shape[-1] - old.shape[-1]
    old = pad(old, (0, max(missing, 0)), value=-torch.inf)[..., : new.shape[-1]]
    return torch.where(changed[..., None], take(new, rank), old)
