"""Whether two searches find the same, and how good what they find is."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from rere.evaluation.metrics import ABSENT, METRICS, gains, target_ranks

TIE = 1e-4
"""Scores closer than this may come in either order: sums of float32 are not more exact."""


def same_ranking(ours: Sequence[int], theirs: Sequence[int], scores: Sequence[float]) -> bool:
    """Whether two ranked lists are the same item by item, but for near ties.

    Neighbours may be swapped where `scores`, those of `theirs`, differ by less than TIE.
    """
    if len(ours) != len(theirs):
        return False
    place = 0
    while place < len(ours):
        if ours[place] == theirs[place]:
            place += 1
            continue
        swapped = list(ours[place : place + 2]) == list(theirs[place : place + 2])[::-1]
        if not swapped or abs(scores[place] - scores[place + 1]) >= TIE:
            return False
        place += 2
    return True


def share_differing(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of rows whose lists are not the same item by item."""
    return float(np.mean([a != b for a, b in zip(ours, theirs, strict=True)]))


def ndcg(ranked: Sequence[Sequence[int]], targets: Sequence[int]) -> float:
    """Mean NDCG@10 of ranked leaves, each row with one target leaf.

    Items that share a title share a leaf, so this is the title level.
    """
    longest = max(map(len, ranked))
    rows = [[*row, *[ABSENT] * (longest - len(row))] for row in ranked]
    ranks = target_ranks(np.array(rows), np.array(targets))
    return float(gains(ranks)[:, METRICS.index("NDCG@10")].mean())


@torch.no_grad()
def search_by_decision(
    model: PreTrainedModel,
    sequences: Iterable[Sequence[int]],
    prompt: Sequence[int],
    num_beams: int,
) -> list[tuple[tuple[int, ...], float]]:
    """What `catalogue` scores mean, as plainly as can be: sequences and scores, best first.

    A hypothesis stands where sequences part. It continues with each token that some sequence has
    there, the probabilities of these tokens renormalised to sum to one, and then with all that
    follows of necessity. Of the best 2K continuations, those that end among the first K are
    results, and the first K that do not end go on. A whole forward pass for each hypothesis.
    """
    whole = {tuple(sequence) for sequence in sequences}
    running, results = [((), 0.0)], []
    while running:
        continued = []
        for path, score in running:
            below = [s for s in whole if s[: len(path)] == path]
            allowed = sorted({s[len(path)] for s in below})
            ids = torch.tensor([[*prompt, *path]], device=model.device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            log_probs = logits[allowed].float().log_softmax(-1).tolist()
            for token, log_prob in zip(allowed, log_probs, strict=True):
                chosen = [s for s in below if s[len(path)] == token]
                continued.append((shared_prefix(chosen), score + log_prob))
        continued = sorted(continued, key=lambda pair: -pair[1])[: 2 * num_beams]
        results += [pair for pair in continued[:num_beams] if pair[0] in whole]
        running = [pair for pair in continued if pair[0] not in whole][:num_beams]
    return sorted(results, key=lambda pair: -pair[1])[:num_beams]


def shared_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all the sequences begin with."""
    low, high = min(sequences), max(sequences)
    places = range(min(len(low), len(high)))
    return low[: next((i for i in places if low[i] != high[i]), len(places))]
