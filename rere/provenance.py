"""Record how a run was made and what it cost, so that it can be repeated."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rere.config.options import Options
from rere.config.run import CARD
from rere.files import SNAKEMAKE, sha256, write_json

PACKAGES = ("numpy", "polars", "torch", "transformers")


@dataclass
class RunRecord:
    """Input hashes and time of a run in progress; a resumed run adds the seconds before."""

    inputs_sha256: dict[str, str]
    started: float  # of time.perf_counter
    seconds_before: float = 0.0
    resumed: int = 0
    best_step: int | None = None  # of the weights that training keeps; 0: the initial model
    chosen: dict[str, Any] = field(default_factory=dict)  # for the device: precision and sizes

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


@contextmanager
def provenance(
    path: Path, options: Options, seed: int, inputs: Sequence[Path], is_written: bool = True
) -> Iterator[RunRecord]:
    """Yield a record of the run, and write it to `path` (run.json) if the block succeeds.

    It has versions, commit, options, seed, what was chosen for the device, the sha256 of every
    input file, wall-clock seconds, how often the run was resumed, the step whose weights are kept,
    and peak memory in MB. Seconds of a killed run count up to the checkpoint that it resumed from.
    Where the file is not to be written, the record has no hashes.
    """
    started = time.perf_counter()
    if not is_written:
        yield RunRecord({}, started)
        return
    hashes = {str(file): sha256(file) for given in inputs for file in files_of(given)}
    record = RunRecord(hashes, started)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield record
    write_json(
        path,
        {
            "command": sys.argv,
            "options": options.model_dump(mode="json"),
            "seed": seed,
            "chosen": record.chosen,
            "seconds": round(record.seconds, 3),
            "resumed": record.resumed,
            "best_step": record.best_step,
            **peak_memory(),
            "commit": commit(),
            "python": sys.version.split()[0],
            "packages": {name: version(name) for name in PACKAGES},
            "inputs_sha256": hashes,
        },
    )


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or the files of a folder sorted by name, without a model card."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and p.name not in (SNAKEMAKE, CARD))


def peak_memory() -> dict[str, float]:
    """Return the peak resident memory of this process, and of the GPU if there is one, in MB."""
    # ru_maxrss counts bytes on macOS and kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_device_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return {name: round(value, 1) for name, value in peak.items()}


def commit() -> str | None:
    """Return the commit of the source tree, with `-dirty` if it has changes; None outside git."""
    here = str(Path(__file__).parent)
    describe = ["git", "-C", here, "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
