"""The catalogue's prefix tree: which tokens can follow which, and which items a path leads to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rere.errors import InputError


@dataclass(frozen=True)
class PrefixTree:
    """A radix tree of token sequences in flat arrays.

    Sequences branch at inner nodes and end at leaves; the tokens between two nodes are on the
    edge. Nodes are numbered level by level from the root, 0, so the children of `n` are
    `first_child[n] .. first_child[n + 1] - 1`, sorted by the first token of their edges. The edge
    into `n` has the tokens `token[edge[n] : edge[n + 1]]`, at least one, except for the root, whose
    edge has the tokens that all sequences begin with. A leaf has the items whose sequence ends
    there, in order of item id.

    T tokens, N nodes, I items; all arrays i64.
    """

    token: Tensor  # (T,)
    edge: Tensor  # (N + 1,)
    first_child: Tensor  # (N + 1,)
    depth: Tensor  # (N,) tokens from a sequence's start to the end of the node's edge
    leaf_of_item: Tensor  # (I,)
    longest: int
    """Tokens of the longest sequence."""
    shadowed: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(U,) items whose leaf stands for another title, that of the leaf's first item."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Build the tree of one token sequence per item, all with the same last token.

        Raises InputError for an empty catalogue, and for a sequence that is a prefix of another
        one: a search could not tell where it ends.
        """
        if not sequences:
            raise InputError("the catalogue is empty; there is nothing to recommend")
        length = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter(itertools.chain.from_iterable(sequences), np.int64, length.sum())
        start = length.cumsum() - length
        order, rank = sort_distinct(flat, start, length)
        start, length = start[order], length[order]
        shared = shared_prefix(flat, start, length)
        is_prefix = np.flatnonzero(shared[1:-1] == length[:-1])
        if len(is_prefix):
            item = order[is_prefix[0]]
            raise InputError(f"item {item}: another item's tokens begin with all of its")

        # Level by level: a node is a run low .. high - 1 of the sorted sequences, those below it.
        low, high, above = np.array([0]), np.array([len(order)]), np.array([0])
        edge_starts, depths, edge_lengths, fanouts = [], [], [], []
        leaf = np.empty(len(order), dtype=np.int64)
        num_nodes = 0
        while len(low):
            size = high - low
            least_shared = np.minimum.reduceat(shared, np.stack([low + 1, high], axis=1).ravel())
            depth = np.where(size == 1, length[low], least_shared[::2])
            leaf[low[size == 1]] = num_nodes + np.flatnonzero(size == 1)
            edge_starts.append(start[low] + above)
            edge_lengths.append(depth - above)
            depths.append(depth)
            num_nodes += len(low)

            # A child starts where neighbours share no more tokens than the whole run does.
            node = np.repeat(np.arange(len(low)), np.where(size > 1, size, 0))
            position = ranges(low[size > 1], size[size > 1])
            starts_child = (position == low[node]) | (shared[position] == depth[node])
            parent, begin = node[starts_child], position[starts_child]
            fanouts.append(np.bincount(parent, minlength=len(low)))
            is_last = np.append(parent[1:] != parent[:-1], True)[: len(parent)]
            low, high = begin, np.where(is_last, high[parent], np.roll(begin, -1))
            above = depth[parent]

        edge_length = np.concatenate(edge_lengths)
        return cls(
            token=torch.from_numpy(flat[ranges(np.concatenate(edge_starts), edge_length)]),
            edge=torch.from_numpy(np.append(0, edge_length.cumsum())),
            first_child=torch.from_numpy(1 + np.append(0, np.concatenate(fanouts).cumsum())),
            depth=torch.from_numpy(np.concatenate(depths)),
            leaf_of_item=torch.from_numpy(leaf[rank]),
            longest=int(length.max()),
        )

    @cached_property
    def edge_length(self) -> Tensor:
        """Tokens on the edge into each node, (N,)."""
        return self.edge.diff()

    @cached_property
    def fanout(self) -> Tensor:
        """Number of children of each node, (N,); 0 for a leaf."""
        return self.first_child.diff()

    @cached_property
    def parent(self) -> Tensor:
        """Parent of each node, (N,); the root's is the root."""
        node = torch.arange(len(self.fanout), device=self.fanout.device)
        return torch.cat([node[:1], node.repeat_interleave(self.fanout)])

    @cached_property
    def first_tokens(self) -> tuple[Tensor, Tensor]:
        """The tokens with which edges begin, (C,) ascending, and which of them each node's does.

        The second is (N,), arbitrary for the root.
        """
        first = self.token[self.edge[:-1].clamp(max=len(self.token) - 1)]
        token, index = first.unique(return_inverse=True)
        return token, index

    def children(self, node: Tensor, max_fanout: int) -> tuple[Tensor, Tensor]:
        """Return the children (..., max_fanout) i64 of each `node` (...), and which exist, bool.

        A child that does not exist is 0. No node may have more than `max_fanout`.
        """
        number = torch.arange(max_fanout, device=node.device)
        exists = number < self.fanout[node][..., None]
        return (self.first_child[node][..., None] + number).where(exists, 0), exists

    @cached_property
    def num_levels(self) -> int:
        """Nodes on the longest path from the root to a leaf, including both."""
        levels, end = 1, 1
        while end < len(self.fanout):
            levels, end = levels + 1, int(self.first_child[end])
        return levels

    @cached_property
    def eos(self) -> int:
        """The last token of every sequence, as the last node is a leaf."""
        return int(self.token[-1])

    @cached_property
    def root(self) -> Tensor:
        """The node at which the search of each row begins, (1,): the same for all rows."""
        return torch.zeros_like(self.depth[:1])

    @cached_property
    def root_length(self) -> int:
        """Tokens on the root's edge, with which all sequences begin."""
        return int(self.edge[1])

    @cached_property
    def root_fanout(self) -> int:
        """Number of children of the root; 0 if it is the only leaf."""
        return int(self.first_child[1]) - 1

    def to(self, device: torch.device | str) -> Self:
        """Return the tree with its arrays on `device`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **values | tensors)

    @cached_property
    def leaf_items(self) -> dict[int, list[int]]:
        """Item ids of each leaf, in ascending order; several if their tokens are equal."""
        leaves: dict[int, list[int]] = {}
        for item, leaf in enumerate(self.leaf_of_item.tolist()):
            leaves.setdefault(leaf, []).append(item)
        return leaves

    @cached_property
    def items_by_leaf(self) -> tuple[np.ndarray, np.ndarray]:
        """All items in order of their leaf, then of item id, (I,), and their leaves, (I,)."""
        leaf = self.leaf_of_item.cpu().numpy()
        order = np.argsort(leaf, kind="stable")
        return order, leaf[order]

    def items_of(self, leaf: int) -> list[int]:
        """Item ids of a leaf, in ascending order; faster than `leaf_items` for a few leaves."""
        order, leaves = self.items_by_leaf
        first, end = np.searchsorted(leaves, [leaf, leaf + 1])
        found: list[int] = order[first:end].tolist()
        return found

    @cached_property
    def hit_leaf(self) -> Tensor:
        """For each item (I,) its leaf; -2, which no candidate has, if shadowed."""
        return self.leaf_of_item.index_fill(0, self.shadowed, -2)

    @cached_property
    def first_item(self) -> Tensor:
        """First item of each leaf, (N,) i64 on the tree's device; -1 at inner nodes."""
        items = torch.arange(len(self.leaf_of_item), device=self.leaf_of_item.device)
        none = torch.full_like(self.depth, len(items))
        first = none.scatter_reduce(0, self.leaf_of_item, items, "amin")
        return first.masked_fill(first == len(items), -1)


