"""Checkpoints, so that a run killed at any moment goes on as if it had not been.

They lie in checkpoints/ beside a run's outputs, since Snakemake deletes those of a job that failed.
`checkpoint-{step}` holds all that the rest of the run depends on; it is written aside, brought to
the disk and renamed, so that a folder of that name is whole. The last one is kept, and that of the
best validation. A run that ends leaves none.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel

from rere.config.training import Training
from rere.errors import InputError
from rere.files import flush, sync
from rere.provenance import Run, provenance

log = logging.getLogger(__name__)

METADATA = "checkpoint.json"
LOG = "log.jsonl"

RESULT_NEUTRAL = {
    "init",
    "data",
    "factors",
    "embeddings",
    "output",
    "checkpoint_seconds",
    "report_to",
}
"""Options that say where and how often, not what: a run goes on under other values of theirs."""


@contextmanager
def resumable(
    output: Path, options: Training, seed: int, inputs: Sequence[Path]
) -> Iterator["Checkpoints"]:
    """The checkpoints of the training run in `output`; log.jsonl and run.json when it ends well.

    They go then, and stay when the run fails or is killed. Raises InputError where another
    process trains in the same folder, and under a launcher of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("a run trains in one process, on one device; start it without a launcher")
    folder = output / "checkpoints"
    with locked(folder):
        with provenance(output / "run.json", options, seed, inputs) as run:
            checkpoints = Checkpoints(folder, run, fingerprint(options, seed, run))
            yield checkpoints
            flush(checkpoints.log)
            checkpoints.log.replace(output / LOG)
        shutil.rmtree(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out of it for as long as this one lives.

    The jobs of a killed Snakemake go on; those that take their place must not meet them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is training here; wait for its end, or end it"
            ) from error
        except OSError:
            log.warning("%s: cannot be locked here; start no second process on it", folder)
        try:
            yield
        except BaseException:
            if [entry.name for entry in folder.iterdir()] == [".lock"]:
                # The run never began; it leaves no trace.
                shutil.rmtree(folder)
                with suppress(OSError):
                    folder.parent.rmdir()
            raise


def fingerprint(options: Training, seed: int, run: Run) -> str:
    """What tells a run from others: its options, seed and the content of its inputs."""
    values = options.model_dump(mode="json", exclude=RESULT_NEUTRAL)
    files = [(Path(name).name, digest) for name, digest in run.inputs_sha256.items()]
    text = json.dumps([values, seed, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class CheckpointMetadata(BaseModel):
    """What a checkpoint says of itself, written last."""

    fingerprint: str  # of its run
    step: int
    best: int | None  # step of the best validation so far, whose weights end the run
    seconds: float  # of the run up to here
    resumed: int  # times that the run was killed and went on
    files: dict[str, int]  # name to size in bytes


class Checkpoints:
    """The checkpoints of one run in `folder`, and `log`, its step log so far.

    `latest` is the one to go on from, None at a run's beginning; the log is as it was then, and
    `run` counts the seconds up to then. Halves are removed, and the checkpoints of other runs,
    which is logged.
    """

    def __init__(self, folder: Path, run: Run, fingerprint: str) -> None:
        self.folder, self.run, self.fingerprint = folder, run, fingerprint
        self.log = folder / LOG
        self.saved = time.monotonic()
        for pattern in (".model.*/", ".run.json.*/"):  # of `replacing`, when it was killed
            for half in folder.parent.glob(pattern):
                shutil.rmtree(half)

        found = [
            metadata for path in folder.glob("checkpoint-*") if (metadata := read_metadata(path))
        ]
        own = {metadata.step: metadata for metadata in found if metadata.fingerprint == fingerprint}
        if len(own) < len(found):
            log.warning("%s: of a run with other options, seed or inputs; removed", folder)
        whole = [step for step, metadata in own.items() if metadata.best in (None, *own)]
        last = own[max(whole)] if whole else None
        self.keep(() if last is None else (last.step, last.best))
        self.log.unlink(missing_ok=True)
        self.latest = None
        if last is not None:
            self.latest = self.path(last.step)
            run.seconds_before, run.resumed = last.seconds, last.resumed + 1
            shutil.copyfile(self.latest / LOG, self.log)
            log.warning("%s: the run goes on from here", self.latest)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.folder / f"checkpoint-{step}"

    def due(self, seconds: float) -> bool:
        """Whether the last checkpoint, or the beginning, is at least `seconds` ago."""
        return time.monotonic() - self.saved >= seconds

    @contextmanager
    def adding(self, step: int, best: int | None) -> Iterator[Path]:
        """A folder to fill, which becomes the checkpoint of `step` when the block ends well.

        Of the older ones that of the step `best` remains.
        """
        half = self.folder / f".checkpoint-{step}"
        half.mkdir()
        yield half
        shutil.copyfile(self.log, half / LOG)
        metadata = CheckpointMetadata(
            fingerprint=self.fingerprint,
            step=step,
            best=best,
            seconds=self.run.seconds,
            resumed=self.run.resumed,
            files={
                str(path.relative_to(half)): path.stat().st_size
                for path in half.rglob("*")
                if path.is_file()
            },
        )
        (half / METADATA).write_text(metadata.model_dump_json(), encoding="utf-8")
        flush(half)
        half.replace(self.path(step))
        sync(self.folder)
        self.keep((step, best))
        self.saved = time.monotonic()

    def keep(self, steps: Sequence[int | None]) -> None:
        """Remove all checkpoints, whole or not, but those of `steps`."""
        kept = {self.path(step) for step in steps if step is not None}
        for path in {*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")} - kept:
            shutil.rmtree(path)


def read_metadata(path: Path) -> CheckpointMetadata | None:
    """The metadata of a checkpoint; None of one that is not whole."""
    try:
        metadata = CheckpointMetadata.model_validate_json((path / METADATA).read_bytes())
        sizes = {name: (path / name).stat().st_size for name in metadata.files}
    except (OSError, ValueError):
        return None
    return (
        metadata if sizes == metadata.files and path.name == f"checkpoint-{metadata.step}" else None
    )
