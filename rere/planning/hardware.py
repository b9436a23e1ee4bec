"""How fast machines compute: GPUs by what their makers state, this CPU by what it does.

A GPU reaches a share of its peak, UTILISATION, which is stated, not measured. Small models do not
even reach that, since the host starts one kernel after another.
"""

import time
from functools import cache
from typing import NamedTuple

import torch

from rere.planning.operations import Operations, Shape
from rere.planning.sample import Sample
from rere.planning.work import Work


class Gpu(NamedTuple):
    """A GPU; its peaks are of dense products, in operations a second."""

    memory: float  # bytes
    bfloat16: float
    tf32: float
    float32: float


GPUS = {
    "H200": Gpu(141e9, 989e12, 494e12, 67e12),
    "A100": Gpu(80e9, 312e12, 156e12, 19.5e12),
    "RTX 4090": Gpu(24e9, 165e12, 82.6e12, 82.6e12),
}
"""By NVIDIA's data sheets: H200 SXM, A100 SXM of 80 GB, RTX 4090."""

UTILISATION = 0.4
"""Share of the peak that large passes reach."""
KERNELS_PER_LAYER, KERNELS_PER_PASS = 90, 400
"""About as many as a Llama takes in a search on the GPU that the tests imitate."""
KERNEL_SECONDS = 8e-6
"""The host's time to start a kernel."""
GPU_START, CPU_START = 30.0, 8.0
"""Seconds until a job computes: imports, the model, prompts of all rows."""

CPU_UTILISATION = 0.7
"""Share of the speed of large products that models reach which are too large to be timed."""


def gpu_seconds(work: list[Work], shape: Shape, gpu: Gpu, dtype: str) -> float:
    """Seconds of a job on one GPU."""
    return GPU_START + sum(gpu_seconds_of(each, shape, gpu, dtype) for each in work)


def gpu_seconds_of(work: Work, shape: Shape, gpu: Gpu, dtype: str) -> float:
    """The host starts kernels while the GPU computes earlier ones: the slower of both counts."""
    operations = work.operations(shape)
    computing = (
        operations.layers / (gpu.bfloat16 if dtype == "bfloat16" else gpu.tf32)
        + operations.head / gpu.float32
        + operations.head_gradient / gpu.tf32
    )
    kernels = work.passes * (KERNELS_PER_PASS + KERNELS_PER_LAYER * shape.num_layers)
    return max(computing / UTILISATION, kernels * KERNEL_SECONDS)


def cpu_seconds(work: list[Work], sample: Sample) -> float:
    """Seconds of a job on this CPU, with as many threads as this process has."""
    if sample.is_timed:
        return CPU_START + sum(each.rows * (each.unit.seconds or 0) for each in work)
    operations = total(work, sample.shape).total
    return CPU_START + operations / (CPU_UTILISATION * cpu_speed())


def total(work: list[Work], shape: Shape, is_shared: bool = True) -> Operations:
    """The operations of all work."""
    each = [part.operations(shape, is_shared) for part in work]
    return Operations(*map(sum, zip(*each, strict=True)))


@cache
def cpu_speed() -> float:
    """Operations a second of a large product of float32 matrices, of five the fastest."""
    size, times = 2048, []
    matrix = torch.ones(size, size)
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)
