"""Plain training: every candidate in a sequence of its own, prompt included.

It is written as usual, and tuned. Sequences are padded on the right, so that attention needs no
mask, and only logits that predict a response are computed. A pass takes as many sequences as are
fastest. The reference runs first, so that no activations are held meanwhile. An on-policy ratio is
1 and needs no third pass.

C sequences, T response tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from rere.benchmarks.models import BenchmarkModel
from rere.benchmarks.plain.generate import TokenTree, TreeProcessor
from rere.benchmarks.timing import Prompts
from rere.engine.model.padding import right_pad
from rere.engine.model.softmax import upcast
from rere.training.objectives import k3

IGNORED = -100


class Sequences(NamedTuple):
    """Prompts and their responses, one each."""

    prompts: Prompts
    responses: Prompts

    def split(self, size: int) -> Iterator["Sequences"]:
        for start in range(0, len(self.prompts), size):
            yield Sequences(*(column[start : start + size] for column in self))


def expand(model: BenchmarkModel, prompts: Prompts, leaves: Sequence[Sequence[int]]) -> Sequences:
    """Return one sequence for each leaf of each prompt."""
    pairs = [
        (prompt, model.sequence_of_leaf(leaf))
        for prompt, group in zip(prompts, leaves, strict=True)
        for leaf in group
    ]
    return Sequences(*zip(*pairs, strict=True))


def log_probs(
    model: PreTrainedModel, sequences: Sequences, tree: TokenTree | None = None
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (C, T) f32 of response tokens, 0 at padding, and which count.

    They are over the whole vocabulary, or with a `tree` over the tokens it allows; forced tokens
    then do not count.
    """
    pairs = list(zip(*sequences, strict=True))
    fed = right_pad([[*prompt, *response[:-1]] for prompt, response in pairs], 0).to(model.device)
    target = right_pad([list(r) for r in sequences.responses], IGNORED).to(model.device)
    start = torch.tensor([len(prompt) - 1 for prompt in sequences.prompts], device=fed.device)
    positions = start[:, None] + torch.arange(target.shape[1], device=fed.device)
    positions = positions.clamp(max=fed.shape[1] - 1)
    logits = upcast(model(input_ids=fed, logits_to_keep=positions, use_cache=False).logits)
    counts = target != IGNORED
    if tree is not None:
        mask, path = TreeProcessor(tree, 1), torch.cat([fed[:, :1], target], dim=1)
        allowed = [mask(path[:, : 1 + end], logits[:, end]) for end in range(target.shape[1])]
        logits = torch.where(counts[..., None], torch.stack(allowed, dim=1), logits)
        counts = counts & (logits.isfinite().sum(-1) > 1)
    loss = cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -loss.view_as(target), counts


def backward_grpo(
    model: BenchmarkModel,
    reference: PreTrainedModel | None,
    sequences: Sequences,
    advantage: Tensor,
    beta: float,
    sequences_per_pass: int,
) -> float:
    """Add the gradient of the GRPO loss (`rere.training.objectives`); return the loss."""
    advantages = advantage.to(model.device).split(sequences_per_pass)
    total = 0.0
    for part, weight in zip(sequences.split(sequences_per_pass), advantages, strict=True):
        with model.precision():
            if reference is not None:
                with torch.no_grad():
                    reference_log_prob, _ = log_probs(reference, part)
            log_prob, counts = log_probs(model.float32, part)
        loss = -(log_prob - log_prob.detach()).exp() * weight[:, None]
        if reference is not None:
            loss = loss + beta * k3(log_prob, reference_log_prob)
        mean = (loss * counts).sum(-1) / counts.sum(-1)
        loss = mean.sum() / len(advantage)
        loss.backward()
        total += loss.item()
    return total
