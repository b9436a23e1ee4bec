"""Checkpoints: a run killed at any moment resumes and ends with the same results.

They are in checkpoints/, not among the run's outputs, since Snakemake deletes outputs of failed
jobs. `checkpoint-{step}` holds all state that the rest of the run depends on. It is written under
another name, flushed to disk and renamed, and its metadata has the sha256 of each file: a damaged
checkpoint is dropped, and the run resumes from the one before. The last two are kept, and those of
their best validations. If none is left whose best is intact, training starts anew. A finished run
leaves none.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rere.config.training import Training
from rere.devices import deterministic_algorithms
from rere.errors import InputError
from rere.files import flush, naming_full_disk, replacing, sha256, sync
from rere.provenance import RunRecord, provenance
from rere.ranks import ALONE, Ranks, join, leave
from rere.signals import DeferredSignals
from rere.training.checkpoint_folder import locked

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
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
    "save",
}
"""Options that do not change results; a run resumes under other values of them."""

MEMORY_OPTIONS = {"rows_per_pass", "gradient_checkpointing", "sharded"}
"""Options that change results by rounding only; a run that ran out of memory resumes under others.
"""


@contextmanager
def resumable(
    output: Path, options: Training, seed: int, inputs: Sequence[Path]
) -> Iterator["Checkpoints"]:
    """The checkpoints of the training run in `output`, for the body of a `with` statement.

    If the body succeeds, log.jsonl and run.json are written and the checkpoints deleted. They stay
    if the run fails or is killed. The first rank alone does all this; the others follow it. Raises
    InputError if another run trains in the same folder.
    """
    ranks = join()
    with deterministic_algorithms(options.deterministic):
        if ranks.is_first:
            with written(output, options, seed, inputs, ranks) as checkpoints:
                yield checkpoints
        else:
            yield Checkpoints(output / FOLDER, RunRecord({}, time.perf_counter()), "", {}, ranks)
    leave(ranks)


@contextmanager
def written(
    output: Path, options: Training, seed: int, inputs: Sequence[Path], ranks: Ranks
) -> Iterator["Checkpoints"]:
    """What `resumable` does on the first rank."""
    folder = output / FOLDER
    with locked(folder):
        with provenance(output / "run.json", options, seed, inputs) as run:
            run.chosen["dtype"] = options.dtype
            neutral = options.model_dump(include=MEMORY_OPTIONS) | {"processes": ranks.size}
            checkpoints = Checkpoints(folder, run, fingerprint(options, seed, run), neutral, ranks)
            yield checkpoints
            with replacing(output / LOG) as new:
                shutil.copyfile(checkpoints.log, new)
        checkpoints.clear()


def fingerprint(options: Training, seed: int, run: RunRecord) -> str:
    """A hash of what determines a run's results: options, seed and the content of its inputs."""
    values = options.model_dump(mode="json", exclude=RESULT_NEUTRAL | MEMORY_OPTIONS)
    files = [(Path(name).name, digest) for name, digest in run.inputs_sha256.items()]
    text = json.dumps([values, seed, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class CheckpointMetadata(BaseModel):
    """The last file written to a checkpoint; it tells whether the others are as they were."""

    fingerprint: str  # of its run
    step: int
    best: int | None  # step of the best validation so far
    seconds: float  # of the run up to this step
    resumed: int  # how many times the run was killed and resumed
    memory_options: dict[str, int | bool]  # values of MEMORY_OPTIONS, and the number of processes
    chosen: dict[str, Any]  # for the device, when the run began
    files: dict[str, str]  # name to sha256
    sha256: str = ""  # of the metadata without this field

    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run in `folder`, and `log`, the path of its step log.

    `latest` is the checkpoint to resume from, None for a new run. The log and the seconds of `run`
    are reset to that checkpoint. Damaged checkpoints and those of other runs are removed, with a
    warning. Other `memory_options` than the checkpoint's are logged. What was chosen for the device
    when the run began stays in `run`. Other ranks than the first read what it resumes from.
    """

    def __init__(
        self,
        folder: Path,
        run: RunRecord,
        fingerprint: str,
        memory_options: dict[str, int | bool],
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder, self.run, self.fingerprint = folder, run, fingerprint
        self.memory_options, self.ranks = memory_options, ranks
        self.log = folder / LOG
        self.saved = time.monotonic()
        self.signals = DeferredSignals()
        last = self.find_last() if ranks.is_first else None
        (step,) = ranks.first(-1 if last is None else last.step)
        self.latest = None if step < 0 else self.path(int(step))
        if self.latest is not None and not ranks.is_first:
            last = read_metadata(self.latest)
        if last is not None:
            run.seconds_before, run.resumed = last.seconds, last.resumed + 1
            run.chosen = last.chosen

    def find_last(self) -> CheckpointMetadata | None:
        """The metadata of the checkpoint to resume from, whose log is restored; None if none."""
        own = self.find_own()
        self.best_of = {step: metadata.best for step, metadata in own.items()}
        self.remove_old()
        self.log.unlink(missing_ok=True)
        if not own:
            return None
        last = own[max(own)]
        latest = self.path(last.step)
        with naming_full_disk(self.log):
            shutil.copyfile(latest / LOG, self.log)
        log.warning("%s: the run resumes from here", latest)
        self.warn_of_rounding(last.memory_options, latest)
        return last

    def warn_of_rounding(self, before: dict[str, int | bool], latest: Path) -> None:
        """Name the memory options that have another value than in the checkpoint."""
        for name, value in self.memory_options.items():
            if value != before.get(name, value):
                log.warning(
                    "%s: resumes with %s %s instead of %s; results differ from an uninterrupted "
                    "run by rounding",
                    *(latest, name, json.dumps(value), json.dumps(before[name])),
                )

    def find_own(self) -> dict[int, CheckpointMetadata]:
        """The metadata of this run's intact checkpoints by step; warns of all others."""
        own: dict[int, CheckpointMetadata] = {}
        has_others = has_damaged = False
        for path in self.folder.glob("checkpoint-*"):
            try:
                metadata = read_metadata(path)
                if metadata.fingerprint == self.fingerprint:
                    check_files(path, metadata)
                    own[metadata.step] = metadata
                else:
                    has_others = True
            except (OSError, ValueError) as error:
                has_damaged = True
                log.warning("%s: removed, since %s", path, error)
        if has_others:
            log.warning(
                "%s: removed checkpoints of a run with other options, seed or inputs", self.folder
            )
        without_best = {step for step, each in own.items() if each.best not in (None, *own)}
        for step in sorted(without_best):
            best = f"checkpoint-{own.pop(step).best}"
            log.warning("%s: removed, since its best, %s, is gone", self.path(step), best)
        if (has_damaged or without_best) and not own:
            log.warning("%s: no usable checkpoint is left; training starts anew", self.folder)
        return own

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.folder / f"checkpoint-{step}"

    def intact(self, step: int) -> Path:
        """The folder of a checkpoint; raises InputError if its files are not as they were."""
        path = self.path(step)
        try:
            check_files(path, read_metadata(path))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}; run the command again, which drops it") from error
        return path

    def is_due(self, seconds: float) -> bool:
        """Whether the last checkpoint, or else this object, was made at least `seconds` ago."""
        return time.monotonic() - self.saved >= seconds

    @contextmanager
    def write(self, step: int, best: int | None) -> Iterator[Path]:
        """A folder for the body of a `with` statement to fill; it becomes the checkpoint of `step`.

        Checkpoints that are no longer needed are removed. Raises InputError if the disk is full.
        """
        incomplete = self.folder / f".checkpoint-{step}"
        try:
            with naming_full_disk(self.folder):
                incomplete.mkdir()
                yield incomplete
                shutil.copyfile(self.log, incomplete / LOG)
                self.write_metadata(incomplete, step, best)
                flush(incomplete)
                incomplete.replace(self.path(step))
                sync(self.folder)
        except BaseException:
            shutil.rmtree(incomplete, ignore_errors=True)
            raise
        self.best_of[step] = best
        self.remove_old()
        self.saved = time.monotonic()

    def write_metadata(self, path: Path, step: int, best: int | None) -> None:
        metadata = CheckpointMetadata(
            fingerprint=self.fingerprint,
            step=step,
            best=best,
            seconds=self.run.seconds,
            resumed=self.run.resumed,
            memory_options=self.memory_options,
            chosen=self.run.chosen,
            files=hash_files(path),
        )
        metadata.sha256 = metadata.hash()
        (path / METADATA).write_text(metadata.model_dump_json(), encoding="utf-8")

    def remove_old(self) -> None:
        """Remove all but the last two checkpoints and those of their best validations.

        The one before the last is for a last one that is damaged.
        """
        self.best_of = dict(sorted(self.best_of.items())[-2:])
        steps = (*self.best_of, *self.best_of.values())
        self.remove_all_but({self.path(step) for step in steps if step is not None})

    def remove_all_but(self, kept: set[Path]) -> None:
        """Remove checkpoints, complete or not."""
        for path in {*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")} - kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def clear(self) -> None:
        """Remove all checkpoints and the log."""
        self.remove_all_but(set())
        self.log.unlink()


def read_metadata(path: Path) -> CheckpointMetadata:
    """The metadata of a checkpoint; raises OSError or ValueError unless it is as it was written."""
    try:
        metadata = CheckpointMetadata.model_validate_json((path / METADATA).read_bytes())
    except ValidationError:
        raise ValueError(f"{METADATA} is damaged or of another version") from None
    if metadata.sha256 != metadata.hash():
        raise ValueError(f"{METADATA} is not as it was written")
    if path.name != f"checkpoint-{metadata.step}":
        raise ValueError(f"it is a copy of checkpoint-{metadata.step}")
    return metadata


def check_files(path: Path, metadata: CheckpointMetadata) -> None:
    """Raise ValueError unless a checkpoint has the files of its metadata, as they were written."""
    found = hash_files(path)
    for name in sorted(found.keys() | metadata.files.keys()):
        if found.get(name) != metadata.files.get(name):
            raise ValueError(f"{name} is not as it was written")


def hash_files(path: Path) -> dict[str, str]:
    """The sha256 of each file below a folder by its name there, but for the metadata."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): sha256(file) for file in files if file != path / METADATA}
