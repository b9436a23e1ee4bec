"""Exact constrained beam search: the prompt is computed once, beams hang from it as a tree.

Each step feeds the running beams' newest tokens as the query positions of one sequence per row.
A mask says which cached tokens are a beam's ancestors, so nothing is ever copied or reordered in
the cache. Scores and order are those of the token-synchronous beam search of transformers with
length penalty 0: log-probabilities over the whole vocabulary, added up along the path.

B rows, K running beams, F children of a node at most, V tokens, L prompt tokens, S cached tokens
of beams.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.packing import additive, left_pad, prompt_positions, upcast


class Beams(NamedTuple):
    """Finished hypotheses, best first. Rows with fewer than K end in score -inf, leaf -1."""

    leaf: Tensor  # (B, K) i64, nodes of the tree
    score: Tensor  # (B, K) f32, log-probability of the whole path


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode for a while: no dropout, and no checkpointing, which would drop the cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def beam_search(
    model: PreTrainedModel, tree: PrefixTree, prompts: Sequence[Sequence[int]], num_beams: int
) -> Beams:
    """The `num_beams` best paths of the tree for each prompt, (B, num_beams).

    `tree` lies on the model's device. Raises ValueError for num_beams below 1.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, not {num_beams}")
    with evaluating(model):
        return search(model, tree, prompts, num_beams)


def search(
    model: PreTrainedModel, tree: PrefixTree, prompts: Sequence[Sequence[int]], num_beams: int
) -> Beams:
    device = tree.token.device
    ids, real = (tensor.to(device) for tensor in left_pad(prompts))
    num_rows, length = ids.shape
    cache = DynamicCache(config=model.config)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    logits = model(
        input_ids=ids,
        position_ids=prompt_positions(real),
        attention_mask=additive(real[:, None, :] & causal, model.dtype),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits  # (B, 1, V)

    node = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
    score = torch.zeros(num_rows, 1, device=device)
    ancestors = torch.zeros(num_rows, 1, 0, dtype=torch.bool, device=device)
    next_position = real.sum(-1, keepdim=True)
    finished = Beams(
        torch.full((num_rows, num_beams), -1, device=device),
        torch.full((num_rows, num_beams), -torch.inf, device=device),
    )
    for fanout in tree.fanout_by_depth[:-1]:
        child, child_score = children(tree, node, score, upcast(logits).log_softmax(-1), fanout)
        # Twice the beams, so that K go on even when K of the best just finished.
        width = min(2 * num_beams, child_score[0].numel())
        top_score, top = child_score.flatten(1).topk(width)
        top_child = child.flatten(1).gather(1, top)
        is_leaf = tree.first_child[top_child] == tree.first_child[top_child + 1]
        is_best = torch.arange(width, device=device) < num_beams
        finished = merge(
            finished, top_child, top_score.masked_fill(~(is_leaf & is_best), -torch.inf)
        )
        # Scores only fall along a path: what is no better than the worst of K finished never wins.
        going = ~is_leaf & (top_score > finished.score[:, -1:])
        score, chosen = top_score.masked_fill(~going, -torch.inf).topk(min(num_beams, width))
        num_running = int(score.isfinite().sum(-1).max())
        if num_running == 0:
            break
        score, chosen = score[:, :num_running], chosen[:, :num_running]
        node = top_child.gather(1, chosen)
        parent = top.gather(1, chosen) // fanout

        itself = torch.eye(num_running, dtype=torch.bool, device=device).expand(num_rows, -1, -1)
        inherited = ancestors.gather(1, parent[..., None].expand(-1, -1, ancestors.shape[-1]))
        ancestors = torch.cat([inherited, itself], dim=-1)  # (B, K, S)
        visible = torch.cat([real[:, None, :].expand(-1, num_running, -1), ancestors], dim=-1)
        logits = model(
            input_ids=tree.token[node],
            position_ids=next_position.expand(-1, num_running),
            attention_mask=additive(visible, model.dtype),
            past_key_values=cache,
        ).logits  # (B, K, V)
        next_position = next_position + 1
    return finished


def children(
    tree: PrefixTree, node: Tensor, score: Tensor, log_probs: Tensor, fanout: int
) -> tuple[Tensor, Tensor]:
    """The children of each beam's node and their scores, (B, K, F); -inf where there is none."""
    first, end = tree.first_child[node], tree.first_child[node + 1]
    child = first[..., None] + torch.arange(fanout, device=node.device)
    exists = child < end[..., None]
    child = torch.where(exists, child, 0)
    child_score = score[..., None] + log_probs.gather(-1, tree.token[child])
    return child, child_score.masked_fill(~exists, -torch.inf)


def merge(finished: Beams, leaf: Tensor, score: Tensor) -> Beams:
    """The best K of the finished hypotheses and new ones."""
    scores, best = torch.cat([finished.score, score], dim=1).topk(finished.score.shape[1])
    leaves = torch.cat([finished.leaf, leaf], dim=1).gather(1, best)
    return Beams(leaves.masked_fill(scores.isneginf(), -1), scores)
