"""The forward pass of a training run that has the most tokens.

It is the one with the longest prompts in the steps of the run, of an epoch at most. Candidates that
a rollout would find are not known beforehand: random titles stand for them. Their trees have about
as many tokens.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import PackedBatch, pack
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training.groups import slices
from rere.training.preference import random_leaves
from rere.training.setup import Row, history_length
from rere.training.sft import EpochSeededSampler

TrainingOptions: TypeAlias = SftOptions | PreferenceOptions | RlOptions


def largest_pass(
    options: TrainingOptions,
    rows: Sequence[Row],
    encoder: PromptEncoder,
    responses: list[list[int]],
    tree: PrefixTree,
    seed: int,
) -> PackedBatch:
    """The largest pass of a training run on `rows`; `responses` are the titles' tokens.

    `tree` is on the CPU.
    """
    lengths = np.array([history_length(row, responses) for row in rows])
    chosen = [rows[row] for row in largest_rows(options, lengths, seed)]
    ids, target = [row["row_id"] for row in chosen], [row["target"] for row in chosen]
    prompts = encoder.encode_prompts(ids, [row["history"] for row in chosen], seed)
    leaf = tree.leaf_of_item[target]
    if isinstance(options, SftOptions):
        return pack_leaves(prompts, leaf[:, None], tree, options.scoring)
    if isinstance(options, PreferenceOptions):
        others = random_leaves(tree, seed, ids, leaf, options.num_negatives)
        return pack_leaves(prompts, torch.cat([leaf[:, None], others], 1), tree, options.scoring)
    count = min(options.group_size, len(tree.leaf_items)) - 1
    leaves = torch.cat([leaf[:, None], random_leaves(tree, seed, ids, leaf, count)], dim=1)
    if options.is_constrained:
        return pack_leaves(prompts, leaves, tree, options.scoring)
    items = tree.first_item[leaves].tolist()
    return pack(prompts, [[responses[item] for item in group] for group in items])


def largest_rows(options: TrainingOptions, lengths: np.ndarray, seed: int) -> list[int]:
    """The rows of the largest pass, given the `lengths` (rows,) of all prompts.

    The rows of a step are sorted by length and split into passes.
    """
    rows_per_step, size = getattr(options, options.rows_option), options.rows_per_pass
    if isinstance(options, SftOptions):
        sampler = EpochSeededSampler(seed, rows_per_step, lengths.tolist())
        sampler.set_epoch(0)
        order = list(sampler)
    else:
        order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
        order = order[: options.num_steps(len(lengths)) * rows_per_step]
    steps = (order[step] for step in slices(len(order), rows_per_step))
    passes = [sorted(step, key=lambda row: lengths[row])[-size:] for step in steps]
    return max(passes, key=lambda rows: lengths[rows].sum())
