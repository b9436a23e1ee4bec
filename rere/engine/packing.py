"""Candidates laid out behind their prompt, so that the prompt is computed once.

A packed row reads [padding | prompt | candidate 1 | candidate 2 | ...]: every candidate token
sees the prompt and the earlier tokens of its own candidate, and its position continues the
prompt's, so that the model computes for it what it would in a sequence of its own.

B rows, L prompt tokens (left-padded), S candidate tokens, N predicted tokens, G candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rere.engine.masks import causal


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompt ids (B, L) i64, padded with 0 on the left, and where they are real (B, L) bool."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
    real = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
    return ids, real


def prompt_positions(real: Tensor) -> Tensor:
    """Positions (B, L) i64 that count real tokens from 0; learned positions depend on them."""
    return (real.cumsum(-1) - 1).clamp(min=0)


def upcast(logits: Tensor) -> Tensor:
    """Logits in float32 at least; half precision is too coarse to add log-probabilities up."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Packed:
    """A batch of prompts with their candidates, ready for one forward pass.

    Of the P = 1 + S positions from the prompt's last on, `source` says which one predicts each
    candidate token. A padded place of `candidate` holds `num_candidates`.
    """

    input_ids: Tensor  # (B, L + S) i64
    position_ids: Tensor  # (B, L + S) i64
    visible: Tensor  # (B, L + S, L + S) bool
    source: Tensor  # (B, N) i64, in [0, P)
    target: Tensor  # (B, N) i64
    candidate: Tensor  # (B, N) i64, in [0, G]
    num_kept: int  # P
    num_candidates: int  # G

    def to(self, device: torch.device | str) -> "Packed":
        """The same batch with its tensors on `device`."""
        values = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Packed(**values)


def pack(
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    num_candidates: int | None = None,
) -> Packed:
    """Pack each prompt with its candidates, in any number and of any length from 1 up.

    `num_candidates` is G where no row may have as many; without it G is the most that one has.
    """
    prompt_ids, real = left_pad(prompts)
    # A candidate's last token is predicted but never fed in.
    fed = [[token for c in row for token in c[:-1]] for row in candidates]
    owner = [[g for g, c in enumerate(row) for _ in c[:-1]] for row in candidates]
    offset = [[t for c in row for t in range(len(c) - 1)] for row in candidates]
    source, start = [], 0
    for row in candidates:
        source.append([])
        start = 0
        for c in row:
            source[-1] += [0, *range(start + 1, start + len(c))]
            start += len(c) - 1
    target = [[token for c in row for token in c] for row in candidates]
    candidate = [[g for g, c in enumerate(row) for _ in c] for row in candidates]
    num_candidates = num_candidates or max(map(len, candidates))

    fed_ids, owners, offsets = right_pad(fed, 0), right_pad(owner, -1), right_pad(offset, 0)
    num_prompt, num_fed = prompt_ids.shape[1], fed_ids.shape[1]
    length = num_prompt + num_fed
    positions = torch.cat([prompt_positions(real), real.sum(-1, keepdim=True) + offsets], dim=1)
    visible = torch.zeros(len(prompts), length, length, dtype=torch.bool)
    visible[:, :num_prompt, :num_prompt] = causal(real)
    visible[:, num_prompt:, :num_prompt] = real[:, None, :]
    visible[:, num_prompt:, num_prompt:] = owners[:, :, None] == owners[:, None, :]
    visible &= torch.ones(length, length, dtype=torch.bool).tril()
    return Packed(
        input_ids=torch.cat([prompt_ids, fed_ids], dim=1),
        position_ids=positions,
        visible=visible,
        source=right_pad(source, 0),
        target=right_pad(target, 0),
        candidate=right_pad(candidate, num_candidates),
        num_kept=1 + num_fed,
        num_candidates=num_candidates,
    )


def right_pad(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor (B, longest) i64."""
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.long)
