"""Choose the number of rows that a search takes at a time, by memory and speed."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rere.engine import SearchScoring
from rere.engine.search.layout import full_pass_tokens
from rere.engine.search.path_scorer import MAX_HEAD_SHARE
from rere.engine.search.sizes import MEMORY_SHARE, SearchSizes, available_memory, total_memory
from rere.prefix_tree import PrefixTree

MAX_ROWS = {"cpu": 32}
"""Rows beyond which a larger batch is no faster, by device."""
MAX_ROWS_ELSEWHERE = 256


def max_batch_size(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
    sizes: SearchSizes | None = None,
) -> int:
    """Rows per search for prompts of up to `prompt_length` tokens; at least one.

    By the memory of `sizes`, or else by what is available now. Always a power of two, so that small
    differences in memory seldom change the batches: other batches round differently.
    """
    budget, full_pass = MEMORY_SHARE * available_memory(model.device), full_pass_tokens(model)
    if sizes is not None:  # perhaps those of a run that began on a larger device
        budget = min(sizes.search_memory, MEMORY_SHARE * total_memory(model.device))
        full_pass = sizes.full_pass_tokens
    search = prompt_length, num_beams, scoring, full_pass
    return rows_within(
        budget, model.device, lambda rows: estimate_bytes(model, tree, rows, *search)
    )


def rows_within(
    budget: float,
    device: torch.device,
    needed: Callable[[int], int],
    most: int = MAX_ROWS_ELSEWHERE,
) -> int:
    """The rows, `most` or fewer, whose `needed` bytes are within `budget`; at least one."""
    rows = min(most, MAX_ROWS.get(device.type, MAX_ROWS_ELSEWHERE))
    while rows > 1 and needed(rows) > budget:
        rows //= 2
    return rows


def estimate_bytes(
    model: PreTrainedModel,
    tree: PrefixTree,
    rows: int,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
    full_pass: int,
) -> int:
    """Upper estimate of the bytes that a search of `rows` rows needs besides the weights."""
    sizes = rows, prompt_length, num_beams, scoring, full_pass
    return search_bytes(model.config, tree, *sizes, model.dtype.itemsize)


def search_bytes(
    config: PreTrainedConfig,
    tree: PrefixTree,
    rows: int,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
    full_pass: int,
    itemsize: int,
    share_of_titles: float = 1.0,
) -> int:
    """Bytes that a search of `rows` rows needs besides the weights.

    Under `vocabulary` scoring a pass feeds up to `full_pass` tokens of all rows. `itemsize` is that
    of keys, values and states. `share_of_titles` is as in `count_fed_tokens`.
    """
    most = max(num_beams, full_pass // rows)
    fed = count_fed_tokens(tree, num_beams, scoring, most, share_of_titles)
    positions = fed.in_one_pass if scoring == "vocabulary" else num_beams
    columns = logits_per_position(config, tree, scoring)
    return rows * row_bytes(config, prompt_length, fed, positions * columns, itemsize)


def logits_per_position(config: PreTrainedConfig, tree: PrefixTree, scoring: SearchScoring) -> int:
    """How many logits a search computes at a position."""
    vocabulary = config.get_text_config().vocab_size
    first_tokens = len(tree.first_tokens[0]) if scoring == "catalogue" else vocabulary
    return first_tokens if first_tokens <= MAX_HEAD_SHARE * vocabulary else vocabulary


class FedTokens(NamedTuple):
    """Tokens that a row of a search feeds behind its prompt."""

    total: int
    in_one_pass: int


def row_bytes(
    config: PreTrainedConfig, prompt_length: int, fed: FedTokens, num_logits: int, itemsize: int
) -> int:
    """Bytes that a row of a search needs, with `num_logits` logits in a pass.

    Counts the cache of all tokens and, for the largest forward pass, the attention mask, a layer's
    states and the logits. `itemsize` is that of keys, values and states.
    """
    config = config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", 1)  # recurrent models have none
    num_heads = getattr(config, "num_key_value_heads", None) or all_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    total, widest = prompt_length + fed.total, max(prompt_length, fed.in_one_pass)
    cache = 2 * config.num_hidden_layers * num_heads * head * itemsize * 3 * total // 2
    # In float32 at first, then a copy for the queries that share a key.
    copies = all_heads // num_heads if all_heads > num_heads else 0
    seen = max(prompt_length**2, fed.in_one_pass * total)
    mask = (4 + 1 + copies * itemsize) * seen
    states = (8 * config.hidden_size + 3 * inner) * itemsize * widest
    logits = 2 * 4 * num_logits  # float32, with exponentials
    return int(cache + mask + states + logits)


def count_fed_tokens(
    tree: PrefixTree,
    num_beams: int,
    scoring: SearchScoring,
    most: int,
    share_of_titles: float = 1.0,
) -> FedTokens:
    """The most tokens that a row feeds behind its prompt.

    Its titles are taken to have the length that `share_of_titles` of the catalogue's do not exceed.
    Under `vocabulary` scores a pass feeds at most `most`. Otherwise it feeds whole edges, except
    those into leaves.
    """
    leaf, length, depth = tree.fanout == 0, tree.edge_length, tree.depth
    if scoring != "vocabulary":
        depth, length = depth - length, length * ~leaf  # without the edges into leaves
    depths = depth[leaf]
    longest = int(depths.kthvalue(max(1, math.ceil(share_of_titles * len(depths)))).values)
    total = min(num_beams * longest, int(length.sum()))
    in_one_pass = min(num_beams * int(length.max()), total)
    return FedTokens(total, min(in_one_pass, most) if scoring == "vocabulary" else in_one_pass)
