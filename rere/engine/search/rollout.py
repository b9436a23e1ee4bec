"""One interface to all rollout strategies: a group of candidates for each prompt.

B rows, G candidates per row, T tokens of the longest title.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from rere.config.options import Scoring
from rere.config.rl import RolloutStrategy
from rere.engine.search.beam import beam_search
from rere.engine.search.sampling import (
    keep_distinct,
    sample_candidates,
    stochastic_beam_search,
)
from rere.engine.search.sizes import SearchSizes
from rere.engine.search.unconstrained import generate_beams, generate_samples
from rere.prefix_tree import PrefixTree, find_leaf, token_ids


class Candidates(NamedTuple):
    """Groups of candidates. Rows of a catalogue with fewer than G items end in empty slots."""

    leaf: Tensor  # (B, G) i64, -1 for a non-item and in an empty slot
    log_prob: Tensor  # (B, G) f32, under the policy that was searched; -inf in an empty slot
    ids: Tensor  # (B, G, T) i64, with the end of sequence, padded with -1 on the right
    threshold: Tensor | None = None
    """(B,) f32, of stochastic beams: it gives importance weights of samples (Kool et al., 2019)."""

    @property
    def exists(self) -> Tensor:
        """Which slots hold a candidate, (B, G) bool."""
        return self.ids[..., 0] >= 0


def roll_out(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompts: Sequence[Sequence[int]],
    strategy: RolloutStrategy,
    group_size: int,
    seeds: Tensor,
    scoring: Scoring = "vocabulary",
    temperature: float = 1.0,
    target: Tensor | None = None,
    sizes: SearchSizes | None = None,
) -> Candidates:
    """`group_size` candidates per prompt, best first from searches, else in the order of sampling.

    `tree`, `seeds` (B,) i64 (`rere.engine.search.noise.row_seeds`) and `target` (B,) i64, the leaf
    that `oversample_with_target` keeps, lie on the model's device. `scoring` and `sizes` are for
    `beam` only: constrained samples have `catalogue` scores, unconstrained candidates `vocabulary`
    ones. Raises ValueError for an unknown strategy, a missing target and numbers out of range;
    InputError as `rere.engine.search.beam.beam_search` does.
    """
    threshold = None
    match strategy:
        case "beam":
            leaf, log_prob = beam_search(
                model, tree, prompts, group_size, scoring, temperature=temperature, sizes=sizes
            )
        case "iid":
            leaf, log_prob = sample_candidates(model, tree, prompts, group_size, seeds, temperature)
        case "oversample" | "oversample_with_target":
            if target is None and strategy == "oversample_with_target":
                raise ValueError("oversample_with_target needs the target's leaf of each row")
            first = target if strategy == "oversample_with_target" else None
            number = num_samples(strategy, group_size)
            samples = sample_candidates(model, tree, prompts, number, seeds, temperature)
            leaf, log_prob = keep_distinct(samples, group_size, first)
        case "stochastic_beam":
            leaf, log_prob, _, threshold = stochastic_beam_search(
                model, tree, prompts, group_size, seeds, temperature
            )
        case "unconstrained":
            ids, log_prob = generate_samples(model, tree, prompts, group_size, seeds, temperature)
            return Candidates(find_leaf(tree, ids), log_prob, ids)
        case "unconstrained_beam":
            ids, log_prob = generate_beams(model, tree, prompts, group_size, temperature)
            return Candidates(find_leaf(tree, ids), log_prob, ids)
        case _:
            raise ValueError(f"unknown rollout strategy {strategy}")
    return Candidates(leaf, log_prob, token_ids(tree, leaf), threshold)


def num_samples(strategy: RolloutStrategy, group_size: int) -> int:
    """Candidates that a strategy draws per prompt; to oversample half as many again, rounded up."""
    return -(-3 * group_size // 2) if strategy.startswith("oversample") else group_size
