"""How many rows a search takes at a time: what memory has room for, and what still pays."""

import os

import torch
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.engine.search.path_scorer import Scoring, full_pass

MOST_ROWS = {"cpu": 32}
"""Rows from which on more of them are no faster, by device."""
MOST_ROWS_ELSEWHERE = 256

SHARE = 0.5
"""Of the memory; the rest is for what the estimate leaves out and for what else runs."""


def max_batch_size(
    model: PreTrainedModel, tree: PrefixTree, prompt_length: int, num_beams: int, scoring: Scoring
) -> int:
    """Rows a search of the model, prompts of at most `prompt_length` tokens; at least one.

    A power of two: a little more or less memory seldom makes other batches, which round
    differently.
    """
    rows = MOST_ROWS.get(model.device.type, MOST_ROWS_ELSEWHERE)
    room = SHARE * memory(model.device)
    while rows > 1 and search_bytes(model, tree, rows, prompt_length, num_beams, scoring) > room:
        rows //= 2
    return rows


def memory(device: torch.device) -> int:
    """Bytes that a search can have: those free on a GPU, those of the host elsewhere.

    Of the host all, since what is free there says more about its file cache than about room.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def search_bytes(
    model: PreTrainedModel,
    tree: PrefixTree,
    rows: int,
    prompt_length: int,
    num_beams: int,
    scoring: Scoring,
) -> int:
    """An upper estimate of what a search of `rows` rows holds beside the weights.

    The cache of all tokens, and of the largest forward pass the attention mask, a layer's
    states, and the logits: under `vocabulary` scores of all positions, else of one a beam.
    """
    config, item = model.config.get_text_config(), model.dtype.itemsize
    all_heads = getattr(config, "num_attention_heads", 1)  # a recurrence has none
    num_heads = getattr(config, "num_key_value_heads", None) or all_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    chained = max(num_beams, full_pass(model) // rows)
    fed, in_one_pass = tokens_fed(tree, num_beams, scoring, chained)
    total, widest = prompt_length + fed, max(prompt_length, in_one_pass)
    positions = in_one_pass if scoring == "vocabulary" else num_beams
    cache = 3 * config.num_hidden_layers * num_heads * head * item * total  # with room to grow
    mask = (item + 1) * widest * total + num_beams * fed
    states = 16 * config.hidden_size * item * widest
    logits = (item + 8) * config.vocab_size * positions  # and in float32, and their exponentials
    return rows * (cache + mask + states + logits)


def tokens_fed(tree: PrefixTree, num_beams: int, scoring: Scoring, chained: int) -> tuple[int, int]:
    """The most tokens behind a prompt that a row feeds in all, and in one pass.

    Under `vocabulary` scores a pass feeds at most `chained`; else it feeds edges as a whole, but
    never those into leaves.
    """
    length, depth = tree.length, tree.depth
    if scoring != "vocabulary":
        inner = tree.fanout > 0
        length, depth = length * inner, depth * inner
    fed = min(num_beams * int(depth.max()), int(length.sum()))
    in_one_pass = min(num_beams * int(length.max()), fed)
    return fed, min(in_one_pass, chained) if scoring == "vocabulary" else in_one_pass
