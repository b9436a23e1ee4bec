"""Seconds, sides in turn, and peak memory, each in a fresh process."""

import ctypes
import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from rere.progress import progress

CLEAR_REFS = Path("/proc/self/clear_refs")
Prompts = Sequence[Sequence[int]]

# Fresh processes start from one that has imported these and done nothing else.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["torch", "transformers.generation.utils", "transformers.models.qwen2.modeling_qwen2"]
)


def batched(prompts: Prompts, size: int) -> list[Prompts]:
    """The prompts, `size` of them at a time."""
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """The middles of `count` equal parts of the items, or all items where there are fewer."""
    count = min(count, len(items))
    return [items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count)]


class Timed(NamedTuple):
    """What one side took and found."""

    seconds: list[float]  # a row, for each batch
    results: list[Any]  # for each batch

    @property
    def median(self) -> float:
        return median(self.seconds)


def compared(ours: float, theirs: float) -> dict[str, float]:
    """What the table says of two sides' seconds."""
    return {"ours_seconds": ours, "theirs_seconds": theirs, "ratio": theirs / ours}


def in_turn(
    sides: Mapping[Any, Callable[[Prompts], Any]],
    batches: Sequence[Prompts],
    label: str,
    settle: bool = False,
) -> dict[Any, Timed]:
    """Time each side on each batch, one after the other, so that no side has the quiet hour.

    Each warms up on the first batch. To `settle`, it does on every one: it then has the memory
    that it had in a process of its own, where no other side gave it back to the system. What a side
    returns lies on the host, so that its work is done when the clock is read.
    """
    timed = {side: Timed([], []) for side in sides}
    with progress(len(sides) * len(batches), label, "batch") as bar:
        for number, batch in enumerate(batches):
            for side, search in sides.items():
                if settle or number == 0:
                    search(batch)
                started = time.perf_counter()
                result = search(batch)
                timed[side].seconds.append((time.perf_counter() - started) / len(batch))
                timed[side].results.append(result)
                bar.update()
    return timed


def in_batches(search: Callable[[Prompts], list], size: int, prompts: Prompts) -> list:
    """What a search finds for each prompt, `size` of them at a time."""
    return list(itertools.chain.from_iterable(map(search, batched(prompts, size))))


def fastest_size(
    search: Callable[[Prompts], Any], prompts: Prompts, sizes: Sequence[int], label: str
) -> int:
    """Which of the batch sizes a search is fastest at, on prompts of middling length.

    Sizes are tried in their order until one is slower than the one before.
    """
    most = max(sizes)
    first = max(0, len(prompts) - most) // 2
    best, fastest = sizes[0], math.inf
    for size in sizes if len(sizes) > 1 else ():
        batches = batched(prompts[first : first + most], size)
        timed = in_turn({size: search}, batches, f"{label}, batches of {size}")
        if timed[size].median >= fastest:
            break
        best, fastest = size, timed[size].median
    return best


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """MB that a call takes at its peak, above what is held before it.

    None where the system does not tell: where there is no GPU, other systems than Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not CLEAR_REFS.exists():
        return None
    # What was freed goes back to the system first; reused, it would not count.
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", id)(0)
    # Not ru_maxrss: it counts what came before, even in the process that started this one.
    CLEAR_REFS.write_text("5")  # sets the high-water mark to what is held now
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A value of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6
