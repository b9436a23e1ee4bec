"""Probabilities of items as probabilities of a tree's nodes."""

import torch
from torch import Tensor

from rere.catalogue import PrefixTree


def log_mass(tree: PrefixTree, logits: Tensor) -> Tensor:
    """How likely each node's items are in all, by a softmax over the `logits` (B, I) of all items.

    Logarithms (B, N) f32, nowhere -inf. `tree` lies on the logits' device.
    """
    mass = torch.zeros(len(logits), len(tree.depth), device=logits.device)
    share, node = logits.float().softmax(-1), tree.leaf_of_item
    for _ in range(tree.num_levels):
        mass.index_add_(1, node, share)
        share, node = share * (node > 0), tree.parent[node]  # the root is above itself
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
