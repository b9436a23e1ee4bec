"""Groups of candidates for a step of RL: roll out, reward, resample, pack for the update.

B prompts, G candidates per prompt, R rewards, T tokens of the longest title.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.config.rl import RlOptions, reward_weights
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import PackedBatch, pack
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.batch_size import max_batch_size
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import num_samples, roll_out
from rere.engine.search.sizes import SearchSizes
from rere.evaluation.metrics import is_hit
from rere.prefix_tree import PrefixTree, token_ids
from rere.ranks import Ranks
from rere.training.rewards import Groups, Reward, weighted_sum


class RewardedGroups(NamedTuple):
    """The candidates of B prompts with their rewards."""

    prompts: list[list[int]]
    leaf: Tensor  # (B, G) i64, -1 for a non-item and in an empty slot
    ids: Tensor  # (B, G, T) i64, padded with -1 on the right
    hit: Tensor  # (B, G) bool, whether the candidate has the target's title
    components: Tensor  # (B, G, R) f32, each reward without its weight
    reward: Tensor  # (B, G) f32, their weighted sum

    @property
    def exists(self) -> Tensor:
        """Which slots are not empty, (B, G) bool; a non-item exists."""
        return self.ids[..., 0] >= 0

    def metrics(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Scalars for the step's line in the log, given the names of the rewards."""
        exists, components = self.exists, self.components.sum(1).mean(0)
        return {
            "reward": self.reward.sum(-1).mean(),
            **{f"reward_{name}": value for name, value in zip(names, components, strict=True)},
            "hit_rate": self.hit.any(-1).float().mean(),
            "distinct": num_distinct(self.leaf).float().mean(),
            "invalid": (exists & (self.leaf < 0)).sum() / exists.sum(),
        }

    def gathered(self, ranks: Ranks, prompts: list[list[int]]) -> Self:
        """The groups of all `prompts`, of which these are the share of this rank."""
        tensors = (ranks.gather(tensor, len(prompts)) for tensor in self[1:])
        return type(self)(prompts, *tensors)

    def replace_zero_advantage(
        self, is_zero: list[bool], extra: Self, extra_is_zero: list[bool]
    ) -> Self:
        """These groups with zero-advantage ones replaced, in order, by those of `extra` without.

        `is_zero` and `extra_is_zero` (B,) tell which are zero-advantage groups. If `extra` has too
        few others, the last ones stay.
        """
        useful = (len(is_zero) + row for row, zero in enumerate(extra_is_zero) if not zero)
        rows = [next(useful, row) if zero else row for row, zero in enumerate(is_zero)]
        prompts = [*self.prompts, *extra.prompts]
        tensors = (torch.cat(pair)[rows] for pair in zip(self[1:], extra[1:], strict=True))
        return type(self)([prompts[row] for row in rows], *tensors)


def dynamic_sampling(
    groups: RewardedGroups,
    extra_batches: Iterator[RewardedGroups],
    is_zero_advantage: Callable[[RewardedGroups], list[bool]],
) -> tuple[RewardedGroups, int]:
    """The groups with zero-advantage ones replaced, and the number of extra prompts rolled out.

    Takes extra batches until no zero-advantage group or no batch is left. Yu et al. 2025 (DAPO,
    arXiv 2503.14476), section 3.2.
    """
    extra_prompts = 0
    while any(is_zero := is_zero_advantage(groups)):
        extra = next(extra_batches, None)
        if extra is None:
            break
        groups = groups.replace_zero_advantage(is_zero, extra, is_zero_advantage(extra))
        extra_prompts += len(extra.prompts)
    return groups, extra_prompts


