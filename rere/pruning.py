"""Prune the prefix tree to the items that a search may find.

`prune` serves one list of allowed items for all rows of a search, `prune_rows` a few other
excluded items for each row. Both give what a new tree of the allowed items would: a node that
keeps one child is no decision any more, and becomes part of that child's edge.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rere.errors import InputError
from rere.prefix_tree import PrefixTree, ranges


def prune(tree: PrefixTree, items: Tensor) -> PrefixTree:
    """Return the tree of `items` (I,) i64, ascending, in which they are numbered from 0.

    It equals the tree built from their sequences. `shadowed` is empty. `tree` lies on the CPU.
    Raises InputError if there are no items.
    """
    if not len(items):
        raise InputError("the catalogue is empty; there is nothing to recommend")
    first_child, fanout = tree.first_child.numpy()[:-1], tree.fanout.numpy()
    parent, leaf = tree.parent.numpy(), tree.leaf_of_item.numpy()[items.numpy()]

    is_kept = np.zeros(len(fanout), dtype=bool)
    is_kept[leaf] = True
    for low, high in reversed(levels(tree)[1:]):
        is_kept[parent[low:high][is_kept[low:high]]] = True
    kept = np.flatnonzero(is_kept)
    new_fanout = np.bincount(parent[kept[1:]], minlength=len(fanout))

    # The edge into a node that keeps one child goes on to the first one below that keeps more, or
    # none: its `end`.
    end = np.arange(len(fanout))
    end[parent[kept[1:]]] = kept[1:]
    end = np.where(new_fanout == 1, end, np.arange(len(fanout)))
    while (further := end[end] != end).any():
        end[further] = end[end[further]]

    # Breadth first, as in the whole tree: children in order of their first token.
    order, level = [], end[:1]
    while len(level):
        order.append(level)
        child = ranges(first_child[level], fanout[level])
        level = end[child[is_kept[child]]]
    old = np.concatenate(order)
    number = np.empty_like(end)
    number[old] = np.arange(len(old))

    # The parts of an edge, from the root downwards, since nodes are numbered level by level.
    part = kept[np.argsort(number[end[kept]], kind="stable")]
    part_length = tree.edge_length.numpy()[part]
    edge_length = np.bincount(number[end[part]], weights=part_length).astype(np.int64)
    token = tree.token.numpy()[ranges(tree.edge.numpy()[part], part_length)]
    depth = tree.depth.numpy()[old]
    return PrefixTree(
        token=torch.from_numpy(token),
        edge=torch.from_numpy(np.append(0, edge_length.cumsum())),
        first_child=torch.from_numpy(1 + np.append(0, new_fanout[old].cumsum())),
        depth=torch.from_numpy(depth),
        leaf_of_item=torch.from_numpy(number[leaf]),
        longest=int(depth.max()),
    )


def levels(tree: PrefixTree) -> list[tuple[int, int]]:
    """Return the first node of each level of the tree, and that of the next one."""
    bounds = [(0, 1)]
    while bounds[-1][1] < len(tree.fanout):
        end = bounds[-1][1]
        bounds.append((end, int(tree.first_child[end])))
    return bounds


@dataclass(frozen=True)
class RowTrees:
    """A prefix tree for each row of a search, in arrays that all rows share.

    The first N nodes are those of a whole tree. A row that excludes nothing has its root; another
    one has copies of those nodes that change for it, and their children, behind them. A copy's
    children are the whole tree's where nothing is excluded below them. The arrays have the meaning
    that they have in `PrefixTree`, but edges lie in any order.

    T tokens, N' nodes, B rows; all arrays i64.
    """

    token: Tensor  # (T,)
    edge: Tensor  # (N',) start of each node's edge in `token`
    edge_length: Tensor  # (N',)
    first_child: Tensor  # (N',)
    fanout: Tensor  # (N',)
    depth: Tensor  # (N',)
    original: Tensor  # (N',) the node of the whole tree with the same tokens
    root: Tensor  # (B,)
    longest: int
    root_length: int
    """Tokens with which the sequences of all rows begin."""
    root_fanout: int
    """Children of the root, of the row with most of them; 0 only if the whole tree has one leaf."""

    def children(self, node: Tensor, max_fanout: int) -> tuple[Tensor, Tensor]:
        """As `PrefixTree.children`, which takes nothing else of a tree."""
        return PrefixTree.children(cast(PrefixTree, self), node, max_fanout)

    def to(self, device: torch.device | str) -> "RowTrees":
        """Return the trees with their arrays on `device`."""
        values = vars(self)
        tensors = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **values | tensors)


def prune_rows(tree: PrefixTree, excluded: Sequence[Collection[int]]) -> RowTrees:
    """Return a tree for each row, without the leaves that it excludes.

    Its cost follows the number of excluded leaves and the children of the nodes above them. `tree`
    lies on the CPU. Raises InputError for a row that excludes all leaves.
    """
    copies = Copies(tree)
    root = torch.tensor([copies.add_row(leaves) if len(leaves) else 0 for leaves in excluded])
    arrays = copies.join()
    return RowTrees(
        **arrays,
        root=root,
        longest=tree.longest,
        root_length=tree.root_length,
        root_fanout=max(min(tree.root_fanout, 1), int(arrays["fanout"][root].max())),
    )


class Copies:
    """Copies of a tree's nodes, which follow its own in blocks of one node's children."""

    NAMES = ("edge", "edge_length", "first_child", "fanout", "depth", "original")

    def __init__(self, tree: PrefixTree) -> None:
        num_nodes = len(tree.fanout)
        of_tree = (
            tree.edge[:-1],
            tree.edge_length,
            tree.first_child[:-1],
            tree.fanout,
            tree.depth,
            torch.arange(num_nodes),
        )
        self.token, self.parent = tree.token.numpy(), tree.parent.numpy()
        self.nodes = np.stack([array.numpy() for array in of_tree])  # (6, N), in order of NAMES
        self.blocks, self.num_nodes = [self.nodes], num_nodes
        self.joined, self.num_tokens = [self.token], len(self.token)

    def add_row(self, leaves: Collection[int]) -> int:
        """Add the nodes of a row without `leaves`; return its root."""
        removed = self.remove(leaves)
        changed: set[int] = set()
        for node in removed:
            while node not in changed:
                changed.add(node)
                node = int(self.parent[node])
        return self.copy(np.array([0]), removed, changed)

    def remove(self, leaves: Collection[int]) -> dict[int, set[int]]:
        """The removed children of each node that keeps others."""
        removed: dict[int, set[int]] = {}
        for node in set(leaves):
            while True:
                if node == 0:
                    raise InputError("nothing is left to recommend; exclude fewer items")
                above = int(self.parent[node])
                removed.setdefault(above, set()).add(node)
                if len(removed[above]) < self.nodes[3, above]:
                    break
                del removed[above]
                node = above
        return removed

    def copy(self, nodes: np.ndarray, removed: dict[int, set[int]], changed: set[int]) -> int:
        """Copy siblings and what changes below them; return the number of the first copy."""
        block, first = self.nodes[:, nodes], self.num_nodes
        self.blocks.append(block)
        self.num_nodes += len(nodes)
        for position, node in enumerate(nodes.tolist()):
            if node not in changed:
                continue
            parts, children = [node], self.kept_children(node, removed)
            while len(children) == 1:
                parts.append(int(children[0]))
                children = self.kept_children(parts[-1], removed)
            block[:, position] = self.nodes[:, parts[-1]]
            if len(parts) > 1:
                block[0, position], block[1, position] = self.join_edges(parts)
            if changed & set(children.tolist()) or parts[-1] in removed:
                block[2, position] = self.copy(children, removed, changed)
                block[3, position] = len(children)
        return first

    def kept_children(self, node: int, removed: dict[int, set[int]]) -> np.ndarray:
        first, fanout = self.nodes[2:4, node]
        children = np.arange(first, first + fanout)
        return np.setdiff1d(children, list(removed.get(node, ())), assume_unique=True)

    def join_edges(self, nodes: list[int]) -> tuple[int, int]:
        """Add the tokens of several edges as one; return its start and length."""
        edge, length = self.nodes[:2, nodes]
        self.joined.append(self.token[ranges(edge, length)])
        start = self.num_tokens
        self.num_tokens += len(self.joined[-1])
        return start, len(self.joined[-1])

    def join(self) -> dict[str, Tensor]:
        """The arrays of RowTrees."""
        nodes = torch.from_numpy(np.concatenate(self.blocks, axis=1))
        token = torch.from_numpy(np.concatenate(self.joined))
        return {"token": token, **dict(zip(self.NAMES, nodes, strict=True))}
