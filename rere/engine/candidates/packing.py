"""Pack prompts with their candidates as trees, for one forward pass.

The model computes each prompt once, and once every prefix that candidates share. The prompt 5 6 7
with the candidates 2 3 1, 2 4 1 and 8 1 (1 ends a title) makes the tree

    5 - 6 - 7 -+- 2 -+- 3 - (1)
               |     +- 4 - (1)
               +- 8 - (1)

The tokens in parentheses are predicted but never fed. Rows are padded to the widest of the batch,
their prompts on the left and their nodes on the right:

    [padding | 5 6]  [7 2 3 4 8 | padding]
     the prompt       the nodes: the tree from the prompt's last token on

A node has the position that it has in a sequence of its own, and attends only to the prompt and its
ancestors. The model thus computes for it what it would compute in that sequence. Models give logits
for the last columns, so nodes that predict nothing come first. There are such nodes where only
decisions are predicted (`rere.engine.candidates.leaves`).

Packing goes through three structures, all on the host in NumPy:

1. `Predictions`: every token of every candidate that is to be predicted.
2. `TokenTrees`: the nodes of all rows, equal prefixes of a row's candidates merged.
3. `PackedBatch`: the tensors of the forward pass, and which logits predict which token.

B rows, S columns: M for nodes, P of these with logits. R logits, B P without padding. U predicted
tokens. G candidates per row; N predicted tokens of all of them, a shared one counted for each. C
candidates of all rows, of at most T tokens.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rere.engine.model.masks import causal
from rere.engine.model.padding import left_pad, token_positions
from rere.engine.model.unpadding import UnpaddedTokens

Ints = NDArray[np.int64]


class AllowedTokens(NamedTuple):
    """The tokens that predictions are normalised over: E in all, for the R logits in turn."""

    logits_index: Tensor  # (E,) i64, in [0, R)
    token: Tensor  # (E,) i64


@dataclass(frozen=True)
class PackedBatch:
    """Prompts with their candidates, ready for one forward pass that gives R logits."""

    input_ids: Tensor  # (B, S) i64
    position_ids: Tensor  # (B, S) i64
    is_token: Tensor  # (B, S) bool, False in padding
    ancestors: Tensor  # (B, M, M) bool, which nodes are on the path to each, itself included
    logits_index: Tensor  # (U,) i64, in [0, R), the logits that predict the token
    token: Tensor  # (U,) i64, the predicted token
    prediction: Tensor  # (B, N) i64, in [0, U], which predicted token; U is padding
    candidate: Tensor  # (B, N) i64, in [0, G], whose token; G is padding
    allowed: AllowedTokens | None  # None: the whole vocabulary
    num_tokens: int  # in `is_token`
    logits_to_keep: int  # P
    num_logits: int  # R
    num_candidates: int  # G

    @property
    def tokens(self) -> UnpaddedTokens:
        return UnpaddedTokens(self.is_token, self.num_tokens, self.logits_to_keep, self.num_logits)

    @property
    def num_prompt_columns(self) -> int:
        """Columns before those of the nodes, S - M."""
        return self.is_token.shape[1] - self.ancestors.shape[1]

    @property
    def visible(self) -> Tensor:
        """Which columns each column attends to, (B, S, S) bool."""
        num_nodes = self.ancestors.shape[1]
        in_prompt = self.is_token[:, : self.num_prompt_columns]
        prompt = in_prompt[:, None, :].expand(-1, num_nodes, -1)
        nodes = torch.cat([prompt, self.ancestors], dim=-1)
        return torch.cat([pad(causal(in_prompt), (0, num_nodes)), nodes], dim=1)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch with its tensors on `device`."""

        return self.map(lambda value: value.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """The same batch with `change` applied to its tensors."""
        tensors = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        allowed = self.allowed and AllowedTokens(*map(change, self.allowed))
        return replace(self, **changed, allowed=allowed)


class Predictions(NamedTuple):
    """Tokens to predict, candidate by candidate, each from its first to its last."""

    candidate: Ints  # (X,) in [0, C)
    num_before: Ints  # (X,) tokens of the candidate before the predicted one
    token: Ints  # (X,)


class TokenTrees(NamedTuple):
    """The nodes of all rows' trees, level by level. The first B are the roots."""

    token: Ints  # (n,)
    row: Ints  # (n,)
    depth: Ints  # (n,)
    path: Ints  # (C, T + 1) the nodes of each candidate from its root on; -1 behind its end


def pack(
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    num_candidates: int | None = None,
) -> PackedBatch:
    """Pack each prompt with its candidates, any number of token sequences of length 1 or more.

    They are scored over the whole vocabulary. `num_candidates` is G; by default it is the largest
    number of candidates of a row.
    """
    count = np.fromiter(map(len, candidates), np.int64, len(candidates))
    every = list(itertools.chain.from_iterable(candidates))
    length = np.fromiter(map(len, every), np.int64, len(every))
    tokens = np.fromiter(itertools.chain.from_iterable(every), np.int64, length.sum())
    row = np.arange(len(count)).repeat(count)
    slot = rank_in_row(row, len(count))
    return pack_tokens(prompts, row, slot, tokens, length, num_candidates or int(count.max()))


def pack_tokens(
    prompts: Sequence[Sequence[int]],
    row: Ints,
    slot: Ints,
    tokens: Ints,
    length: Ints,
    num_candidates: int,
) -> PackedBatch:
    """Pack C candidates, of which `tokens` holds `length` (C,) tokens each, one after another.

    `row` (C,) ascends. `slot` (C,) in [0, G) tells the candidates of a row apart.
    """
    candidate = np.arange(len(length)).repeat(length)
    num_before = rank_in_row(candidate, len(length))
    # A candidate's last token is predicted but never fed.
    is_fed = num_before < length[candidate] - 1
    fed = to_matrix(candidate[is_fed], num_before[is_fed], tokens[is_fed], len(length), fill=-1)
    trees = build_token_trees(last_tokens(prompts), row, fed)
    predictions = Predictions(candidate, num_before, tokens)
    return assemble(prompts, slot, trees, predictions, num_candidates)


def last_tokens(prompts: Sequence[Sequence[int]]) -> Ints:
    """The last token of each prompt, (B,)."""
    return np.array([prompt[-1] for prompt in prompts], dtype=np.int64)


def rank_in_row(row: Ints, num_rows: int) -> Ints:
    """How many entries of the same row come before each entry, shaped as `row`."""
    order = row.argsort(kind="stable")
    count = np.bincount(row, minlength=num_rows)
    rank = np.empty_like(row)
    rank[order] = np.arange(len(row)) - (count.cumsum() - count).repeat(count)
    return rank


def to_matrix(row: Ints, column: Ints, values: Ints, num_rows: int, fill: int) -> Ints:
    """A matrix of `values` at (row, column) and `fill` elsewhere, as wide as needed."""
    matrix = np.full((num_rows, width(column)), fill)
    matrix[row, column] = values
    return matrix


def width(column: Ints) -> int:
    """The number of columns up to the last one of `column`."""
    return 1 + int(column.max(initial=-1))


def build_token_trees(roots: Ints, row: Ints, fed: Ints) -> TokenTrees:
    """The trees of candidates in `row` (C,) with the tokens `fed` (C, T), -1 behind their end.

    `roots` (B,) holds each tree's first token. Equal prefixes of a row become one path.
    """
    tokens, rows = [roots], [np.arange(len(roots))]
    path = np.full((len(fed), 1 + fed.shape[1]), -1)
    path[:, 0] = row
    base = 1 + fed.max(initial=0)
    num_nodes = len(roots)
    for level, token in enumerate(fed.T):
        exists = token >= 0
        pair = path[exists, level] * base + token[exists]  # of the node above and the token
        _, first, which = np.unique(pair, return_index=True, return_inverse=True)
        path[exists, level + 1] = num_nodes + which
        tokens.append(token[exists][first])
        rows.append(row[exists][first])
        num_nodes += len(first)
    depth = np.arange(len(tokens)).repeat([len(level) for level in tokens])
    return TokenTrees(np.concatenate(tokens), np.concatenate(rows), depth, path)


def depth_first_order(trees: TokenTrees, num_rows: int) -> Ints:
    """The nodes in depth-first order, all roots first.

    Neighbouring tokens then share most of their ancestors, so that their attention can be computed
    in blocks (`rere.engine.model.attention_blocks`).
    """
    path = trees.path[np.lexsort(trees.path.T[::-1])]
    visited = np.concatenate([np.arange(num_rows), path[path >= 0]])
    node, first = np.unique(visited, return_index=True)
    return node[first.argsort()]


def assemble(
    prompts: Sequence[Sequence[int]],
    slot: Ints,
    trees: TokenTrees,
    predictions: Predictions,
    num_candidates: int,
) -> PackedBatch:
    """The packed batch of the trees behind their prompts."""
    num_rows = len(prompts)
    node = trees.path[predictions.candidate, predictions.num_before]
    predicts = np.zeros(len(trees.token), dtype=bool)
    predicts[node] = True
    rank, order = np.empty_like(trees.row), depth_first_order(trees, num_rows)
    for part in (order[predicts[order]], order[~predicts[order]]):
        rank[part] = rank_in_row(trees.row[part], num_rows)
    num_without_logits = width(rank[~predicts])
    keep = max(1, width(rank[predicts]))  # models take 0 for all
    column = rank + num_without_logits * predicts

    num_nodes = num_without_logits + keep
    ids, depth = np.zeros((2, num_rows, num_nodes), dtype=np.int64)
    ids[trees.row, column] = trees.token
    depth[trees.row, column] = trees.depth
    exists = np.zeros(ids.shape, dtype=bool)
    exists[trees.row, column] = True
    exists[0, -1] |= not predicts.any()  # at least one column with logits
    # Padding attends to itself: some models give NaN where attention has nothing to attend to.
    ancestors = np.eye(num_nodes, dtype=bool)[None].repeat(num_rows, axis=0)
    for parent, child in itertools.pairwise(trees.path.T):
        parent, child = parent[child >= 0], child[child >= 0]
        row = trees.row[child]
        ancestors[row, column[child]] |= ancestors[row, column[parent]]

    base = 1 + predictions.token.max(initial=0)
    row = trees.row[node]
    num_logits = exists[:, num_without_logits:].sum(1)
    logits_index = (num_logits.cumsum() - num_logits)[row] + rank[node]
    pair, which = np.unique(logits_index * base + predictions.token, return_inverse=True)
    at = rank_in_row(row, num_rows)
    candidate = to_matrix(row, at, slot[predictions.candidate], num_rows, num_candidates)

    prompt_ids, is_token = left_pad([prompt[:-1] for prompt in prompts])
    position = token_positions(is_token)
    prompt_length = is_token.sum(-1, keepdim=True)
    is_token = torch.cat([is_token, torch.from_numpy(exists)], dim=1)
    return PackedBatch(
        input_ids=torch.cat([prompt_ids, torch.from_numpy(ids)], dim=1),
        position_ids=torch.cat([position, prompt_length + torch.from_numpy(depth)], dim=1),
        is_token=is_token,
        ancestors=torch.from_numpy(ancestors),
        logits_index=torch.from_numpy(pair // base),
        token=torch.from_numpy(pair % base),
        prediction=torch.from_numpy(to_matrix(row, at, which, num_rows, len(pair))),
        candidate=torch.from_numpy(candidate),
        allowed=None,
        num_tokens=int(is_token.sum()),
        logits_to_keep=keep,
        num_logits=int(num_logits.sum()),
        num_candidates=num_candidates,
    )