def token_ids(tree: PrefixTree, node: Tensor) -> Tensor:
    """Return the tokens from the root to each `node` (...), (..., T) i64, padded with -1.

    T tokens of the longest sequence. The tokens of a leaf are those of its items. A node of -1
    has none.
    """
    position = torch.arange(tree.longest, device=node.device)
    ids = position.new_full((*node.shape, tree.longest), -1)
    above = node.clamp(min=0)[..., None]
    for _ in range(tree.num_levels):
        offset = position - (tree.depth[above] - tree.edge_length[above])
        exists = (offset >= 0) & (offset < tree.edge_length[above])
        ids = torch.where(exists, tree.token[(tree.edge[above] + offset).where(exists, 0)], ids)
        above = tree.parent[above]
    return ids.masked_fill(node[..., None] < 0, -1)


def find_leaf(tree: PrefixTree, ids: Tensor) -> Tensor:
    """Return the leaf whose tokens are `ids` (..., T), padded with -1: (...) i64, -1 for none."""
    # Nodes are numbered by parent, then by the first token of their edge: `steps` ascend.
    stride = tree.token.max() + 1
    steps = tree.parent[1:] * stride + tree.token[tree.edge[1:-1]]
    node = torch.zeros_like(ids[..., 0])
    for _ in range(tree.num_levels - 1):
        position = tree.depth[node].clamp(max=tree.longest - 1)
        step = node * stride + ids.gather(-1, position[..., None])[..., 0]
        child = torch.searchsorted(steps, step).clamp(max=len(steps) - 1)
        node = torch.where((steps[child] == step) & (tree.fanout[node] > 0), child + 1, node)
    # So far only first tokens of edges were compared, and tokens from `stride` on misread.
    is_same = (token_ids(tree, node) == ids).all(-1)
    return node.where(is_same & (tree.fanout[node] == 0), -1)


