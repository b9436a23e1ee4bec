"""Pack leaves of the catalogue's prefix tree as candidates, under any scoring.

Under `vocabulary` scoring all tokens of a leaf's path are predicted. Under `catalogue` scoring only
its decisions are, since tokens without alternatives have probability 1; the tokens behind the
last decision are not even fed. `decisions` scoring predicts the same tokens, but normalises over
the whole vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rere.engine import SearchScoring
from rere.engine.candidates.packing import (
    AllowedTokens,
    Ints,
    PackedBatch,
    Predictions,
    assemble,
    build_token_trees,
    last_tokens,
    pack_tokens,
    to_matrix,
)
from rere.prefix_tree import PrefixTree, ranges


def pack_leaves(
    prompts: Sequence[Sequence[int]], leaves: Tensor, tree: PrefixTree, scoring: SearchScoring
) -> PackedBatch:
    """Pack each prompt with the `leaves` (B, G) i64 of its row, -1 where there is none.

    `tree` and `leaves` lie on the host.
    """
    leaf = leaves.numpy()
    row, slot = (leaf >= 0).nonzero()
    leaf, num_candidates = leaf[row, slot], leaf.shape[1]
    candidate, node, is_leaf = paths_from_root(tree, leaf)
    edge, length, depth = tree.edge.numpy(), tree.edge_length.numpy(), tree.depth.numpy()
    token = tree.token.numpy()
    if scoring == "vocabulary":
        tokens = token[ranges(edge[node], length[node])]
        return pack_tokens(prompts, row, slot, tokens, depth[leaf], num_candidates)

    inner = node[~is_leaf]
    fed = to_matrix(
        candidate[~is_leaf].repeat(length[inner]),
        ranges(depth[inner] - length[inner], length[inner]),
        token[ranges(edge[inner], length[inner])],
        len(leaf),
        fill=-1,
    )
    # A path lists each node's child behind it.
    child = np.roll(node, -1)[~is_leaf]
    predictions = Predictions(candidate[~is_leaf], depth[inner], token[edge[child]])
    trees = build_token_trees(last_tokens(prompts), row, fed)
    packed = assemble(prompts, slot, trees, predictions, num_candidates)
    if scoring == "decisions":
        return packed
    return replace(packed, allowed=allowed_tokens(tree, packed, inner))


def paths_from_root(tree: PrefixTree, leaf: Ints) -> tuple[Ints, Ints, Ints]:
    """The nodes from the root to each `leaf` (C,), path after path.

    Returns three arrays of equal length: the index of the leaf in [0, C), the node, and whether it
    is that leaf.
    """
    steps = [leaf]
    while steps[-1].any():
        steps.append(tree.parent.numpy()[steps[-1]])
    path = np.stack(steps[::-1], axis=1)  # shorter paths repeat the root, node 0
    on_path = np.ones_like(path, dtype=bool)
    on_path[:, :-1] = path[:, 1:] > 0
    index, step = on_path.nonzero()
    return index, path[on_path], step == path.shape[1] - 1


def allowed_tokens(tree: PrefixTree, packed: PackedBatch, inner: Ints) -> AllowedTokens:
    """The tokens that the tree allows at each of the R logits.

    `inner` (X,) holds the tree's node of each prediction.
    """
    exists = packed.candidate < packed.num_candidates
    predicted = packed.logits_index[packed.prediction[exists]]
    logits_index, first = np.unique(predicted.numpy(), return_index=True)
    node = inner[first]
    count = tree.fanout.numpy()[node]
    child = ranges(tree.first_child.numpy()[node], count)
    return AllowedTokens(torch.from_numpy(logits_index.repeat(count)), tree.token[tree.edge[child]])
