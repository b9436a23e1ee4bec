"""Whether two searches return the same lists, and how good the lists are."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from rere.config.evaluation import METRICS
from rere.evaluation.metrics import ABSENT, metrics_from_ranks, target_ranks

TIE = 1e-4
"""Scores closer than this are tied: float32 sums are no more exact."""


def is_same_ranking(
    ours: Sequence[int], theirs: Sequence[int], their_scores: Sequence[float]
) -> bool:
    """Whether two ranked lists are equal, except that tied neighbours may be swapped."""
    if len(ours) != len(theirs):
        return False
    rank = 0
    while rank < len(ours):
        if ours[rank] == theirs[rank]:
            rank += 1
            continue
        is_swapped = list(ours[rank : rank + 2]) == list(theirs[rank : rank + 2])[::-1]
        if not is_swapped or abs(their_scores[rank] - their_scores[rank + 1]) >= TIE:
            return False
        rank += 2
    return True


def share_different(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Return the share of rows whose lists differ."""
    return float(np.mean([a != b for a, b in zip(ours, theirs, strict=True)]))


def mean_ndcg(ranked: Sequence[Sequence[int]], targets: Sequence[int]) -> float:
    """Return the mean NDCG@10 at title level of ranked leaves, given one target leaf per row."""
    longest = max(map(len, ranked))
    rows = [[*row, *[ABSENT] * (longest - len(row))] for row in ranked]
    ranks = target_ranks(np.array(rows), np.array(targets))
    return float(metrics_from_ranks(ranks)[:, METRICS.index("NDCG@10")].mean())


@torch.no_grad()
def search_by_decision(
    model: PreTrainedModel,
    sequences: Iterable[Sequence[int]],
    prompt: Sequence[int],
    num_beams: int,
) -> list[tuple[tuple[int, ...], float]]:
    """Return the best sequences and their `catalogue` scores from a plain beam search.

    A hypothesis ends where sequences branch. It is extended by each token that some sequence has
    there, with probabilities renormalised over these tokens, and by all forced tokens after it.
    Among the best 2K extensions, complete sequences within the first K are results, and the first
    K incomplete ones are extended further. Each hypothesis costs one whole forward pass.
    """
    complete = {tuple(sequence) for sequence in sequences}
    running, results = [((), 0.0)], []
    while running:
        extended = []
        for path, score in running:
            below = [s for s in complete if s[: len(path)] == path]
            allowed = sorted({s[len(path)] for s in below})
            ids = torch.tensor([[*prompt, *path]], device=model.device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            log_probs = logits[allowed].float().log_softmax(-1).tolist()
            for token, log_prob in zip(allowed, log_probs, strict=True):
                chosen = [s for s in below if s[len(path)] == token]
                extended.append((common_prefix(chosen), score + log_prob))
        extended = sorted(extended, key=lambda pair: -pair[1])[: 2 * num_beams]
        results += [pair for pair in extended[:num_beams] if pair[0] in complete]
        running = [pair for pair in extended if pair[0] not in complete][:num_beams]
    return sorted(results, key=lambda pair: -pair[1])[:num_beams]


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest prefix of all the sequences."""
    low, high = min(sequences), max(sequences)
    length = min(len(low), len(high))
    return low[: next((i for i in range(length) if low[i] != high[i]), length)]
