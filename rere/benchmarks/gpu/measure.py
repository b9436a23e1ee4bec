"""Seconds, FLOPs and memory of the sides of a comparison, in limited time and memory.

Columns of a row:

    model, what, side    what is timed, and whose
    status               measured, or out of memory, without the columns below `rows`
    rows                 of a step or search
    choice               rows per pass, the fastest of a list; of a plain RL step two numbers:
                         prompts per pass of its search, sequences per training pass
    seconds              of a step or search, median
    speedup              over the plain side
    tokens_per_second    of prompts and candidates, which are the same for all sides
    flops                of matrix products and attention
    share_of_peak        all FLOPs per second, also those of the float32 head, over the peak in
                         bfloat16
    peak_memory_mb       of a GPU, above what was allocated before the call
    planned_memory_mb    what `rere plan` expects: activations of the largest pass of a training
                         step, or a search
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from rere.benchmarks.timing import measure_peak_memory, time_in_turn
from rere.errors import is_out_of_memory

Rows = list[dict[str, Any]]
Names = tuple[str, str]
"""The model and what is timed."""
MEASURED, OUT_OF_MEMORY = "measured", "out of memory"
PEAKS = {
    **{"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12},
    **{"RTX 4090": 165e12, "L40S": 362e12},
}
"""FLOP/s of dense bfloat16 products with float32 sums, by a part of the name."""


class OutOfTime(Exception):
    """The time that the command may take is over."""


class Side(NamedTuple):
    """One of the compared implementations.

    The result of `call` is on the host, so that a GPU has finished when the clock is read.
    """

    name: str
    call: Callable[[Any, Sequence], Any]  # of a choice and rows
    choices: Sequence[Any]  # such as rows per pass, ascending
    plan: Callable[[Any], int] | None = None  # bytes that a choice should take


class Meter(NamedTuple):
    """What all measurements share. Its methods raise OutOfTime after the deadline."""

    device: torch.device
    deadline: float  # of time.perf_counter
    repeats: int
    peak: float | None  # bfloat16 FLOP/s

    def measure(self, names: Names, sides: Sequence[Side], rows: Sequence, tokens: float) -> Rows:
        """Return a row for each side at its best choice; the last one is the plain side."""
        best = {side.name: self.find_best(side.call, side.choices, rows) for side in sides}
        calls = {
            side.name: partial(self.call, side.call, best[side.name])
            for side in sides
            if best[side.name] is not None
        }
        plans = {side.name: side.plan for side in sides}
        timed = time_in_turn(calls, [rows] * self.repeats, f"gpu: {', '.join(names)}")
        table = []
        for name, choice in reversed(best.items()):
            row = dict(zip(("model", "what", "side"), (*names, name), strict=True))
            row |= {"status": OUT_OF_MEMORY, "rows": len(rows)}
            if name in timed and OUT_OF_MEMORY not in timed[name].results:
                seconds = timed[name].median * len(rows)
                flops, peak_mb = self.count(partial(calls[name], rows))
                row |= {
                    "status": MEASURED,
                    "choice": choice,
                    "seconds": seconds,
                    "speedup": (table and table[0].get("seconds", 0) / seconds) or None,
                    "tokens_per_second": tokens / seconds,
                    "flops": flops,
                    "share_of_peak": self.peak and flops / seconds / self.peak,
                    "peak_memory_mb": peak_mb,
                    "planned_memory_mb": plans[name] and plans[name](choice) / 1e6,
                }
            table.append(row)
        return table[::-1]

    def find_best(self, call: Callable, choices: Sequence[Any], rows: Sequence) -> Any:
        """Return the choice with which a call is fastest; None if memory is too small.

        They are tried, after a warm-up, until one is slower than the one before or too large.
        """
        best, fastest = None, math.inf
        for choice in choices:
            if self.call(call, choice, rows) is OUT_OF_MEMORY:
                break
            started = time.perf_counter()
            result = self.call(call, choice, rows)
            seconds = time.perf_counter() - started
            if result is OUT_OF_MEMORY or seconds >= fastest:
                break
            best, fastest = choice, seconds
        return best

    def call(self, function: Callable, *arguments: Any) -> Any:
        """Return the function's result, or OUT_OF_MEMORY."""
        self.check_time()
        try:
            return function(*arguments)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory(self.device)  # now that no traceback holds tensors
        return OUT_OF_MEMORY

    def check_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTime

    def count(self, call: Callable[[], Any]) -> tuple[int, float | None]:
        """Return the FLOPs of a call, and on a GPU its peak memory in MB, above that before."""
        peak_mb = None
        with FlopCounterMode(display=False) as counter:
            if self.device.type == "cuda":
                peak_mb = measure_peak_memory(call, self.device)
            else:
                call()
        return counter.get_total_flops(), peak_mb


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def find_peak(device: torch.device) -> float | None:
    """Return the peak bfloat16 FLOP/s of a known GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
