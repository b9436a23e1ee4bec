"""Full disks, other disks, and file systems that cannot flush a folder."""

import errno
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny_models import CYCLE, write_cycle, write_data, write_fixed_model

from rere.baselines.baseline import baseline
from rere.config.baselines import Popularity
from rere.config.evaluation import Evaluation
from rere.config.run import Run
from rere.config.training import SftOptions
from rere.errors import InputError
from rere.evaluation.metrics import metrics
from rere.files import DISK_FULL, is_disk_full, replacing, write_json
from rere.provenance import RunRecord
from rere.reporting.figures import save_figure
from rere.reporting.tables import table
from rere.training.checkpoints import Checkpoints
from rere.training.sft import sft

OPTIONS = SftOptions(batch_size=16, rows_per_pass=16, validations=3, checkpoint_seconds=0.0)
FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of one megabyte; skips where it cannot be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            done = subprocess.run(mount, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"needs mount: {error}")
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            # Lazily: torch keeps the file open that it could not write.
            subprocess.run(["umount", "--lazy", folder], check=True)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_run(folder: Path) -> tuple[Path, Path]:
    """A run folder of the popularity baseline, with metrics, and its data folder."""
    rows = [([step % 8], (step + 1) % 8) for step in range(8)]
    data = write_data(folder / "data" / "d", CYCLE, train=rows, valid=rows, test=rows)
    run = Run(dataset="d", backbone="none", method="popularity", seed=0)
    output = folder / run.folder
    baseline(Popularity(), Evaluation(), data, 0, output / "predictions.parquet")
    metrics(output / "predictions.parquet", data, run, output / "metrics.json")
    return output, data


# ------------------------------------------------------------------------------------- a full disk

NUMBERS = np.random.default_rng(0).random(400_000)
BIG: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 2_000_000),
    "polars parquet": lambda path: pl.DataFrame({"x": NUMBERS}).write_parquet(path),
    "polars csv": lambda path: pl.DataFrame({"x": NUMBERS}).write_csv(path),
    "safetensors": lambda path: save_file({"x": torch.from_numpy(NUMBERS)}, path),
    "torch": lambda path: torch.save(torch.from_numpy(NUMBERS), path),
}


@pytest.mark.parametrize("write", BIG.values(), ids=BIG)
def test_a_file_larger_than_the_disk(write):
    with small_disk() as disk:
        with pytest.raises(InputError) as error, replacing(disk / "output") as new:
            write(new)
        assert str(error.value) == f"{disk}/output: {DISK_FULL}"
        assert names(disk) == []


@pytest.mark.parametrize("suffix", [".pdf", ".png"])
def test_a_figure_on_a_full_disk(suffix):
    figure = Figure(figsize=(2, 2), dpi=400)
    figure.figimage(NUMBERS.reshape(800, 500))
    with small_disk() as disk:
        (disk / "others").write_text("x" * 900_000)
        with pytest.raises(InputError, match=f"a.pdf: {DISK_FULL}"):
            save_figure(figure, [disk / "a.pdf", disk / f"b{suffix}"])
        assert names(disk) == ["others"]


def test_json_and_a_folder_on_a_full_disk():
    with small_disk() as disk:
        with pytest.raises(InputError, match=f"a.json: {DISK_FULL}"):
            write_json(disk / "a.json", list(range(400_000)))
        with (
            pytest.raises(InputError, match=f"^{disk}/model: {DISK_FULL}"),
            replacing(disk / "model") as folder,
        ):
            folder.mkdir()
            write_json(folder / "inner.json", list(range(400_000)))
        assert names(disk) == []


def test_a_full_disk_keeps_what_was_there():
    with small_disk() as disk:
        (disk / "output").write_text("old")
        with pytest.raises(InputError), replacing(disk / "output") as new:
            new.write_text("x" * 2_000_000)
        assert (disk / "output").read_text() == "old"


def test_a_checkpoint_on_a_full_disk():
    with small_disk() as disk:
        checkpoints = Checkpoints(disk, RunRecord({}, 0.0), "run", {})
        checkpoints.log.touch()
        with checkpoints.write(1, None) as path:
            (path / "optimizer.pt").write_text("whole")
        with pytest.raises(InputError) as error, checkpoints.write(2, None) as path:
            torch.save(torch.from_numpy(NUMBERS), path / "optimizer.pt")
        assert str(error.value) == f"{disk}: {DISK_FULL}"
        assert names(disk) == ["checkpoint-1", "log.jsonl"]
        assert Checkpoints(disk, RunRecord({}, 0.0), "run", {}).latest == disk / "checkpoint-1"


def test_a_training_run_on_a_full_disk(tmp_path):
    """It resumes once there is space, and ends with the bytes of a run that had enough."""
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")
    options = SftOptions(batch_size=16, rows_per_pass=16, validations=3)
    sft(options, init, data, 0, tmp_path / "whole")
    with small_disk() as disk:
        run, others = disk / "run", disk / "others"
        size = sum(path.stat().st_size for path in (tmp_path / "whole" / "model").iterdir())
        others.write_text("x" * (1_000_000 - 4 * size))  # room for one checkpoint of three
        with pytest.raises(InputError, match=f"^{run}/checkpoints: {DISK_FULL}"):
            sft(options, init, data, 0, run)
        assert names(run) == ["checkpoints"]
        others.unlink()
        sft(options, init, data, 0, run)
        assert names(run) == ["log.jsonl", "model", "run.json"]
        weights = [folder / "model" / "model.safetensors" for folder in (run, tmp_path / "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def chained() -> AttributeError:
    """As a library that cleans up after the error and fails again."""
    try:
        try:
            raise FULL
        finally:
            None.close()
    except AttributeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        chained(),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        pl.exceptions.ComputeError("No space left on device (os error 28)"),
        OSError("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_the_words_of_libraries(error, tmp_path):
    with pytest.raises(InputError) as raised, replacing(tmp_path / "output"):
        raise error
    assert str(raised.value) == f"{tmp_path}/output: {DISK_FULL}"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "I/O error")])
def test_other_errors_stay_as_they_are(error, tmp_path):
    assert not is_disk_full(error)
    with pytest.raises(type(error)) as raised, replacing(tmp_path / "output"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("suffix", [".csv", ".runs.csv", ".md", ".tex"])
@pytest.mark.parametrize("old", [False, True])
def test_a_table_has_all_its_files_or_none(suffix, old, tmp_path, monkeypatch):
    run, data = write_run(tmp_path)
    output = tmp_path / "tables" / "t.csv"
    if old:
        table([run], [data], output)
        output.write_text("old")
    original = Path.write_text

    def write_text(path: Path, text: str, **more: object) -> int:
        if path.name == f"t{suffix}":
            raise FULL
        return original(path, text, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        with pytest.raises(InputError, match=f"t.csv: {DISK_FULL}"):
            table([run], [data], output)
    assert names(output.parent) == (["t.csv", "t.md", "t.runs.csv", "t.tex"] if old else [])
    assert not old or output.read_text() == "old"


def test_standard_output_on_a_full_disk():
    command = f"{sys.executable} -m rere schema > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"rere schema: standard output: {DISK_FULL}\n"


def test_a_write_outside_of_a_scratch_folder_names_the_output(tmp_path):
    code = (
        "import errno, sys\nfrom rere.cli import main\nfrom rere.stages import Fetch, STAGES\n"
        "def run(self): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "STAGES['fetch'].run = run\nmain()"
    )
    command = [sys.executable, "-c", code, "fetch", "--source", "ml-1m", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"rere fetch: {tmp_path}: {DISK_FULL}\n"
