"""What training is measured against: every candidate in a sequence of its own, prompt and all.

As it is usually written, and tuned: sequences are padded on the right, so that attention needs no
mask; logits are those that predict a response alone; sequences go through some at a time, as many
as are fastest, under the reference first, which leaves no activations behind; the ratio of an
on-policy update is 1, so that no third pass is needed.

C sequences, T response tokens, V vocabulary.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from rere.engine.model.padding import right_pad
from rere.engine.model.softmax import upcast
from rere.benchmarks.plain.generate import TokenTree, TreeProcessor
from rere.benchmarks.timing import Prompts
from rere.training.objectives import k3

IGNORED = -100


class Sequences(NamedTuple):
    """Prompts and responses, side by side."""

    prompts: Prompts
    responses: Prompts

    def split(self, size: int) -> Iterator["Sequences"]:
        """`size` of them at a time."""
        for start in range(0, len(self.prompts), size):
            yield Sequences(*(x[start : start + size] for x in self))


def log_probs(
    model: PreTrainedModel, sequences: Sequences, tree: TokenTree | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (C, T) f32 of response tokens, 0 at padding, and which of them count.

    Over the whole vocabulary, or with a `tree` among the tokens it allows; then forced tokens do
    not count.
    """
    pairs = list(zip(*sequences, strict=True))
    fed = right_pad([[*prompt, *response[:-1]] for prompt, response in pairs], 0).to(model.device)
    target = right_pad([list(r) for r in sequences.responses], IGNORED).to(model.device)
    start = torch.tensor([len(prompt) - 1 for prompt in sequences.prompts], device=fed.device)
    at = start[:, None] + torch.arange(target.shape[1], device=fed.device)
    at = at.clamp(max=fed.shape[1] - 1)
    logits = upcast(model(input_ids=fed, logits_to_keep=at, use_cache=False).logits)
    counts = target != IGNORED
    if tree is not None:
        masked, path = TreeProcessor(tree, 1), torch.cat([fed[:, :1], target], dim=1)
        allowed = [masked(path[:, : 1 + end], logits[:, end]) for end in range(target.shape[1])]
        logits = torch.where(counts[..., None], torch.stack(allowed, dim=1), logits)
        counts = counts & (logits.isfinite().sum(-1) > 1)
    loss = cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -loss.view_as(target), counts


def update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    sequences: Sequences,
    advantage: Tensor,
    beta: float,
    at_once: int,
) -> float:
    """Add the gradient of the GRPO loss (`rere.training.objectives.grpo`) and return its value."""
    advantages = advantage.to(model.device).split(at_once)
    total = 0.0
    for part, each in zip(sequences.split(at_once), advantages, strict=True):
        if reference is not None:
            with torch.no_grad():
                reference_log_prob, _ = log_probs(reference, part)
        log_prob, counts = log_probs(model, part)
        loss = -(log_prob - log_prob.detach()).exp() * each[:, None]
        if reference is not None:
            loss = loss + beta * k3(log_prob, reference_log_prob)
        mean = (loss * counts).sum(-1) / counts.sum(-1)
        loss = mean.sum() / len(advantage)
        loss.backward()
        total += loss.item()
    return total
