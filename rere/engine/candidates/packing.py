"""Candidates that hang from their prompt as a tree, laid out for one forward pass.

The prompt is fed once, and so is every prefix that candidates share. Behind the prompt 5 6 7 the
candidates 2 3 1, 2 4 1 and 8 1 (1 ends a title) make the tree

    5 - 6 - 7 -+- 2 -+- 3 - (1)
               |     +- 4 - (1)
               +- 8 - (1)

whose tokens in parentheses are predicted but never fed. A packed row has two parts, each as wide
as the batch needs:

    [padding | 5 6]  [7 2 3 4 8 | padding]
     the prompt       the nodes, from its last token on

A node's position is that of its path, and it sees the prompt and its ancestors alone, so that the
model computes for it what it would in a sequence of its own. Nodes that predict nothing, as there
are where only decisions count (`rere.engine.candidates.leaves`), lie before those that do: logits are those
of the last columns, for as many as some row needs.

B rows, S columns, M of them of nodes, P of these with logits, R of B P with a token, U predicted
tokens, G candidates a row, N tokens of all of them, repeated where candidates share them. On the
host also C candidates, of at most T tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rere.engine.model.masks import causal
from rere.engine.model.padding import left_pad, prompt_positions
from rere.engine.model.unpadding import UnpaddedTokens

Ints = NDArray[np.int64]


class Allowed(NamedTuple):
    """The tokens among which predictions are normalised, those of all places one after another."""

    source: Tensor  # (E,) i64, the place, in [0, R)
    token: Tensor  # (E,) i64


@dataclass(frozen=True)
class Packed:
    """A batch of prompts with their candidates, ready for one forward pass.

    Logits are computed at R places, row after row.
    """

    input_ids: Tensor  # (B, S) i64
    position_ids: Tensor  # (B, S) i64
    real: Tensor  # (B, S) bool, what is no padding
    ancestors: Tensor  # (B, M, M) bool, which nodes are on the path to each, itself included
    tree_place: Tensor  # (B, M) i64, which token of the catalogue's tree each is; -1 if not told
    source: Tensor  # (U,) i64, the place that predicts, in [0, R)
    target: Tensor  # (U,) i64, the token that is predicted
    prediction: Tensor  # (B, N) i64, in [0, U]; U is padding
    candidate: Tensor  # (B, N) i64, in [0, G]; G is padding
    allowed: Allowed | None  # None: the whole vocabulary
    num_tokens: int  # all that is no padding
    keep: int  # P
    num_logits: int  # R
    num_candidates: int  # G

    @property
    def columns(self) -> UnpaddedTokens:
        return UnpaddedTokens(self.real, self.num_tokens, self.keep, self.num_logits)

    @property
    def first_node(self) -> int:
        """Its column."""
        return self.real.shape[1] - self.ancestors.shape[1]

    @property
    def visible(self) -> Tensor:
        """Which tokens each one sees, (B, S, S) bool."""
        num_nodes = self.ancestors.shape[1]
        of_prompt = self.real[:, : self.first_node]
        prompt = of_prompt[:, None, :].expand(-1, num_nodes, -1)
        nodes = torch.cat([prompt, self.ancestors], dim=-1)
        return torch.cat([pad(causal(of_prompt), (0, num_nodes)), nodes], dim=1)

    def to(self, device: torch.device | str) -> "Packed":
        """The same batch with its tensors on `device`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        moved = {name: move(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        allowed = self.allowed and Allowed(*map(move, self.allowed))
        return replace(self, **moved, allowed=allowed)


class Predictions(NamedTuple):
    """What is predicted of candidates, one after another in their order, each from its start on."""

    owner: Ints  # (X,) which candidate
    after: Ints  # (X,) how many of its tokens come before
    target: Ints  # (X,)


class Trie(NamedTuple):
    """The tree of tokens of each row, numbered level by level; the first B nodes are the roots."""

    token: Ints  # (n,)
    tree_place: Ints  # (n,) which tokens of the catalogue's tree they are; -1 if not told
    row: Ints  # (n,)
    depth: Ints  # (n,)
    path: Ints  # (C, T + 1) the nodes of each candidate; -1 where it has ended


def pack(
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    num_candidates: int | None = None,
) -> Packed:
    """Pack each prompt with its candidates, in any number and of any length from 1 up.

    They are scored over the whole vocabulary. `num_candidates` is G where no row may have as
    many; without it G is the most that one has.
    """
    count = np.fromiter(map(len, candidates), np.int64, len(candidates))
    every = list(itertools.chain.from_iterable(candidates))
    length = np.fromiter(map(len, every), np.int64, len(every))
    flat = np.fromiter(itertools.chain.from_iterable(every), np.int64, length.sum())
    row = np.arange(len(count)).repeat(count)
    number = places(row, len(count))
    return pack_tokens(prompts, row, number, flat, length, num_candidates or int(count.max()))


def pack_tokens(
    prompts: Sequence[Sequence[int]],
    row: Ints,
    number: Ints,
    flat: Ints,
    length: Ints,
    num_candidates: int,
    tree_place: Ints | None = None,
) -> Packed:
    """Pack candidates whose tokens lie in `flat` one after another, `length` (C,) of each.

    The row of each (C,) ascends; `number` (C,) tells those of a row apart. `tree_place` says which
    of the catalogue's tree the tokens are.
    """
    owner = np.arange(len(length)).repeat(length)
    after = places(owner, len(length))
    # A candidate's last token is predicted but never fed.
    feeds = after < length[owner] - 1
    fed = table(owner[feeds], after[feeds], flat[feeds], len(length), fill=-1)
    trie = merge(roots(prompts), row, fed)
    if tree_place is not None:
        trie.tree_place[trie.path[owner[feeds], after[feeds] + 1]] = tree_place[feeds]
    return lay_out(prompts, number, trie, Predictions(owner, after, flat), num_candidates)


def roots(prompts: Sequence[Sequence[int]]) -> Ints:
    """The prompts' last tokens, (B,)."""
    return np.array([prompt[-1] for prompt in prompts], dtype=np.int64)


def places(row: Ints, num_rows: int) -> Ints:
    """Each one's place among those of its row, in their order."""
    order = row.argsort(kind="stable")
    count = np.bincount(row, minlength=num_rows)
    place = np.empty_like(row)
    place[order] = np.arange(len(row)) - (count.cumsum() - count).repeat(count)
    return place


def table(row: Ints, column: Ints, values: Ints, num_rows: int, fill: int) -> Ints:
    """The values at their rows and columns, (num_rows, as wide as needed), `fill` elsewhere."""
    filled = np.full((num_rows, width(column)), fill)
    filled[row, column] = values
    return filled


def width(column: Ints) -> int:
    return 1 + int(column.max(initial=-1))


def merge(roots: Ints, row: Ints, fed: Ints) -> Trie:
    """The trees that the tokens `fed` (C, T), -1 where there are none, make behind `roots` (B,)."""
    tokens, rows = [roots], [np.arange(len(roots))]
    path = np.full((len(fed), 1 + fed.shape[1]), -1)
    path[:, 0] = row
    base = 1 + fed.max(initial=0)
    num_nodes = len(roots)
    for step, token in enumerate(fed.T):
        goes_on = token >= 0
        pair = path[goes_on, step] * base + token[goes_on]
        _, first, which = np.unique(pair, return_index=True, return_inverse=True)
        path[goes_on, step + 1] = num_nodes + which
        tokens.append(token[goes_on][first])
        rows.append(row[goes_on][first])
        num_nodes += len(first)
    depth = np.arange(len(tokens)).repeat([len(level) for level in tokens])
    return Trie(np.concatenate(tokens), np.full(num_nodes, -1), np.concatenate(rows), depth, path)


def depth_first(trie: Trie, num_rows: int) -> Ints:
    """The nodes in the order of a walk through each tree, each branch whole; all roots first.

    So tokens that see alike lie together (`rere.engine.model.attention_blocks`).
    """
    path = trie.path[np.lexsort(trie.path.T[::-1])]
    visited = np.concatenate([np.arange(num_rows), path[path >= 0]])
    node, first = np.unique(visited, return_index=True)
    return node[first.argsort()]


def lay_out(
    prompts: Sequence[Sequence[int]],
    number: Ints,
    trie: Trie,
    predictions: Predictions,
    num_candidates: int,
) -> Packed:
    """The packed rows of the trees behind their prompts."""
    num_rows = len(prompts)
    node = trie.path[predictions.owner, predictions.after]
    predicts = np.zeros(len(trie.token), dtype=bool)
    predicts[node] = True
    place, walk = np.empty_like(trie.row), depth_first(trie, num_rows)
    for block in (walk[predicts[walk]], walk[~predicts[walk]]):
        place[block] = places(trie.row[block], num_rows)
    num_inner = width(place[~predicts])
    keep = max(1, width(place[predicts]))  # all of the logits would be kept if it were none
    column = place + num_inner * predicts

    num_nodes = num_inner + keep
    ids, depth = np.zeros((2, num_rows, num_nodes), dtype=np.int64)
    ids[trie.row, column] = trie.token
    depth[trie.row, column] = trie.depth
    tree_place = np.full(ids.shape, -1)
    tree_place[trie.row, column] = trie.tree_place
    exists = np.zeros(ids.shape, dtype=bool)
    exists[trie.row, column] = True
    exists[0, -1] |= not predicts.any()  # as if it had logits
    # Padding sees itself, since attention to nothing is not a number in some models.
    ancestors = np.eye(num_nodes, dtype=bool)[None].repeat(num_rows, axis=0)
    for parent, child in itertools.pairwise(trie.path.T):
        parent, child = parent[child >= 0], child[child >= 0]
        row = trie.row[child]
        ancestors[row, column[child]] |= ancestors[row, column[parent]]

    base = 1 + predictions.target.max(initial=0)
    row = trie.row[node]
    num_logits = exists[:, num_inner:].sum(1)
    source = (num_logits.cumsum() - num_logits)[row] + place[node]
    pair, which = np.unique(source * base + predictions.target, return_inverse=True)
    at = places(row, num_rows)
    candidate = table(row, at, number[predictions.owner], num_rows, num_candidates)

    prompt_ids, real = left_pad([prompt[:-1] for prompt in prompts])
    position = prompt_positions(real)
    before = real.sum(-1, keepdim=True)
    real = torch.cat([real, torch.from_numpy(exists)], dim=1)
    return Packed(
        input_ids=torch.cat([prompt_ids, torch.from_numpy(ids)], dim=1),
        position_ids=torch.cat([position, before + torch.from_numpy(depth)], dim=1),
        real=real,
        ancestors=torch.from_numpy(ancestors),
        tree_place=torch.from_numpy(tree_place),
        source=torch.from_numpy(pair // base),
        target=torch.from_numpy(pair % base),
        prediction=torch.from_numpy(table(row, at, which, num_rows, len(pair))),
        candidate=torch.from_numpy(candidate),
        allowed=None,
        num_tokens=int(real.sum()),
        keep=keep,
        num_logits=int(num_logits.sum()),
        num_candidates=num_candidates,
    )
