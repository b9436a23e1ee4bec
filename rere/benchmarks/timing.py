"""Seconds, measured in turn, and peak memory, measured in a fresh process."""

import ctypes
import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch

from rere.progress import progress

CLEAR_REFS = Path("/proc/self/clear_refs")
Prompts = Sequence[Sequence[int]]
Choice = TypeVar("Choice")
REPEATS = 3
"""Times that `find_fastest` tries a choice."""

EMPTY = get_context("spawn")
"""Starts processes that have imported nothing."""
PRELOADED = get_context("forkserver")
"""Starts processes that have imported torch and transformers."""
PRELOADED.set_forkserver_preload(
    ["torch", "transformers.generation.utils", "transformers.models.llama.modeling_llama"]
)


class Timings(NamedTuple):
    """The seconds and results of one side."""

    seconds: list[float]  # per row, for each batch
    results: list[Any]  # for each batch

    @property
    def median(self) -> float:
        return median(self.seconds)


def time_in_turn(
    calls: Mapping[Any, Callable[[Sequence], Any]],
    batches: Sequence[Sequence],
    label: str,
    warm_up_each: bool = False,
) -> dict[Any, Timings]:
    """Time every call on one batch before the next batch, so that load affects all alike.

    Each call warms up on the first batch, or on every batch: memory that another call has
    returned to the system is then allocated again before the clock starts. Results must be on the
    host, so that a GPU has finished when the clock is read.
    """
    timed = {name: Timings([], []) for name in calls}
    with progress(len(calls) * len(batches), label, "batch") as bar:
        for number, batch in enumerate(batches):
            for name, call in calls.items():
                if warm_up_each or number == 0:
                    call(batch)
                started = time.perf_counter()
                result = call(batch)
                timed[name].seconds.append((time.perf_counter() - started) / len(batch))
                timed[name].results.append(result)
                bar.update()
    return timed


def time_at_best_size(
    calls: Mapping[Any, Callable[[int, Sequence], Any]],
    sizes: Sequence[int],
    trial: Sequence,
    batches: Sequence[Sequence],
    label: str,
) -> tuple[dict[Any, int], dict[Any, Timings]]:
    """Time calls, each with the rows per pass at which it is fastest on the batch `trial`."""
    best = {name: find_fastest(call, sizes, trial, label) for name, call in calls.items()}
    chosen = {name: partial(call, best[name]) for name, call in calls.items()}
    return best, time_in_turn(chosen, batches, label)


def find_fastest(
    call: Callable[[Choice, Sequence], Any],
    choices: Sequence[Choice],
    trial: Sequence,
    label: str,
) -> Choice:
    """Return the choice, such as a batch size, with which a call takes a batch fastest."""
    if len(choices) == 1:
        return choices[0]
    calls = {choice: partial(call, choice) for choice in choices}
    timed = time_in_turn(calls, [trial] * REPEATS, label)
    return min(choices, key=lambda choice: timed[choice].median)


def find_fastest_batch_size(
    search: Callable[[Sequence], Any], rows: Sequence, sizes: Sequence[int], label: str
) -> int:
    """Return the batch size at which a search is fastest, tried on rows of medium length.

    Sizes are tried in order until one is slower than the one before.
    """
    most = max(sizes)
    first = max(0, len(rows) - most) // 2
    best, fastest = sizes[0], math.inf
    for size in sizes if len(sizes) > 1 else ():
        batches = split_batches(rows[first : first + most], size)
        timed = time_in_turn({size: search}, batches, f"{label}, batches of {size}")
        if timed[size].median >= fastest:
            break
        best, fastest = size, timed[size].median
    return best


def split_batches(rows: Sequence, size: int) -> list[Sequence]:
    """Split rows into batches of `size`; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def call_in_batches(call: Callable[[Sequence], list], size: int, rows: Sequence) -> list:
    """Return the results of a call for all rows, computed in batches of `size`."""
    return list(itertools.chain.from_iterable(map(call, split_batches(rows, size))))


def pick_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return the middles of `count` equal parts of the items, or all items if they are fewer."""
    count = min(count, len(items))
    return [items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count)]


def run_in_process(context: BaseContext, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a module's function, run in a new process of its own."""
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """Return the peak memory of a call in MB, above what was held before.

    None without a GPU on systems other than Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not CLEAR_REFS.exists():
        return None
    # Return freed memory to the system first: if it were reused, it would not count.
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", id)(0)
    # ru_maxrss would include earlier peaks, even those of the parent process.
    CLEAR_REFS.write_text("5")  # resets the peak to the memory held now
    before = read_status("VmRSS")
    call()
    return read_status("VmHWM") - before


def read_status(name: str) -> float:
    """Return a memory value of this process's status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6
