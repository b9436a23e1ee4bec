"""`rere benchmark gpu`: what a GPU computes, and how fast, in a few minutes and without data.

The .json has `machine`, `options`, `seconds` in all, and

    parts        in the order they were measured: name, status, seconds, and the traceback of one
                 that failed
    agreement    a row per model, thing compared and dtype (`rere.benchmarks.gpu.agreement`)
    speed        a row per model, thing timed and side: `rows` of a step or search, the best
                 `choice` of rows per pass, `seconds` a step, median, `tokens_per_second` of prompts
                 and candidates, `operations`, their `share_of_peak`, `peak_memory_mb` above the
                 start, `speedup` over the plain side

The .md beside it has the last two as tables. Both are written after every part.
"""

import platform
import time
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from rere.backbones import load_model
from rere.benchmarks.gpu.agreement import compare_with_cpu
from rere.benchmarks.gpu.measure import MEASURED, Meter, OutOfTime, find_peak, free_memory
from rere.benchmarks.gpu.models import QWEN, SMOLLM, make_model, with_titles
from rere.benchmarks.gpu.speed import list_parts
from rere.benchmarks.models import BenchmarkModel
from rere.benchmarks.table import format_table
from rere.config.benchmarks import GpuOptions
from rere.devices import choose_device
from rere.engine.model.attention import without_cudnn
from rere.errors import InputError, first_line
from rere.files import replacing_all, write_json
from rere.progress import progress
from rere.provenance import commit

DTYPE = "bfloat16"
NOT_MEASURED, FAILED = "not measured: out of time", "failed"
AGREEMENT, SPEED = "agreement", "speed"
COLUMNS = {
    AGREEMENT: [
        *("model", "what", "dtype", "equal_lists", "value_difference", "gradient_difference"),
    ],
    SPEED: [
        *("model", "what", "side", "status", "choice", "seconds", "speedup", "tokens_per_second"),
        *("share_of_peak", "peak_memory_mb"),
    ],
}
"""Of the tables in the .md."""
Rows = list[dict[str, Any]]


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
    report: dict[str, Any] = {
        "machine": describe(device, peak),
        "options": options.model_dump(mode="json"),
        "seconds": 0.0,
        **{"parts": [], AGREEMENT: [], SPEED: []},
    }
    parts = list(all_parts(options, model, meter))
    with progress(len(parts), "gpu", "part") as bar, without_cudnn():
        for table, name, measure in parts:
            part, before = {"name": name, "status": MEASURED}, time.perf_counter()
            try:
                meter.check_time()
                report[table] += measure()
            except OutOfTime:
                part["status"] = NOT_MEASURED
            except Exception as error:  # the others are still worth measuring
                part["status"] = f"{FAILED}: {first_line(error)}"
                part["traceback"] = traceback.format_exc()
            now = time.perf_counter()
            report["parts"].append(part | {"seconds": round(now - before, 3)})
            report["seconds"] = round(now - started, 3)
            write(report, output)
            free_memory(device)
            bar.update()
    if failed := [p["name"] for p in report["parts"] if p["status"].startswith(FAILED)]:
        raise InputError(f"{', '.join(failed)}: failed; {output} has the traceback and the others")


def all_parts(
    options: GpuOptions, folder: Path | None, meter: Meter
) -> Iterator[tuple[str, str, Callable[[], Rows]]]:
    """Yield table, name and function of each part, the most important ones first."""
    small = partial(make_model, QWEN, options.scale, options.seed)
    few = {"num_hidden_layers": 2, "vocab_size": 18_992 // options.scale}
    build = lru_cache(maxsize=1)(partial(build_model, options, folder, meter.device))

    def agree(name: str, **sizes: int) -> tuple[str, str, Callable[[], Rows]]:
        def run() -> Rows:
            return list(compare_with_cpu(name, small(**sizes), meter.device, options))

        return AGREEMENT, f"agreement, {name}", run

    def time_all(name: str) -> Iterator[tuple[str, str, Callable[[], Rows]]]:
        for what, measure in list_parts(options):
            yield (
                SPEED,
                f"{name}, {what}",
                lambda measure=measure: measure(build(name), options, meter),
            )

    yield agree("small model", hidden_size=112, intermediate_size=224, **few)
    yield from time_all(QWEN)
    yield agree(f"{QWEN} with 2 layers", **few)
    yield from time_all(SMOLLM)


def build_model(
    options: GpuOptions, folder: Path | None, device: torch.device, name: str
) -> BenchmarkModel:
    """Return a model to time, on its device."""
    if folder is not None and name == SMOLLM:
        weights = load_model(folder).to(device)
    else:
        weights = make_model(name, options.scale, options.seed, device)
    return with_titles(name, weights, options, DTYPE)


def describe(device: torch.device, peak: float | None) -> dict[str, Any]:
    """Return what the numbers depend on besides the options."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "peak_tflops": peak and peak / 1e12,
        "dtype": DTYPE,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "commit": commit(),
    }


def write(report: dict[str, Any], output: Path) -> None:
    """Write the .json and the .md."""
    machine, left = report["machine"], [p for p in report["parts"] if p["status"] != MEASURED]
    tables = [
        format_table([[row.get(key) for key in COLUMNS[name]] for row in report[name]], keys, 3)
        for name, keys in COLUMNS.items()
    ]
    lines = [f"* {part['name']}: {part['status']}" for part in left]
    note = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    with replacing_all([output.with_suffix(".md")]) as (text,):
        text.write_text("\n\n".join([*tables, "\n".join(lines), f"{note}."]) + "\n")
    write_json(output, report)
