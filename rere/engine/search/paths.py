"""What a search knows between two forward passes: its paths and the scores of their next tokens.

B rows, K paths, S fed tokens, F children of a node, C tokens of an edge, N nodes of the tree.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Paths(NamedTuple):
    """Unfinished paths from the root, best first. Rows with fewer than K end in score -inf.

    A path is on the edge into `node`. The search has included `num_taken` of the edge's tokens in
    `score`. The model has computed `num_fed` of them.
    """

    node: Tensor  # (B, K) i64
    num_taken: Tensor  # (B, K) i64
    num_fed: Tensor  # (B, K) i64
    score: Tensor  # (B, K) f32
    parent: Tensor  # (B, K) i64, index of the path in `KnownScores` that this one extends


class KnownScores(NamedTuple):
    """Scores by the last forward pass, for the paths of that time.

    The tokens of an edge after its first are forced: they have no alternatives.
    """

    children: Tensor  # (B, K, F) log-probability of each child's first token, -inf for no child
    forced: Tensor  # (B, K, C) log-probabilities of the edge's tokens from `first_forced` on
    first_forced: Tensor  # (B, K) i64
    ancestors: Tensor  # (B, K, S) bool, which fed tokens are on the path


class AuxiliaryScorer(NamedTuple):
    """A second model's node log-probabilities, averaged with the searched model's.

    A path scores `weight` times the searched model's log-probability plus 1 - `weight` times
    `node_log_probs`: the second model's log-probability of all items below each node.
    """

    node_log_probs: Tensor  # (B, N) f32
    weight: float  # up to 1


class PassPlan(NamedTuple):
    """The next forward pass, with the sizes that the host must know to build it."""

    num_to_feed: Tensor  # (B, K) i64, tokens that each path feeds
    num_rows: int  # rows with an unfinished path
    num_paths: int  # unfinished paths of the fullest row
    num_feeding: int  # M, paths that feed tokens, of the row with most of them
    num_columns: int  # columns for the fed tokens, or for all but the last one of each path
    fanout: int  # F
    num_tokens: int  # fed by all rows
    num_ends: int  # paths that feed tokens, of all rows
    num_steps: int  # search steps that the scores of the pass suffice for, at most
    num_used: int  # earlier fed tokens that are on unfinished paths, of the row with most of them


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values[b, index[b, k]] for each b and k, of values (B, N) or (B, N, ...)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]


def replace_rows(old: Tensor, new: Tensor, is_new: Tensor, rank: Tensor) -> Tensor:
    """`old` (B, K, X) with new[b, rank[b, k]] at [b, k] where `is_new` (B, K).

    The result is as wide as `new` (B, M, Y): `old` is cut to Y or filled with -inf.
    """
    missing = new.shape[-1] - old.shape[-1]
    old = pad(old, (0, max(missing, 0)), value=-torch.inf)[..., : new.shape[-1]]
    return torch.where(is_new[..., None], gather_rows(new, rank), old)


def find_used_tokens(paths: Paths, known: KnownScores) -> Tensor:
    """Which fed tokens (B, S) are on an unfinished path."""
    is_used = gather_rows(known.ancestors, paths.parent) & paths.score.isfinite()[..., None]
    return is_used.any(1)
