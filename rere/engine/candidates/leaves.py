"""Leaves of the catalogue's prefix tree as packed candidates, under any scoring.

Under `vocabulary` scores a leaf is the tokens of its path. Under `catalogue` scores it is the
decisions on it: forced tokens have probability 1, so only a decision is a predicted token, and
what follows the last one is not even fed. Under `decisions` scores it is the same decisions, out of
the whole vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rere.catalogue import PrefixTree, ranges
from rere.engine.candidates.packing import (
    Allowed,
    Ints,
    Packed,
    Predictions,
    lay_out,
    merge,
    pack_tokens,
    roots,
    table,
)
from rere.engine.search.path_scorer import Scoring


def pack_leaves(
    prompts: Sequence[Sequence[int]], leaves: Tensor, tree: PrefixTree, scoring: Scoring
) -> Packed:
    """Pack each prompt with the `leaves` (B, G) i64 of its row, -1 where there is none.

    `tree` and `leaves` lie on the host.
    """
    leaf = leaves.numpy()
    row, number = (leaf >= 0).nonzero()
    leaf, num_candidates = leaf[row, number], leaf.shape[1]
    owner, node, is_leaf = ways(tree, leaf)
    edge, length, depth = tree.edge.numpy(), tree.length.numpy(), tree.depth.numpy()
    token = tree.token.numpy()
    if scoring == "vocabulary":
        at = ranges(edge[node], length[node])
        return pack_tokens(prompts, row, number, token[at], depth[leaf], num_candidates, at)

    inner = node[~is_leaf]
    place = ranges(depth[inner] - length[inner], length[inner])
    fed = table(
        owner[~is_leaf].repeat(length[inner]),
        place,
        token[ranges(edge[inner], length[inner])],
        len(leaf),
        fill=-1,
    )
    # A node is followed by its child, but for the leaf.
    child = np.roll(node, -1)[~is_leaf]
    predictions = Predictions(owner[~is_leaf], depth[inner], token[edge[child]])
    trie = merge(roots(prompts), row, fed)
    packed = lay_out(prompts, number, trie, predictions, num_candidates)
    if scoring == "decisions":
        return packed
    return replace(packed, allowed=allowed(tree, packed, inner))


def ways(tree: PrefixTree, leaf: Ints) -> tuple[Ints, Ints, Ints]:
    """The nodes on the way from the root to each `leaf` (C,), one way after another.

    Returns the number of the leaf they lead to, the nodes, and which of them are that leaf.
    """
    steps = [leaf]
    while steps[-1].any():
        steps.append(tree.parent.numpy()[steps[-1]])
    way = np.stack(steps[::-1], axis=1)  # (C, longest), the root again and again before a short one
    on_way = np.ones_like(way, dtype=bool)
    on_way[:, :-1] = way[:, 1:] > 0
    owner, step = on_way.nonzero()
    return owner, way[on_way], step == way.shape[1] - 1


def allowed(tree: PrefixTree, packed: Packed, inner: Ints) -> Allowed:
    """The tokens that may follow at each place that predicts; `inner` (X,) as the predictions."""
    exists = packed.candidate < packed.num_candidates
    source, first = np.unique(packed.source[packed.prediction[exists]], return_index=True)
    node = inner[first]
    count = tree.fanout.numpy()[node]
    child = ranges(tree.first_child.numpy()[node], count)
    return Allowed(torch.from_numpy(source.repeat(count)), tree.token[tree.edge[child]])
