"""Leaves of the tree as token ids, and token ids as leaves, on the tree's device.

T tokens of the longest sequence.
"""

import torch
from torch import Tensor

from rere.catalogue import PrefixTree


def token_ids(tree: PrefixTree, node: Tensor) -> Tensor:
    """The tokens from the start to each `node` (...), (..., T) i64, padded with -1 on the right.

    They are those of an item where the node is a leaf, and none where it is -1.
    """
    place = torch.arange(tree.longest, device=node.device)
    ids = place.new_full((*node.shape, tree.longest), -1)
    above = node.clamp(min=0)[..., None]
    for _ in range(tree.num_levels):
        on_edge = place - (tree.depth[above] - tree.length[above])
        exists = (on_edge >= 0) & (on_edge < tree.length[above])
        ids = torch.where(exists, tree.token[(tree.edge[above] + on_edge).where(exists, 0)], ids)
        above = tree.parent[above]
    return ids.masked_fill(node[..., None] < 0, -1)


def leaf_of(tree: PrefixTree, ids: Tensor) -> Tensor:
    """The leaf whose tokens are exactly `ids` (..., T), padded as above; (...) i64, -1 without."""
    # Nodes follow each other by parent, then by the first token on their edge.
    stride = tree.token.max() + 1
    steps = tree.parent[1:] * stride + tree.token[tree.edge[1:-1]]
    node = torch.zeros_like(ids[..., 0])
    for _ in range(tree.num_levels - 1):
        place = tree.depth[node].clamp(max=tree.longest - 1)
        step = node * stride + ids.gather(-1, place[..., None])[..., 0]
        child = torch.searchsorted(steps, step).clamp(max=len(steps) - 1)
        node = torch.where((steps[child] == step) & (tree.fanout[node] > 0), child + 1, node)
    # Only first tokens led here, or tokens beyond the stride went astray: the others tell.
    same = (token_ids(tree, node) == ids).all(-1)
    return node.where(same & (tree.fanout[node] == 0), -1)