class Rollouts:
    """Rolls out, rewards and packs groups under a run's options. `tree` is on the CPU."""

    def __init__(
        self,
        options: RlOptions,
        seed: int,
        tree: PrefixTree,
        rewards: dict[str, Reward],
        device: torch.device,
    ) -> None:
        self.options, self.seed, self.rewards = options, seed, rewards
        self.host_tree, self.tree = tree, tree.to(device)
        self.decisions = num_decisions(self.tree)

    @torch.no_grad()
    def __call__(
        self,
        policy: PreTrainedModel,
        inputs: dict[str, Any],
        step: int,
        sizes: SearchSizes | None = None,
    ) -> RewardedGroups:
        """The rewarded groups of a step's prompts; they do not depend on `rows_per_pass`."""
        options, prompts, target = self.options, inputs["prompts"], inputs["target"]
        target_leaf = self.tree.leaf_of_item[target]
        seeds = row_seeds(self.seed, step, inputs["row_id"]).to(target.device)
        rows_per_search = self.rows_per_search(policy, prompts, sizes)
        found = [
            roll_out(
                policy,
                self.tree,
                prompts[rows],
                options.rollout,
                options.group_size,
                seeds[rows],
                options.scoring,
                options.temperature,
                target_leaf[rows],
                sizes,
            )
            for rows in slices(len(prompts), rows_per_search)
        ]
        leaf, log_prob, ids = map(torch.cat, zip(*(each[:3] for each in found), strict=True))
        if options.ground_truth:
            self.add_targets(policy, prompts, target_leaf, leaf, log_prob, ids)
        groups = Groups(
            row_id=torch.tensor(inputs["row_id"], device=target.device),
            history=inputs["history"],
            target=target,
            item=self.tree.first_item[leaf.clamp(min=0)].masked_fill(leaf < 0, -1),
            hit=is_hit(leaf, self.tree.hit_leaf[target]),
            log_prob=log_prob.masked_fill(leaf < 0, -torch.inf),
        )
        components = {name: reward(groups) for name, reward in self.rewards.items()}
        reward = weighted_sum(components, reward_weights(options.reward))
        return RewardedGroups(
            prompts, leaf, ids, groups.hit, torch.stack([*components.values()], dim=-1), reward
        )

    def add_targets(
        self,
        policy: PreTrainedModel,
        prompts: list[list[int]],
        target: Tensor,
        leaf: Tensor,
        log_prob: Tensor,
        ids: Tensor,
    ) -> None:
        """Put the target's leaf (B,), score and ids into the last slot of each group without it."""
        options = self.options
        missing = (leaf != target[:, None]).all(-1).nonzero()[:, 0]
        for part in slices(len(missing), options.rows_per_pass):
            rows = missing[part]
            packed = pack_leaves(
                [prompts[row] for row in rows.tolist()],
                target[rows, None].cpu(),
                self.host_tree,
                options.scoring,
            ).to(leaf.device)
            scores = token_log_probs(policy, packed, options.temperature)
            log_prob[rows, -1] = sum_by_candidate(scores, packed)[:, 0]
        leaf[missing, -1] = target[missing]
        ids[missing, -1] = token_ids(self.tree, target[missing])

    def rows_per_search(
        self, policy: PreTrainedModel, prompts: list[list[int]], sizes: SearchSizes | None
    ) -> int:
        """How many prompts to search at a time: as many as the memory of `sizes` holds.

        A GPU takes about as long for all prompts of a step as for a few. Unconstrained candidates
        copy their prompts, and are generated for as many as a pass takes.
        """
        options = self.options
        if not options.is_constrained:
            return options.rows_per_pass
        paths = num_samples(options.rollout, options.group_size)
        longest = max(map(len, prompts))
        return max_batch_size(policy, self.host_tree, longest, paths, options.scoring, sizes)

    def num_scored(self, groups: RewardedGroups) -> Tensor:
        """The number of scored tokens of each candidate, (B, G) i64: all, or its decisions."""
        if self.options.scoring == "vocabulary":
            return (groups.ids >= 0).sum(-1)
        return self.decisions[groups.leaf.clamp(min=0)].masked_fill(groups.leaf < 0, 0)

    @property
    def max_scored(self) -> int:
        """The largest number of scored tokens of any title."""
        tree = self.host_tree
        return tree.longest if self.options.scoring == "vocabulary" else tree.num_levels - 1

    def packer(self, groups: RewardedGroups) -> Callable[[list[int]], PackedBatch]:
        """A function that packs the given rows of the groups, copied to the CPU once."""
        prompts, options = groups.prompts, self.options
        if options.is_constrained:
            leaf = groups.leaf.cpu()
            return lambda rows: pack_leaves(
                [prompts[row] for row in rows], leaf[rows], self.host_tree, options.scoring
            )
        candidates = [
            [[token for token in ids if token >= 0] for ids in group if ids[0] >= 0]
            for group in groups.ids.tolist()
        ]
        return lambda rows: pack(
            [prompts[row] for row in rows], [candidates[row] for row in rows], options.group_size
        )


def num_decisions(tree: PrefixTree) -> Tensor:
    """The number of branching decisions on the path to each node, (N,) i64 on the tree's device."""
    node = torch.arange(len(tree.parent), device=tree.parent.device)
    decisions = torch.zeros_like(node)
    for _ in range(tree.num_levels - 1):
        decisions += node > 0
        node = tree.parent[node]
    return decisions


def slices(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover a sequence of `length`."""
    return [slice(start, start + size) for start in range(0, length, size)]


def num_distinct(leaf: Tensor) -> Tensor:
    """The number of different leaves in each group, (B, G) -> (B,); -1 does not count."""
    leaf = leaf.sort(-1).values
    new = leaf[:, 1:] != leaf[:, :-1]
    return (leaf[:, 0] >= 0) + (new & (leaf[:, 1:] >= 0)).sum(-1)
