"""`rere benchmark gpu`: what a GPU computes, and how fast, in a few minutes and without data.

The .json has `machine`, `options`, `seconds` in all, and

    parts        in the order they were measured: name, status, seconds, perhaps a traceback
    agreement    the rows of `rere.benchmarks.gpu.agreement`
    speed        the rows of `rere.benchmarks.gpu.measure`

The .md beside it has the last two as tables. Both are written after every part.
"""

import platform
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers

from rere.benchmarks.gpu import agreement, speed
from rere.benchmarks.gpu.measure import MEASURED, Meter, OutOfTime, Rows, find_peak, free_memory
from rere.benchmarks.gpu.models import DTYPE
from rere.benchmarks.table import format_table
from rere.config.benchmarks import GpuOptions
from rere.devices import choose_device
from rere.engine.model.attention import without_cudnn
from rere.errors import InputError, first_line
from rere.files import replacing, write_json
from rere.progress import progress
from rere.provenance import commit

NOT_MEASURED, FAILED = "not measured: out of time", "failed"
TABLES = {
    "agreement": ("equal_lists", "value_difference", "gradient_difference"),
    "speed": (
        *("status", "choice", "seconds", "speedup", "tokens_per_second", "share_of_peak"),
        *("peak_memory_mb", "planned_memory_mb"),
    ),
}
"""Columns of numbers in the .md."""


def benchmark_gpu(options: GpuOptions, model: Path | None, output: Path) -> None:
    """Measure the device of the options; write `output`, a .json, and its .md.

    `model` is a folder with the weights of SmolLM2-135M; None: random ones. Raises InputError if
    there is no GPU and no other device was asked for, and at the end if a part has failed.
    """
    started, device = time.perf_counter(), choose_device(options.device)
    if options.device == "auto" and device.type == "cpu":
        raise InputError("torch finds no GPU; --device cpu tries the command without one")
    peak = options.peak_tflops * 1e12 if options.peak_tflops else find_peak(device)
    meter = Meter(device, started + options.seconds, options.repeats, peak)
    machine = describe(device, peak)
    results: dict[str, Rows] = {"parts": [], **{name: [] for name in TABLES}}
    parts = [("agreement", *part) for part in agreement.list_parts(options, device)]
    parts += [("speed", *part) for part in speed.list_parts(options, model, meter)]
    with progress(len(parts), "gpu", "part") as bar, without_cudnn():
        for table, name, measure in parts:
            part, before = {"name": name, "status": MEASURED}, time.perf_counter()
            try:
                meter.check_time()
                free_memory(device)
                results[table] += measure()
            except OutOfTime:
                part["status"] = NOT_MEASURED
            except Exception as error:  # the others are still worth measuring
                part["status"] = f"{FAILED}: {first_line(error)}"
                part["traceback"] = traceback.format_exc()
            now = time.perf_counter()
            results["parts"].append(part | {"seconds": round(now - before, 3)})
            write(machine, options, round(now - started, 3), results, output)
            bar.update()
    if failed := [p["name"] for p in results["parts"] if p["status"].startswith(FAILED)]:
        raise InputError(f"{', '.join(failed)}: failed; {output} has the traceback and the others")


def describe(device: torch.device, peak: float | None) -> dict[str, Any]:
    """Return what the numbers depend on besides the options."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "peak_tflops": peak and peak / 1e12,
        "dtype": DTYPE,
        **{"torch": torch.__version__, "transformers": transformers.__version__},
        **{"platform": platform.platform(), "commit": commit()},
    }


def write(
    machine: dict[str, Any],
    options: GpuOptions,
    seconds: float,
    results: dict[str, Rows],
    output: Path,
) -> None:
    """Write the .json and the .md."""
    texts = [", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)]
    for name, numbers in TABLES.items():
        columns = ("model", "what", {"agreement": "dtype", "speed": "side"}[name], *numbers)
        cells = [[row.get(column) for column in columns] for row in results[name]]
        texts.append(format_table(cells, columns, 3))
    others = [part for part in results["parts"] if part["status"] != MEASURED]
    texts += ["\n".join(f"* {part['name']}: {part['status']}" for part in others)] if others else []
    with replacing(output.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    given = options.model_dump(mode="json")
    write_json(output, {"machine": machine, "options": given, "seconds": seconds, **results})
