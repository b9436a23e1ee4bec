"""The catalogue's prefix tree: which tokens may follow which, and which items a path ends in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch

from rere.errors import InputError


@dataclass(frozen=True)
class PrefixTree:
    """A prefix tree of token sequences in flat arrays, numbered level by level from the root, 0.

    Level order makes the children of a node neighbours: those of `n` are the nodes
    `first_child[n] .. first_child[n + 1] - 1`, in the order of their tokens. A node without
    children is a leaf; it holds the items whose sequence ends there, in the order of item id.

    token (N,) i64 (the root has none: 0), first_child (N + 1,) i64, leaf_of_item (I,) i64.
    """

    token: torch.Tensor
    first_child: torch.Tensor
    leaf_of_item: torch.Tensor
    fanout_by_depth: tuple[int, ...]
    """The most children that a node of each depth has; the deepest leaves' 0 comes last."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """The tree of one token sequence an item, all ended by the same end-of-sequence token.

        Raises InputError for an empty catalogue, and for a sequence that another one continues
        (it would be an inner node and could never be told apart).
        """
        if not sequences:
            raise InputError("the catalogue is empty; there is nothing to recommend")
        lengths = np.array([len(sequence) for sequence in sequences])
        table = np.full((len(sequences), lengths.max()), -1, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(sequences)
        order = np.lexsort(table.T[::-1])
        table = table[order]

        # Rows are sorted, so a node of depth d starts wherever the first d tokens change.
        tokens, parents, fanouts = [np.array([0])], [], []
        node_of_row = np.zeros(len(table), dtype=np.int64)
        changed = np.arange(len(table)) == 0
        num_nodes = 1
        for column in table.T:
            changed[1:] |= column[1:] != column[:-1]
            starts = changed & (column >= 0)
            tokens.append(column[starts])
            parents.append(node_of_row[starts])
            fanouts.append(int(np.bincount(parents[-1]).max()))
            deeper = num_nodes + np.cumsum(starts) - 1
            node_of_row = np.where(column >= 0, deeper, node_of_row)
            num_nodes += len(tokens[-1])

        first_child = 1 + np.searchsorted(np.concatenate(parents), np.arange(num_nodes + 1))
        inner = np.flatnonzero(first_child[node_of_row] < first_child[node_of_row + 1])
        if len(inner):
            raise InputError(f"item {order[inner[0]]}: another item's tokens begin with all of its")
        leaf_of_item = np.empty_like(node_of_row)
        leaf_of_item[order] = node_of_row
        return cls(
            token=torch.from_numpy(np.concatenate(tokens)),
            first_child=torch.from_numpy(first_child),
            leaf_of_item=torch.from_numpy(leaf_of_item),
            fanout_by_depth=(*fanouts, 0),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its arrays on `device`."""
        return replace(
            self,
            token=self.token.to(device),
            first_child=self.first_child.to(device),
            leaf_of_item=self.leaf_of_item.to(device),
        )

    @cached_property
    def leaf_items(self) -> dict[int, list[int]]:
        """The item ids of each leaf, several where titles coincide, in the order of item id."""
        leaves: dict[int, list[int]] = {}
        for item, leaf in enumerate(self.leaf_of_item.tolist()):
            leaves.setdefault(leaf, []).append(item)
        return leaves
