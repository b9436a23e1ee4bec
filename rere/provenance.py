"""Where a run came from: enough to repeat it, and to know what it cost."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rere.config.options import Options
from rere.files import SNAKEMAKE, sha256, write_json

PACKAGES = ("numpy", "polars", "torch", "transformers")


@dataclass
class Run:
    """A run while it goes on; one that was killed adds the parts before to its seconds."""

    inputs_sha256: dict[str, str]
    started: float  # of time.perf_counter
    seconds_before: float = 0.0
    resumed: int = 0

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


@contextmanager
def provenance(path: Path, options: Options, seed: int, inputs: Sequence[Path]) -> Iterator[Run]:
    """Write `path` (run.json) when the block ends well.

    It holds versions, commit, options, the sha256 of every input file (those of a folder one by
    one), seed, wall-clock seconds, how often the run was killed and resumed (its seconds are then
    those up to each checkpoint that it went on from, and the last part's), and peak memory in MB.
    """
    started = time.perf_counter()
    hashes = {str(file): sha256(file) for given in inputs for file in files_of(given)}
    run = Run(hashes, started)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield run
    write_json(
        path,
        {
            "command": sys.argv,
            "options": options.model_dump(mode="json"),
            "seed": seed,
            "seconds": round(run.seconds, 3),
            "resumed": run.resumed,
            **peak_memory(),
            "commit": commit(),
            "python": sys.version.split()[0],
            "packages": {name: version(name) for name in PACKAGES},
            "inputs_sha256": hashes,
        },
    )


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and p.name != SNAKEMAKE)


def peak_memory() -> dict[str, float]:
    """Peak resident memory of this process, and of the GPU where there is one, in MB."""
    # ru_maxrss counts bytes on macOS and kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_device_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return {name: round(value, 1) for name, value in peak.items()}


def commit() -> str | None:
    """The commit of the source tree, marked `-dirty` with changes on top; None outside of git."""
    here = str(Path(__file__).parent)
    describe = ["git", "-C", here, "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
