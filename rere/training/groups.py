"""Groups of candidates as a step of RL takes them: rolled out, rewarded, packed for its update.

B prompts, G candidates each, R rewards, T tokens of the longest item.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.config.training import RlOptions, reward_weights
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import Packed, pack
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.leaf_tokens import token_ids
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.training.rewards import Groups, Reward, weighted_sum


class RewardedGroups(NamedTuple):
    """The candidates of B prompts, and what the rewards say of them."""

    prompts: list[list[int]]
    leaf: Tensor  # (B, G) i64, -1 for what is no item and in an empty place
    ids: Tensor  # (B, G, T) i64, padded with -1 on the right
    hit: Tensor  # (B, G) bool, whether the candidate has the target's title
    parts: Tensor  # (B, G, R) f32, each reward without its weight
    reward: Tensor  # (B, G) f32

    @property
    def exists(self) -> Tensor:
        """Which places are not empty, (B, G) bool; what is no item exists."""
        return self.ids[..., 0] >= 0

    def metrics(self, names: Iterable[str]) -> dict[str, Tensor]:
        """What a step's line in the log says of its groups, given the rewards' names; scalars."""
        exists, parts = self.exists, self.parts.sum(1).mean(0)
        return {
            "reward": self.reward.sum(-1).mean(),
            **{f"reward_{name}": part for name, part in zip(names, parts, strict=True)},
            "hit_rate": self.hit.any(-1).float().mean(),
            "distinct": num_distinct(self.leaf).float().mean(),
            "invalid": (exists & (self.leaf < 0)).sum() / exists.sum(),
        }

    def refilled(self, silent: list[bool], others: Self, others_silent: list[bool]) -> Self:
        """These groups, each silent one replaced by the next of the others that is not."""
        fresh = (len(silent) + row for row, is_silent in enumerate(others_silent) if not is_silent)
        rows = [next(fresh, row) if is_silent else row for row, is_silent in enumerate(silent)]
        prompts = [*self.prompts, *others.prompts]
        tensors = (torch.cat(pair)[rows] for pair in zip(self[1:], others[1:], strict=True))
        return type(self)([prompts[row] for row in rows], *tensors)


def dynamic_sampling(
    groups: RewardedGroups,
    others: Iterator[RewardedGroups],
    is_silent: Callable[[RewardedGroups], list[bool]],
) -> tuple[RewardedGroups, int]:
    """The groups with silent ones replaced, batch by batch, for as long as there are both.

    Also returns how many prompts were rolled out for it. DAPO's dynamic sampling: Yu et al. 2025
    (arXiv 2503.14476), section 3.2.
    """
    extra_prompts = 0
    while any(silent := is_silent(groups)) and (more := next(others, None)) is not None:
        groups = groups.refilled(silent, more, is_silent(more))
        extra_prompts += len(more.prompts)
    return groups, extra_prompts


class Rollouts:
    """How a run gets its groups, and what it scores of them. `tree` lies on the host."""

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
        self, policy: PreTrainedModel, inputs: dict[str, Any], step: int
    ) -> RewardedGroups:
        """The rewarded groups of a step's prompts, wherever the pass boundaries lie."""
        options, prompts, target = self.options, inputs["prompts"], inputs["target"]
        target_leaf = self.tree.leaf_of_item[target]
        seeds = row_seeds(self.seed, step, inputs["row_id"]).to(target.device)
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
            )
            for rows in slices(len(prompts), options.rows_per_pass)
        ]
        leaf, log_prob, ids = map(torch.cat, zip(*(each[:3] for each in found), strict=True))
        if options.ground_truth:
            self.add_targets(policy, prompts, target_leaf, leaf, log_prob, ids)
        groups = Groups(
            row_id=torch.tensor(inputs["row_id"], device=target.device),
            history=inputs["history"],
            target=target,
            item=self.tree.first_item[leaf.clamp(min=0)].masked_fill(leaf < 0, -1),
            hit=leaf == target_leaf[:, None],
            log_prob=log_prob.masked_fill(leaf < 0, -torch.inf),
        )
        parts = {name: reward(groups) for name, reward in self.rewards.items()}
        reward = weighted_sum(parts, reward_weights(options.reward))
        return RewardedGroups(
            prompts, leaf, ids, groups.hit, torch.stack([*parts.values()], dim=-1), reward
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
        """Put the target's leaf (B,), scored, in the last place of each group that lacks it."""
        options = self.options
        lacking = (leaf != target[:, None]).all(-1).nonzero()[:, 0]
        for rows in lacking.split(options.rows_per_pass):
            packed = pack_leaves(
                [prompts[row] for row in rows.tolist()],
                target[rows, None].cpu(),
                self.host_tree,
                options.scoring,
            ).to(leaf.device)
            scores = token_log_probs(policy, packed, options.temperature)
            log_prob[rows, -1] = sum_by_candidate(scores, packed)[:, 0]
        leaf[lacking, -1] = target[lacking]
        ids[lacking, -1] = token_ids(self.tree, target[lacking])

    def lengths(self, groups: RewardedGroups) -> Tensor:
        """How many tokens of each candidate are scored, (B, G) i64: all, or its decisions."""
        if self.options.scoring == "vocabulary":
            return (groups.ids >= 0).sum(-1)
        return self.decisions[groups.leaf.clamp(min=0)].masked_fill(groups.leaf < 0, 0)

    @property
    def longest(self) -> int:
        """The most tokens that are scored of an item."""
        tree = self.host_tree
        return tree.longest if self.options.scoring == "vocabulary" else tree.num_levels - 1

    def packing(self, groups: RewardedGroups) -> Callable[[list[int]], Packed]:
        """A function that packs some rows of the groups, which come to the host at once."""
        prompts, options = groups.prompts, self.options
        if options.is_constrained:
            leaf = groups.leaf.cpu()
            return lambda rows: pack_leaves(
                [prompts[row] for row in rows], leaf[rows], self.host_tree, options.scoring
            )
        written = [
            [[token for token in ids if token >= 0] for ids in group if ids[0] >= 0]
            for group in groups.ids.tolist()
        ]
        return lambda rows: pack(
            [prompts[row] for row in rows], [written[row] for row in rows], options.group_size
        )


def num_decisions(tree: PrefixTree) -> Tensor:
    """How many decisions lead to each node of a tree, (N,) i64 on its device."""
    node = torch.arange(len(tree.parent), device=tree.parent.device)
    decisions = torch.zeros_like(node)
    for _ in range(tree.num_levels - 1):
        decisions += node > 0
        node = tree.parent[node]
    return decisions


def slices(length: int, size: int) -> list[slice]:
    """Slices of `size` that cover a sequence."""
    return [slice(start, start + size) for start in range(0, length, size)]


def num_distinct(leaf: Tensor) -> Tensor:
    """How many different leaves each group holds, (B, G) -> (B,); -1 is none."""
    leaf = leaf.sort(-1).values
    new = leaf[:, 1:] != leaf[:, :-1]
    return (leaf[:, 0] >= 0) + (new & (leaf[:, 1:] >= 0)).sum(-1)
