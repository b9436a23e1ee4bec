"""One interface for all ways of getting a group of candidates for a prompt.

B rows, G candidates a row, T tokens of the longest item.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.config.training import RolloutStrategy
from rere.engine.search.beam import beam_search
from rere.engine.search.leaf_tokens import leaf_of, token_ids
from rere.engine.search.path_scorer import Scoring
from rere.engine.search.sampling import keep_distinct, sample, stochastic_beam_search
from rere.engine.search.unconstrained import generate_beams, generate_samples


class Candidates(NamedTuple):
    """Groups of candidates. A place is empty where the catalogue holds fewer than G."""

    leaf: Tensor  # (B, G) i64, -1 for what is no item and in an empty place
    log_prob: Tensor  # (B, G) f32, of the policy searched or drawn from; -inf in an empty place
    ids: Tensor  # (B, G, T) i64, with the end of sequence, padded with -1 on the right
    threshold: Tensor | None = None
    """(B,) f32, of stochastic beams: log_prob and it give the weights (Kool et al., 2019)."""

    @property
    def valid(self) -> Tensor:
        """Which candidates are items of the catalogue, (B, G) bool."""
        return self.leaf >= 0

    @property
    def exists(self) -> Tensor:
        """Which places are not empty, (B, G) bool."""
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
) -> Candidates:
    """`group_size` candidates a prompt, in the order in which they were found or drawn.

    `tree`, `seeds` (B,) i64 (`rere.engine.search.noise.row_seeds`) and `target` (B,) i64, the leaf
    that `oversample_with_target` keeps, lie on the model's device. `scoring` is that of `beam`;
    draws are from the `catalogue` policy, what is unconstrained from the `vocabulary`'s. Raises
    ValueError for another strategy, a missing target, and numbers out of range, InputError as
    `rere.engine.search.beam.beam_search`.
    """
    threshold = None
    match strategy:
        case "beam":
            leaf, log_prob = beam_search(
                model, tree, prompts, group_size, scoring, temperature=temperature
            )
        case "iid":
            leaf, log_prob = sample(model, tree, prompts, group_size, seeds, temperature)
        case "oversample" | "oversample_with_target":
            if target is None and strategy == "oversample_with_target":
                raise ValueError("oversample_with_target needs the target's leaf of each row")
            first = target if strategy == "oversample_with_target" else None
            drawn = sample(model, tree, prompts, -(-3 * group_size // 2), seeds, temperature)
            leaf, log_prob = keep_distinct(drawn, group_size, first)
        case "stochastic_beam":
            leaf, log_prob, _, threshold = stochastic_beam_search(
                model, tree, prompts, group_size, seeds, temperature
            )
        case "unconstrained":
            ids, log_prob = generate_samples(model, tree, prompts, group_size, seeds, temperature)
            return Candidates(leaf_of(tree, ids), log_prob, ids)
        case "unconstrained_beam":
            ids, log_prob = generate_beams(model, tree, prompts, group_size, temperature)
            return Candidates(leaf_of(tree, ids), log_prob, ids)
        case _:
            raise ValueError(f"there is no strategy {strategy} to get candidates")
    return Candidates(leaf, log_prob, token_ids(tree, leaf), threshold)
