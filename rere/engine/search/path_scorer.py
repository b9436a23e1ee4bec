"""Score the next tokens of a search's paths, one forward pass at a time.

A search keeps up to K paths per prompt (`Paths`) that start at the root of the prefix tree and grow
towards its leaves. An edge of the tree holds one or more tokens. The search alternates two steps:

* `PathScorer.feed` runs one forward pass over edges that paths have entered since the last pass.
  It returns the log-probabilities of the tokens that may follow (`KnownScores`).
* The search extends its paths by these scores, until one enters an edge that the model has not
  seen. `rere.engine.search.beam`, `sampling` and `best_first` differ in how they choose.

`vocabulary` scores are log-probabilities over the whole vocabulary, one token per step.
`catalogue` scores are normalised over the tokens that the tree allows. A forced token, one without
alternatives, has probability 1 there. A step thus takes a whole edge, and edges into leaves are
never computed. `decisions` scores are the `vocabulary` ones but 0 for forced tokens, so that a step
takes a whole edge, too.

B rows, K paths, M of them feeding tokens, Q columns of a pass, S tokens fed by all passes, F
children of a node, C tokens of an edge, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.engine import SearchScoring
from rere.engine.model.decoder import FullSequenceDecoder, SharedPromptDecoder, make_decoder
from rere.engine.model.head import TokenHead
from rere.engine.model.softmax import logsumexp_of_rows, upcast
from rere.engine.model.unpadding import UnpaddedTokens
from rere.engine.search.layout import (
    MAX_CHAIN,
    Layout,
    full_pass_tokens,
    lay_out_columns,
    lay_out_last_tokens_last,
    limit_chains,
    same_edge_mask,
)
from rere.engine.search.paths import (
    AuxiliaryScorer,
    KnownScores,
    PassPlan,
    Paths,
    find_used_tokens,
    gather_rows,
    replace_rows,
)
from rere.engine.search.sizes import SearchSizes
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.pruning import RowTrees

MAX_HEAD_SHARE = 0.25
"""Share of the vocabulary up to which the embeddings of a tree's tokens are copied for a search."""


