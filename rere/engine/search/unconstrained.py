"""Generate candidates without the catalogue's constraint, items or not.

transformers' `generate` runs the model. Tokens come from the whole vocabulary at a temperature,
without top-k or top-p. Samples are a function of the rows' seeds (`rere.engine.search.noise`).

B rows, G candidates, N = B G, T tokens of the longest title, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper

from rere.engine.model.decoder import check_positions, eval_mode
from rere.engine.model.softmax import upcast
from rere.engine.search.generate import FILLER, generate_tokens
from rere.engine.search.noise import uniform
from rere.engine.search.path_scorer import check_temperature
from rere.engine.search.sampling import check_num_samples, sample_by_inverse_cdf
from rere.errors import InputError
from rere.prefix_tree import PrefixTree


class Generated(NamedTuple):
    """Generated token sequences, items or not."""

    ids: Tensor  # (B, G, T) i64, padded with -1 on the right
    score: Tensor  # (B, G) f32, log-probability


def generate_samples(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    seeds: Tensor,
    temperature: float = 1.0,
) -> Generated:
    """`num_samples` independent samples per prompt, each at most as long as the longest title.

    `tree` only gives the end of sequence and the longest length. `seeds` (B,) i64 and errors as in
    `rere.engine.search.sampling.sample_candidates`.
    """
    check_num_samples(num_samples)
    check_temperature(temperature)
    check_positions(model, prompts, tree.longest)
    sampler = SampleToken(seeds, num_samples, tree, temperature)
    copies = [prompt for prompt in prompts for _ in range(num_samples)]
    with eval_mode(model):
        tokens, _ = generate_tokens(model, copies, tree.eos, tree.longest, [sampler])
    return to_groups(tree, tokens, sampler.score, num_samples)


def generate_greedy(
    model: PreTrainedModel, tree: PrefixTree, prompts: Sequence[Sequence[int]]
) -> Tensor:
    """Greedy decoding: the likeliest next token each time, (B, T) i64, padded with -1 on the right.

    Raises InputError for a prompt beyond the model's positions.
    """
    check_positions(model, prompts, tree.longest)
    with eval_mode(model):
        tokens, _ = generate_tokens(model, prompts, tree.eos, tree.longest)
    return to_groups(tree, tokens, torch.zeros(len(tokens), device=tokens.device), 1).ids[:, 0]


def generate_beams(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    temperature: float = 1.0,
) -> Generated:
    """The `num_beams` sequences that a beam search finds, best first.

    `tree` and errors as in `generate_samples`. Raises ValueError for fewer than 2 beams.
    """
    if num_beams < 2:
        raise ValueError(f"num_beams must be at least 2, not {num_beams}")
    check_temperature(temperature)
    check_positions(model, prompts, tree.longest)
    with eval_mode(model):
        tokens, score = generate_tokens(
            model,
            prompts,
            tree.eos,
            tree.longest,
            [TemperatureLogitsWarper(float(temperature))],
            num_beams,
            scored=True,
            renormalize_logits=True,
        )
    assert score is not None
    return to_groups(tree, tokens, score, num_beams)


def to_groups(tree: PrefixTree, tokens: Tensor, score: Tensor, group_size: int) -> Generated:
    """Tokens (N, <= T) and scores (N,) in groups, with -1 after the end of sequence.

    Raises InputError where the model's logits are NaN.
    """
    if score.isnan().any():
        raise InputError("the model's logits are not numbers; its weights are broken")
    num_before = (tokens == tree.eos).cumsum(-1) - (tokens == tree.eos).long()
    ids = tokens.masked_fill((num_before > 0) | (score[:, None] < FILLER), -1)
    ids = pad(ids, (0, tree.longest - ids.shape[1]), value=-1)
    score = score.masked_fill(score < FILLER, -torch.inf)
    return Generated(ids.view(-1, group_size, tree.longest), score.view(-1, group_size))


class SampleToken(LogitsProcessor):
    """Samples each sequence's next token, allows only this one, and sums its log-probability.

    `generate` itself would sample by a global generator, so that a sample depended on its batch,
    and would keep every step's logits for the scores.
    """

    def __init__(
        self, seeds: Tensor, num_samples: int, tree: PrefixTree, temperature: float
    ) -> None:
        self.seeds = seeds.repeat_interleave(num_samples)  # (N,)
        sample = torch.arange(num_samples, device=seeds.device).repeat(len(seeds))
        self.counter = sample * tree.longest  # (N,)
        self.eos, self.temperature = tree.eos, temperature
        self.has_ended = torch.zeros_like(sample, dtype=torch.bool)
        self.score = torch.zeros(len(sample), device=seeds.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (N, L + T), scores (N, V) -> (N, V)."""
        log_prob = (upcast(scores) / self.temperature).log_softmax(-1)
        vocab_size = torch.full_like(self.counter, scores.shape[-1])[:, None]
        chosen, chosen_log_prob = sample_by_inverse_cdf(
            log_prob[:, None], vocab_size, uniform(self.seeds, self.counter[:, None])
        )
        self.counter = self.counter + 1
        self.score = torch.where(self.has_ended, self.score, self.score + chosen_log_prob[:, 0])
        self.has_ended = self.has_ended | (chosen[:, 0] == self.eos)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0)
