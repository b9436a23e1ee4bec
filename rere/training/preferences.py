"""The loss of preference methods, given what policy and reference say of a row's candidates.

B rows, 1 + N candidates each: the target comes first, its negatives follow.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def margins(log_prob: Tensor, reference: Tensor, beta: float, exists: Tensor) -> Tensor:
    """beta (r_target - r_n) of each negative, r = log_prob - reference; (B, N).

    log_prob and reference (B, 1 + N), sums over a candidate's tokens; exists (B, 1 + N) bool.
    Infinite where there is no negative, so that it counts for nothing.
    """
    ratio = log_prob - reference
    return (beta * (ratio[:, :1] - ratio[:, 1:])).masked_fill(~exists[:, 1:], torch.inf)


def s_dpo(margin: Tensor) -> Tensor:
    """-log sigmoid(-log sum_n exp(-margin_n)) of each row: margin (B, N) -> (B,).

    Every row has a negative. Chen et al. 2024 (arXiv 2406.09215), equation 12. With one negative
    it is -log sigmoid(margin), the loss of DPO: Rafailov et al. 2023 (arXiv 2305.18290),
    equation 7.
    """
    return -logsigmoid(-(-margin).logsumexp(-1))
