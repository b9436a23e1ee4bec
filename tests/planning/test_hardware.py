"""Seconds by hand."""

from pathlib import Path
from typing import get_args

import pytest
from planned_work import SHAPE, UNIT

from rere.planning import hardware
from rere.planning.hardware import CPU_START, GPU_START, GPUS, Gpu, cpu_seconds, gpu_seconds
from rere.planning.price import MACHINES
from rere.planning.sample import MOST_TIMED, SAMPLED_ROWS
from rere.planning.work import Work
from rere.stages import PlanStudy

ROOT = Path(__file__).parents[2]
WORK = Work("update", rows=8, rows_at_once=4, unit=UNIT, layers=3, head_gradient=2)
SLOW = Gpu(memory=1, bfloat16=1e3, tf32=500, float32=100)


def test_a_gpu_computes_each_product_in_its_precision(monkeypatch):
    monkeypatch.setattr(hardware, "KERNEL_SECONDS", 0)
    layers, head = 8 * 3 * (2 * 100 * 10 + 4 * 8 * 50), 8 * 2 * 4 * 24
    heads = head / 100 + 2 * head / 500
    for dtype, speed in (("bfloat16", 1e3), ("float32", 500)):
        seconds = (layers / speed + heads) / hardware.UTILISATION
        assert gpu_seconds([WORK], SHAPE, SLOW, dtype) == pytest.approx(GPU_START + seconds)


def test_small_passes_take_as_long_as_the_host_starts_kernels():
    kernels = WORK.passes * (hardware.KERNELS_PER_PASS + 2 * hardware.KERNELS_PER_LAYER)
    seconds = gpu_seconds([WORK, WORK], SHAPE, GPUS["H200"], "bfloat16")
    assert seconds == pytest.approx(GPU_START + 2 * kernels * hardware.KERNEL_SECONDS)


class Timed:
    shape, is_timed = SHAPE, True


def test_a_cpu_takes_the_time_of_its_rows(monkeypatch):
    assert cpu_seconds([WORK, WORK], Timed()) == CPU_START + 2 * 8 * 0.5  # type: ignore[arg-type]


def test_a_large_model_takes_what_products_take(monkeypatch):
    monkeypatch.setattr(Timed, "is_timed", False)
    monkeypatch.setattr(hardware, "cpu_speed", lambda: 1e3)
    operations = WORK.operations(SHAPE).total
    seconds = CPU_START + operations / (1e3 * hardware.CPU_UTILISATION)
    assert cpu_seconds([WORK], Timed()) == pytest.approx(seconds)  # type: ignore[arg-type]


def test_the_machines_of_a_budget_are_those_of_a_plan():
    assert set(get_args(PlanStudy.model_fields["on"].annotation)) == set(MACHINES)


def test_the_docs_state_what_is_assumed():
    text = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    for stated in (
        f"sample of {SAMPLED_ROWS} rows",
        f"up to {MOST_TIMED / 1e6:.0f} million weights",
        f"{hardware.CPU_UTILISATION:.0%} of the speed".replace("%", " %"),
        f"{hardware.UTILISATION:.0%} of the peak".replace("%", " %"),
        f"needs {hardware.KERNEL_SECONDS * 1e6:.0f} microseconds to start a kernel",
        f"of which a layer takes {hardware.KERNELS_PER_LAYER} and a pass "
        f"{hardware.KERNELS_PER_PASS} more",
        f"{GPU_START:.0f} seconds of each job",
    ):
        assert stated in text
    for name in GPUS:
        assert name in text
