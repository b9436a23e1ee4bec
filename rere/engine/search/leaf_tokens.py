"""Convert leaves of the tree to token ids and back, on the tree's device.

T tokens of the longest sequence.
"""

import torch
from torch import Tensor

from rere.catalogue import PrefixTree


def token_ids(tree: PrefixTree, node: Tensor) -> Tensor:
    """The tokens from the root to each `node` (...), (..., T) i64, padded with -1 on the right.

    Those of a leaf are its items' tokens. A node of -1 has none.
    """
    position = torch.arange(tree.longest, device=node.device)
    ids = position.new_full((*node.shape, tree.longest), -1)
    above = node.clamp(min=0)[..., None]
    for _ in range(tree.num_levels):
        offset = position - (tree.depth[above] - tree.length[above])
        exists = (offset >= 0) & (offset < tree.length[above])
        ids = torch.where(exists, tree.token[(tree.edge[above] + offset).where(exists, 0)], ids)
        above = tree.parent[above]
    return ids.masked_fill(node[..., None] < 0, -1)


def find_leaf(tree: PrefixTree, ids: Tensor) -> Tensor:
    """The leaf whose tokens are exactly `ids` (..., T), padded with -1: (...) i64, -1 for none."""
    # Nodes are numbered by parent, then by the first token of their edge: `steps` ascend.
    stride = tree.token.max() + 1
    steps = tree.parent[1:] * stride + tree.token[tree.edge[1:-1]]
    node = torch.zeros_like(ids[..., 0])
    for _ in range(tree.num_levels - 1):
        position = tree.depth[node].clamp(max=tree.longest - 1)
        step = node * stride + ids.gather(-1, position[..., None])[..., 0]
        child = torch.searchsorted(steps, step).clamp(max=len(steps) - 1)
        node = torch.where((steps[child] == step) & (tree.fanout[node] > 0), child + 1, node)
    # So far only the first tokens of edges were compared, and tokens above `stride` misread.
    is_same = (token_ids(tree, node) == ids).all(-1)
    return node.where(is_same & (tree.fanout[node] == 0), -1)
