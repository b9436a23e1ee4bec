"""The sizes of a search's passes and batches, chosen once for a model and its device.

Other sizes round differently. They are thus chosen when a model is loaded or a run starts, and a
run that resumes keeps its own.
"""

import os
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rere.engine.model.decoder import eval_mode
from rere.engine.search.layout import full_pass_tokens

MEMORY_SHARE = 0.5
"""Share of the memory that a search may fill; other processes and estimation errors need some."""

TIMED_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)
SLOWDOWN = 1.25
"""A pass counts as fast if it takes at most this many times as long as the smallest timed one."""
ROW_TOKENS = 64
"""Tokens of a row of a timed pass."""
WARM_UPS, REPEATS = 2, 5


class SearchSizes(NamedTuple):
    """Limits of a search on a device."""

    full_pass_tokens: int  # up to so many tokens a pass takes about as long as for fewer
    search_memory: int  # bytes that a search may fill


def choose_sizes(model: PreTrainedModel, reserved: int = 0, is_timed: bool = True) -> SearchSizes:
    """The sizes for a model on its device, under the precision that is in force.

    On a GPU passes are timed if `is_timed`, and `reserved` bytes of its memory are left free for
    what the caller will yet store there. On the CPU the first size is a constant, the second half
    of the machine's memory.
    """
    free = available_memory(model.device)
    if model.device.type != "cpu":
        free = max(0, free - reserved)
    tokens = full_pass_tokens(model)
    if is_timed and is_accelerator(model.device):
        tokens = largest_full_pass(lambda tokens: time_pass(model, tokens))
    return SearchSizes(tokens, int(MEMORY_SHARE * free))


def available_memory(device: torch.device) -> int:
    """Bytes of memory: on a GPU those that are free or that torch keeps unused, on a CPU all.

    The host's free memory would mostly tell the size of its file cache.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def total_memory(device: torch.device) -> int:
    """Bytes of memory, whoever uses them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return available_memory(device)


def is_accelerator(device: torch.device) -> bool:
    """Whether a device computes while the host goes on, so that a pass has a time of its own."""
    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return own is not None and own.type == device.type


def largest_full_pass(seconds: Callable[[int], float]) -> int:
    """The largest of TIMED_TOKENS before the first that takes over SLOWDOWN times the smallest's.

    `seconds` gives the time of a pass over a number of tokens.
    """
    fewest, *more = TIMED_TOKENS
    limit, largest = SLOWDOWN * seconds(fewest), fewest
    for tokens in more:
        if seconds(tokens) > limit:
            break
        largest = tokens
    return largest


@torch.no_grad()
def time_pass(model: PreTrainedModel, tokens: int) -> float:
    """The median seconds of a forward pass over `tokens` tokens, with the logits of all."""
    ids = torch.zeros(tokens // ROW_TOKENS, ROW_TOKENS, dtype=torch.long, device=model.device)
    times = []
    with eval_mode(model):
        for _ in range(WARM_UPS + REPEATS):
            torch.accelerator.synchronize(model.device)
            started = time.perf_counter()
            model(input_ids=ids, use_cache=False)
            torch.accelerator.synchronize(model.device)
            times.append(time.perf_counter() - started)
    return median(times[WARM_UPS:])
