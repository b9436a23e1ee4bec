"""Checkpoints: a run killed at any moment resumes and ends with the same results.

They are in checkpoints/, not among the run's outputs, since Snakemake deletes outputs of failed
jobs. `checkpoint-{step}` holds all state that the rest of the run depends on. It is written under
another name, flushed to disk and renamed, so a folder with this name is complete. Only the last
checkpoint and that of the best validation are kept. A finished run leaves none.
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
from rere.provenance import RunRecord, provenance

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
    "collapse_steps",
    "report_to",
}
"""Options that do not change results; a run resumes under other values of them."""


@contextmanager
def resumable(
    output: Path, options: Training, seed: int, inputs: Sequence[Path]
) -> Iterator["Checkpoints"]:
    """The checkpoints of the training run in `output`, for the body of a `with` statement.

    If the body succeeds, log.jsonl and run.json are written and the checkpoints deleted. They stay
    if the run fails or is killed. Raises InputError if another process trains in the same folder,
    or under a launcher of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("training takes one process and one device; start it without a launcher")
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
    """Make a folder and hold a lock on it. Raises InputError if another process holds the lock.

    Jobs of a killed Snakemake keep running, and must not share the folder with their successors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is training here; wait for it or stop it"
            ) from error
        except OSError:
            log.warning("%s: cannot be locked; start no second process here", folder)
        try:
            yield
        except BaseException:
            if [entry.name for entry in folder.iterdir()] == [".lock"]:
                # The run failed before its first step.
                shutil.rmtree(folder)
                with suppress(OSError):
                    folder.parent.rmdir()
            raise


def fingerprint(options: Training, seed: int, run: RunRecord) -> str:
    """A hash of what determines a run's results: options, seed and the content of its inputs."""
    values = options.model_dump(mode="json", exclude=RESULT_NEUTRAL)
    files = [(Path(name).name, digest) for name, digest in run.inputs_sha256.items()]
    text = json.dumps([values, seed, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class CheckpointMetadata(BaseModel):
    """The last file written to a checkpoint; it tells whether the others are complete."""

    fingerprint: str  # of its run
    step: int
    best: int | None  # step of the best validation so far
    seconds: float  # of the run up to this step
    resumed: int  # how many times the run was killed and resumed
    files: dict[str, int]  # name to size in bytes


class Checkpoints:
    """The checkpoints of one run in `folder`, and `log`, the path of its step log.

    `latest` is the checkpoint to resume from, None for a new run. The log and the seconds of `run`
    are reset to that checkpoint. Incomplete checkpoints are removed, and those of other runs, with
    a warning.
    """

    def __init__(self, folder: Path, run: RunRecord, fingerprint: str) -> None:
        self.folder, self.run, self.fingerprint = folder, run, fingerprint
        self.log = folder / LOG
        self.saved = time.monotonic()
        for pattern in (".model.*/", ".run.json.*/"):  # left by `replacing` when it was killed
            for incomplete in folder.parent.glob(pattern):
                shutil.rmtree(incomplete)

        found = [
            metadata for path in folder.glob("checkpoint-*") if (metadata := read_metadata(path))
        ]
        own = {metadata.step: metadata for metadata in found if metadata.fingerprint == fingerprint}
        if len(own) < len(found):
            log.warning(
                "%s: removed checkpoints of a run with other options, seed or inputs", folder
            )
        complete = [step for step, metadata in own.items() if metadata.best in (None, *own)]
        last = own[max(complete)] if complete else None
        self.keep_only(() if last is None else (last.step, last.best))
        self.log.unlink(missing_ok=True)
        self.latest = None
        if last is not None:
            self.latest = self.path(last.step)
            run.seconds_before, run.resumed = last.seconds, last.resumed + 1
            shutil.copyfile(self.latest / LOG, self.log)
            log.warning("%s: the run resumes from here", self.latest)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.folder / f"checkpoint-{step}"

    def is_due(self, seconds: float) -> bool:
        """Whether the last checkpoint, or else the start, was at least `seconds` ago."""
        return time.monotonic() - self.saved >= seconds

    @contextmanager
    def write(self, step: int, best: int | None) -> Iterator[Path]:
        """A folder for the body of a `with` statement to fill; it becomes the checkpoint of `step`.

        Older checkpoints are removed, except that of step `best`.
        """
        incomplete = self.folder / f".checkpoint-{step}"
        incomplete.mkdir()
        yield incomplete
        shutil.copyfile(self.log, incomplete / LOG)
        metadata = CheckpointMetadata(
            fingerprint=self.fingerprint,
            step=step,
            best=best,
            seconds=self.run.seconds,
            resumed=self.run.resumed,
            files={
                str(path.relative_to(incomplete)): path.stat().st_size
                for path in incomplete.rglob("*")
                if path.is_file()
            },
        )
        (incomplete / METADATA).write_text(metadata.model_dump_json(), encoding="utf-8")
        flush(incomplete)
        incomplete.replace(self.path(step))
        sync(self.folder)
        self.keep_only((step, best))
        self.saved = time.monotonic()

    def keep_only(self, steps: Sequence[int | None]) -> None:
        """Remove all checkpoints, complete or not, except those of `steps`."""
        kept = {self.path(step) for step in steps if step is not None}
        for path in {*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")} - kept:
            shutil.rmtree(path)


def read_metadata(path: Path) -> CheckpointMetadata | None:
    """The metadata of a checkpoint, or None if it is incomplete."""
    try:
        metadata = CheckpointMetadata.model_validate_json((path / METADATA).read_bytes())
        sizes = {name: (path / name).stat().st_size for name in metadata.files}
    except (OSError, ValueError):
        return None
    is_complete = sizes == metadata.files and path.name == f"checkpoint-{metadata.step}"
    return metadata if is_complete else None