def sort_distinct(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct sequences' indices, in lexicographic order, and all sequences' ranks."""
    raw = flat.astype(">u4").tobytes()  # big-endian bytes sort like the tokens
    bounds = zip(start.tolist(), (start + length).tolist(), strict=True)
    keys = [raw[4 * begin : 4 * end] for begin, end in bounds]
    by_key = sorted(range(len(keys)), key=keys.__getitem__)
    changes = (keys[a] != keys[b] for a, b in itertools.pairwise(by_key))
    order, is_new = np.array(by_key), np.array([True, *changes])
    rank = np.empty_like(order)
    rank[order] = is_new.cumsum() - 1
    return order[is_new], rank


def shared_prefix(flat: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the number of tokens that each sequence shares with the one before; 0 at both ends."""
    shared = np.zeros(len(start) + 1, dtype=np.int64)
    equal = np.arange(1, len(start))  # sequences equal to the one before so far
    while len(equal):
        depth = shared[equal]
        has_more = depth < np.minimum(length[equal - 1], length[equal])
        equal, depth = equal[has_more], depth[has_more]
        equal = equal[flat[start[equal - 1] + depth] == flat[start[equal] + depth]]
        shared[equal] += 1
    return shared


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return start[0] .. start[0] + length[0] - 1, then start[1] .., and so on."""
    first: np.ndarray = np.repeat(start - (length.cumsum() - length), length)
    return first + np.arange(len(first))


def node_depths(edge: Tensor, first_child: Tensor) -> Tensor:
    """Return the tokens from a sequence's start to the end of each node's edge, (N,).

    Pointer doubling: each round adds an ancestor's sum, then looks twice as far up.
    """
    depth = edge.diff()
    root_length, depth[0] = int(depth[0]), 0
    ancestor = torch.arange(len(depth)).repeat_interleave(first_child.diff())
    ancestor = torch.cat([ancestor.new_zeros(1), ancestor])
    while ancestor.any():
        depth, ancestor = depth + depth[ancestor], ancestor[ancestor]
    return depth + root_length