class PathScorer:
    """A model that scores paths of a tree behind a batch of prompts.

    Log-probabilities are at `temperature`, above 0. Under `vocabulary` scoring a pass feeds only
    part of a long edge, unless `whole_edges`. `auxiliary` is averaged into scores of children.
    Raises ValueError for a temperature of 0 or below, and for `auxiliary` under `vocabulary`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tree: PrefixTree | RowTrees,
        prompts: Sequence[Sequence[int]],
        scoring: SearchScoring,
        temperature: float = 1.0,
        whole_edges: bool = False,
        auxiliary: AuxiliaryScorer | None = None,
        sizes: SearchSizes | None = None,
    ) -> None:
        check_temperature(temperature)
        if auxiliary is not None and scoring == "vocabulary":
            raise ValueError("an auxiliary scorer needs scoring catalogue or decisions")
        self.tree, self.by_decision = tree, scoring != "vocabulary"
        self.is_normalised = scoring == "catalogue"
        self.temperature, self.auxiliary = temperature, auxiliary
        self.decoder = make_decoder(model, prompts, tree.longest)
        self.head = make_tree_head(model, tree, self.decoder) if self.is_normalised else None
        # The length of each leaf's edge; no path takes -1 tokens of another edge.
        self.leaf_length = tree.edge_length.masked_fill(tree.fanout > 0, -1)
        self.whole_edges = whole_edges
        self.longest_chain = tree.longest if whole_edges else min(MAX_CHAIN, tree.longest)
        self.full_pass_tokens = sizes.full_pass_tokens if sizes else full_pass_tokens(model)

    def start(self) -> tuple[Paths, KnownScores, int]:
        """One path per row at the root, its known scores, and the steps that these suffice for.

        The tokens that all items begin with are computed together with the prompt.
        """
        tree = self.tree
        opening = tree.token[: tree.root_length]
        num_fed = len(opening) if tree.root_fanout else len(opening) - 1
        logits_to_keep = 1 if self.by_decision else 1 + num_fed
        with self._only_tree_tokens():
            logits = upcast(self.decoder.prefill(opening[:num_fed], logits_to_keep))
        logits_index = torch.arange(len(logits), device=logits.device).view(-1, logits_to_keep)
        zero = torch.zeros_like(logits_index[:, :1])
        node = zero + tree.root[:, None]
        forced = logits.new_zeros(len(node), 1, len(opening) + 1)
        norm = None if self.is_normalised else logsumexp_of_rows(logits, self.temperature)
        if norm is not None and not self.by_decision:
            # The edge into the root of a row's own tree may go on after the opening.
            offset = torch.minimum(logits_index - logits_index[:, :1], tree.edge_length[node] - 1)
            token = tree.token[tree.edge[node] + offset]
            of_tokens = logits[logits_index, token] / self.temperature - norm[logits_index]
            forced[:, 0, :logits_to_keep] = of_tokens
        fanout = max(1, tree.root_fanout)
        known = KnownScores(
            children=self._score_children(logits, norm, logits_index[:, -1:], node, fanout),
            forced=forced,
            first_forced=zero,
            ancestors=torch.zeros(*zero.shape, 0, dtype=torch.bool, device=zero.device),
        )
        paths = Paths(node, zero, zero + num_fed, logits.new_zeros(zero.shape), zero)
        return paths, known, len(opening) + 1

    def enter(self, node: Tensor, score: Tensor, parent: Tensor) -> Paths:
        """Paths that have just entered the edges into `node` (B, K)."""
        num_fed = torch.zeros_like(node)
        num_taken = self.tree.edge_length[node] if self.by_decision else num_fed + 1
        return Paths(node, num_taken, num_fed, score, parent)

    def can_step(self, paths: Paths) -> Tensor:
        """Which rows (B, 1) have unfinished paths, and the next scores of all of these."""
        ended = paths.score.isneginf()
        is_known = (paths.num_fed >= paths.num_taken) | ended
        return is_known.all(-1, keepdim=True) & ~ended.all(-1, keepdim=True)

    def plan(self, paths: Paths, known: KnownScores) -> PassPlan:
        """The next pass, by one host synchronisation.

        Raises InputError where the model's logits are NaN.
        """
        exists = paths.score.isfinite()
        count = self._count_tokens_to_feed(paths)
        sizes = [
            exists.any(-1).sum(),
            exists.sum(-1).amax(),
            (count > 0).sum(-1).amax(),
            (count - 1 if self.by_decision else count).clamp(min=0).sum(-1).amax(),
            self.tree.fanout[paths.node].where(exists, 1).amax().clamp(min=1),
            count.sum(),
            (count > 0).sum(),
            (paths.num_fed + count + 1 - paths.num_taken).where(exists, 1).amax(),
            find_used_tokens(paths, known).sum(-1).amax(),
            known.children.isnan().any() | known.forced.isnan().any(),
        ]
        *counts, is_nan = torch.stack(sizes).tolist()
        if is_nan:
            raise InputError("the model's logits are not numbers; its weights are broken")
        return PassPlan(count, *counts)

    def drop_unused_tokens(self, paths: Paths, known: KnownScores, plan: PassPlan) -> KnownScores:
        """Remove fed tokens that are on no unfinished path, once they are half of all.

        Only for searches that never return to a path they have left.
        """
        if 2 * plan.num_used > known.ancestors.shape[-1]:
            return known
        used = find_used_tokens(paths, known).int().argsort(dim=-1, descending=True, stable=True)
        used = used[:, : plan.num_used]
        self.decoder.keep(used)
        used = used[:, None, :].expand(-1, known.ancestors.shape[1], -1)
        return known._replace(ancestors=known.ancestors.gather(2, used))

    def select(self, rows: Tensor) -> None:
        """Keep only the rows `rows` (N,)."""
        self.decoder.select(rows)
        if self.auxiliary is not None:
            self.auxiliary = self.auxiliary._replace(
                node_log_probs=self.auxiliary.node_log_probs[rows]
            )

    def feed(self, paths: Paths, known: KnownScores, plan: PassPlan) -> tuple[Paths, KnownScores]:
        """Run the forward pass of `plan`; return the paths and their new scores.

        Only the first `plan.num_paths` paths of each row are kept; the others are finished.
        """
        paths = Paths(*(x[:, : plan.num_paths] for x in paths))
        known = KnownScores(*(gather_rows(x, paths.parent) for x in known))
        count = plan.num_to_feed[:, : plan.num_paths]
        is_feeding = count > 0
        feeding = is_feeding.int().argsort(dim=-1, descending=True, stable=True)
        feeding = feeding[:, : plan.num_feeding]  # (B, M)
        rank = (is_feeding.cumsum(-1) - 1).clamp(min=0)  # (B, K) in [0, M), a path's in `feeding`
        lay_out = lay_out_last_tokens_last if self.by_decision else lay_out_columns
        layout = lay_out(count.gather(1, feeding), plan.num_columns)

        path = feeding.gather(1, layout.path)  # (B, Q)
        node = paths.node.gather(1, path)
        offset = paths.num_fed.gather(1, path) + layout.offset
        offset = offset.where(layout.is_token, 0)  # on the edge
        depth = self.tree.depth[node] - self.tree.edge_length[node]
        depth = depth.where(layout.is_token, 0) + offset
        ids = self.tree.token[self.tree.edge[node] + offset]
        visible = torch.cat([gather_rows(known.ancestors, path), same_edge_mask(layout)], dim=-1)
        # `vocabulary` needs logits after all tokens, the others after the last one of each path.
        logits_to_keep, num_logits = ids.shape[1], plan.num_tokens
        if self.by_decision:
            logits_to_keep, num_logits = plan.num_feeding, plan.num_ends
        tokens = UnpaddedTokens(layout.is_token, plan.num_tokens, logits_to_keep, num_logits)
        with self._only_tree_tokens():
            logits = upcast(self.decoder.feed(ids, depth, visible, tokens))
        logits_index = tokens.logits_index  # (B, logits_to_keep)
        last_index = logits_index.gather(1, layout.last - (ids.shape[1] - logits_to_keep))

        node, num_fed = paths.node.gather(1, feeding), paths.num_fed.gather(1, feeding)
        norm = None if self.is_normalised else logsumexp_of_rows(logits, self.temperature)
        forced = known.forced
        if norm is not None and not self.by_decision:
            forced = self._score_forced(logits, norm, node, num_fed, layout, logits_index)
            forced = replace_rows(known.forced, forced, is_feeding, rank)
        children = self._score_children(logits, norm, last_index, node, plan.fanout)
        every = torch.arange(plan.num_paths, device=path.device)
        fed_now = (path[:, None, :] == every[:, None]) & layout.is_token[:, None, :]
        known = KnownScores(
            children=replace_rows(known.children, children, is_feeding, rank),
            forced=forced,
            first_forced=torch.where(is_feeding, paths.num_fed + 1, known.first_forced),
            ancestors=torch.cat([known.ancestors, fed_now], dim=-1),
        )
        paths = paths._replace(num_fed=paths.num_fed + count, parent=every.expand_as(count))
        return paths, known

    def _only_tree_tokens(self) -> AbstractContextManager[None]:
        """Passes compute the logits of `PrefixTree.first_tokens` alone, where that pays."""
        return nullcontext() if self.head is None else self.head.used_in(self.decoder.model)

    def _count_tokens_to_feed(self, paths: Paths) -> Tensor:
        """Number of tokens that each path feeds next, (B, K); 0 where its next scores are known."""
        # The last token of a leaf's edge predicts nothing.
        end = self.tree.edge_length[paths.node] - (self.tree.fanout[paths.node] == 0).long()
        needs_pass = (paths.num_fed < paths.num_taken) & paths.score.isfinite()
        left = (end - paths.num_fed).where(needs_pass, 0)
        if self.by_decision or self.whole_edges:
            return left
        return limit_chains(left, self.full_pass_tokens)

    def _score_children(
        self, logits: Tensor, norm: Tensor | None, row: Tensor, node: Tensor, fanout: int
    ) -> Tensor:
        """Log-probabilities (B, M, F) of the children of `node` (B, M), by logits[row[b, m]].

        `norm` is the log-sum-exp of each row of logits; None normalises over the children.
        """
        child, exists = self.tree.children(node, fanout)
        if self.head is None:
            column = self.tree.token[self.tree.edge[child]]
        else:
            assert isinstance(self.tree, PrefixTree)
            column = self.tree.first_tokens[1][child]
        scores = logits[row[..., None], column] / self.temperature
        of_children = scores.masked_fill(~exists, -torch.inf)
        total = of_children.logsumexp(-1) if norm is None else norm[row]
        scores = scores - total[..., None]
        if self.auxiliary is not None:
            node_log_probs, weight = self.auxiliary
            theirs = gather_rows(node_log_probs, child.flatten(1)).view_as(scores)
            theirs = theirs - gather_rows(node_log_probs, node)[..., None]
            scores = weight * scores + (1 - weight) * theirs
        return scores.masked_fill(~exists, -torch.inf)

    def _score_forced(
        self,
        logits: Tensor,
        norm: Tensor,
        node: Tensor,
        num_fed: Tensor,
        layout: Layout,
        logits_index: Tensor,
    ) -> Tensor:
        """Log-probabilities (B, M, C) of the edge's tokens that follow those fed now."""
        step = torch.arange(self.longest_chain, device=node.device)
        column = torch.minimum(layout.first[..., None] + step, layout.last[..., None])
        row = logits_index.gather(1, column.flatten(1)).view_as(column)
        last = self.tree.edge_length[node][..., None] - 1
        offset = torch.minimum(num_fed[..., None] + 1 + step, last)
        token = self.tree.token[self.tree.edge[node][..., None] + offset]
        return logits[row, token] / self.temperature - norm[row]


def make_tree_head(
    model: PreTrainedModel,
    tree: PrefixTree | RowTrees,
    decoder: SharedPromptDecoder | FullSequenceDecoder,
) -> TokenHead | None:
    """The embeddings of the tokens that decide between children; None for the whole head.

    Trees of rows have the whole one: their first tokens would be sought for each search.
    """
    if isinstance(tree, RowTrees) or isinstance(decoder, FullSequenceDecoder):
        return None
    token, _ = tree.first_tokens
    if len(token) > MAX_HEAD_SHARE * model.config.get_text_config().vocab_size:
        return None
    return TokenHead.of(model, token)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
