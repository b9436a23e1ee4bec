"""Checkpoints on another disk than the run's folder, and disks that cannot flush."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tiny_models import write_cycle, write_fixed_model

from rere.config.training import SftOptions
from rere.errors import InputError
from rere.files import write_json
from rere.provenance import RunRecord
from rere.training.checkpoint_folder import DISK
from rere.training.checkpoints import Checkpoints
from rere.training.sft import sft
from rere.training.trainer import StepLog

OPTIONS = SftOptions(batch_size=16, rows_per_pass=16, validations=3, checkpoint_seconds=0.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raise_from_fsync(patch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "fsync", fsync)


# ---------------------------------------------------------------------- checkpoints on another disk


def interrupt(output: Path, init: Path, data: Path, patch: pytest.MonkeyPatch) -> None:
    """Train, and stop in the third of six steps."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with patch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(StepLog, "on_step_end", on_step_end)
        sft(OPTIONS, init, data, 0, output)


@pytest.mark.parametrize("others", [False, True])
def test_a_link_to_another_disk(others, tmp_path, monkeypatch):
    """What others have there stays."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm, another file system than that of the tests")
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")
    output = tmp_path / "run"
    output.mkdir()
    with tempfile.TemporaryDirectory(dir=memory) as disk:
        target = Path(disk, "run")
        (output / "checkpoints").symlink_to(target)
        if others:
            target.mkdir()
            (target / "mine").touch()
        interrupt(output, init, data, monkeypatch)
        assert {"checkpoint-2", "log.jsonl"} <= {*names(target)}
        sft(OPTIONS, init, data, 0, output)
        assert names(Path(disk)) == (["run"] if others else [])
        if others:
            assert "mine" in names(target)
            assert not {"checkpoint-2", "log.jsonl"} & {*names(target)}
    assert {"log.jsonl", "model", "run.json"} <= {*names(output)}
    assert others or names(output) == ["log.jsonl", "model", "run.json"]


def test_a_folder_for_the_checkpoints_of_all_runs(tmp_path, monkeypatch, caplog):
    init, data = write_fixed_model(tmp_path / "init"), write_cycle(tmp_path / "data")
    sft(OPTIONS, init, data, 0, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setenv(DISK, str(disk))
    runs = [tmp_path / name / "seed0" for name in ("a", "b")]
    for run in runs:
        interrupt(run, init, data, monkeypatch)
    links = [run / "checkpoints" for run in runs]
    assert all(link.is_symlink() for link in links)
    targets = [link.resolve() for link in links]
    assert {target.parent for target in targets} == {disk}
    assert len(set(targets)) == 2
    shutil.rmtree(targets[1])  # as a scratch disk that is cleared now and then
    caplog.clear()
    for run in runs:
        sft(OPTIONS, init, data, 0, run)
        assert names(run) == ["log.jsonl", "model", "run.json"]
        weights = [folder / "model" / "model.safetensors" for folder in (run, tmp_path / "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert caplog.messages == [f"{links[0]}/checkpoint-2: the run resumes from here"]
    assert names(disk) == []


def test_a_folder_for_checkpoints_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv(DISK, str(tmp_path / "nowhere"))
    with pytest.raises(InputError) as error:
        sft(OPTIONS, tmp_path, tmp_path, 0, tmp_path / "run")
    assert str(error.value) == (
        f"{DISK}: there is no folder {tmp_path}/nowhere; make it or unset the variable"
    )
    assert names(tmp_path) == []


# ------------------------------------------------------------------------ a disk that cannot flush


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_a_file_system_that_cannot_flush(number, tmp_path, monkeypatch):
    raise_from_fsync(monkeypatch, number)
    write_json(tmp_path / "a.json", 1)
    checkpoints = Checkpoints(tmp_path, RunRecord({}, 0.0), "run", {})
    checkpoints.log.touch()
    with checkpoints.write(1, None) as path:
        (path / "model.safetensors").write_text("weights")
    assert names(tmp_path) == ["a.json", "checkpoint-1", "log.jsonl"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_flush_is_an_error(number, tmp_path, monkeypatch):
    raise_from_fsync(monkeypatch, number)
    with pytest.raises((OSError, InputError)):
        write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == []
