"""A damaged checkpoint is dropped with one line, and the run resumes from the one before it."""

import json
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import write_cycle, write_fixed_model

from rere.config.training import SftOptions
from rere.errors import InputError
from rere.provenance import RunRecord
from rere.training.checkpoints import METADATA, Checkpoints, hash_files, read_metadata
from rere.training.sft import sft
from rere.training.trainer import StepLog

BEST = {1: 1, 2: 1, 3: 1}
"""Steps of the checkpoints, and that of the best validation so far."""


MEMORY = {"rows_per_pass": 4, "gradient_checkpointing": False}
"""Their options that change results by rounding only."""


def open_checkpoints(folder: Path, memory_options: dict[str, int | bool] = MEMORY) -> Checkpoints:
    return Checkpoints(folder, RunRecord({}, 0.0), "run", memory_options)


def write_checkpoints(folder: Path, best: dict[int, int | None] = BEST) -> Path:
    """Write checkpoints whose files have the same names and sizes and other contents."""
    folder.mkdir(parents=True)
    checkpoints = open_checkpoints(folder)
    for step in best:
        with checkpoints.log.open("a") as log:
            log.write(json.dumps({"step": step}) + "\n")
        with checkpoints.write(step, best[step]) as path:
            (path / "reference").mkdir()
            for file in ("model.safetensors", "reference/model.safetensors"):
                save_file({"weight": torch.arange(8.0) + step}, path / file)
            torch.save({"step": step}, path / "optimizer.pt")
            (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------- one damaged checkpoint


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace(path: Path) -> None:
    """Take the same file of the checkpoint before."""
    other = Path(str(path).replace("checkpoint-3", "checkpoint-2"))
    content = path.read_bytes()
    assert other.stat().st_size == len(content)
    path.write_bytes(other.read_bytes())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def poison(path: Path) -> None:
    torch.save(Evil(), path)


@pytest.mark.parametrize("harm", [flip_bit, zero, cut, replace, Path.unlink, poison])
@pytest.mark.parametrize("file", ["model.safetensors", "reference/model.safetensors",
                                  "optimizer.pt", "trainer_state.json", "log.jsonl"])  # fmt: skip
def test_a_damaged_file(harm, file, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoints(tmp_path / "checkpoints")
    if harm is replace and file == "log.jsonl":
        pytest.skip("logs of two steps differ in size")
    harm(folder / "checkpoint-3" / file)
    assert open_checkpoints(folder).latest == folder / "checkpoint-2"
    assert caplog.messages == [
        f"{folder}/checkpoint-3: removed, since {file} is not as it was written",
        f"{folder}/checkpoint-2: the run resumes from here",
    ]
    assert names(folder) == ["checkpoint-1", "checkpoint-2", "log.jsonl"]
    assert (folder / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert names(tmp_path) == ["checkpoints"]


def test_nan_in_the_weights(tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    path = folder / "checkpoint-3" / "model.safetensors"
    weights = load_file(path)
    weights["weight"][2] = float("nan")
    save_file(weights, path)
    assert open_checkpoints(folder).latest == folder / "checkpoint-2"
    assert len(caplog.messages) == 2


def test_a_file_that_was_added(tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    torch.save(Evil(), folder / "checkpoint-3" / "pytorch_model.bin")
    assert open_checkpoints(folder).latest == folder / "checkpoint-2"
    assert "pytorch_model.bin is not as it was written" in caplog.messages[0]


def older_version(path: Path) -> str:
    """As before checkpoints had hashes: the size of each file."""
    value = json.loads(path.read_text())
    del value["sha256"]
    value["files"] = {name: (path.parent / name).stat().st_size for name in value["files"]}
    return json.dumps(value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (older_version, "checkpoint.json is damaged or of another version"),
        (lambda path: "", "checkpoint.json is damaged or of another version"),
        (lambda path: "[" * 100_000, "checkpoint.json is damaged or of another version"),
        (lambda path: "9" * 10_000, "checkpoint.json is damaged or of another version"),
        (
            lambda path: path.read_text().replace('"best":1', '"best":2'),
            "checkpoint.json is not as it was written",
        ),
        (
            lambda path: path.read_text().replace('"step":3', '"step":2'),
            "checkpoint.json is not as it was written",
        ),
        (
            lambda path: (path.parent.parent / "checkpoint-2" / path.name).read_text(),
            "it is a copy of checkpoint-2",
        ),
    ],
)  # fmt: skip
def test_damaged_metadata(change, reason, tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    path = folder / "checkpoint-3" / "checkpoint.json"
    path.write_text(change(path))
    assert open_checkpoints(folder).latest == folder / "checkpoint-2"
    assert caplog.messages[0] == f"{folder}/checkpoint-3: removed, since {reason}"


@pytest.mark.parametrize("kind", ["file", "link", "empty folder"])
def test_something_else_than_a_checkpoint(kind, tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    path = folder / "checkpoint-4"
    if kind == "file":
        path.write_text("notes")
    elif kind == "link":
        path.symlink_to(folder / "checkpoint-3")
    else:
        path.mkdir()
    assert open_checkpoints(folder).latest == folder / "checkpoint-3"
    assert len(caplog.messages) == 2
    assert names(folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "log.jsonl"]


# ------------------------------------------------------------------------------ several checkpoints


def test_the_best_checkpoint_is_the_last_resort(tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    for step in (2, 3):
        zero(folder / f"checkpoint-{step}" / "model.safetensors")
    assert open_checkpoints(folder).latest == folder / "checkpoint-1"
    assert len(caplog.messages) == 3


def test_without_an_intact_best_checkpoint_the_run_starts_again(tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    zero(folder / "checkpoint-1" / "model.safetensors")
    assert open_checkpoints(folder).latest is None
    assert caplog.messages[1:] == [
        *(
            f"{folder}/checkpoint-{step}: removed, since its best, checkpoint-1, is gone"
            for step in (2, 3)
        ),
        f"{folder}: no usable checkpoint is left; training starts anew",
    ]
    assert names(folder) == []


def test_other_options_that_change_rounding_are_logged(tmp_path, caplog):
    folder = write_checkpoints(tmp_path / "checkpoints")
    checkpoints = open_checkpoints(folder, {"rows_per_pass": 2, "gradient_checkpointing": True})
    last, rest = folder / "checkpoint-3", "results differ from an uninterrupted run by rounding"
    assert checkpoints.latest == last
    assert caplog.messages == [
        f"{last}: the run resumes from here",
        f"{last}: resumes with rows_per_pass 2 instead of 4; {rest}",
        f"{last}: resumes with gradient_checkpointing true instead of false; {rest}",
    ]


def test_a_best_checkpoint_needs_no_best_of_its_own(tmp_path):
    """Checkpoint 2 was the best one before 3 became it."""
    folder = write_checkpoints(tmp_path / "checkpoints", {1: None, 2: 2, 3: 3, 4: 3})
    assert names(folder) == ["checkpoint-3", "checkpoint-4", "log.jsonl"]
    assert open_checkpoints(folder).latest == folder / "checkpoint-4"


def test_a_best_checkpoint_that_is_damaged_while_the_run_goes_on(tmp_path):
    folder = write_checkpoints(tmp_path / "checkpoints")
    checkpoints = open_checkpoints(folder)
    assert checkpoints.intact(1) == folder / "checkpoint-1"
    flip_bit(folder / "checkpoint-1" / "model.safetensors")
    message = "checkpoint-1: model.safetensors is not as it was written; run the command again"
    with pytest.raises(InputError, match=message):
        checkpoints.intact(1)


OPTIONS = SftOptions(batch_size=16, rows_per_pass=16, validations=3, checkpoint_seconds=0.0)


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Train into folder / "run" until step 5; returns the initial model and the data."""
    init, data = write_fixed_model(folder / "init"), write_cycle(folder / "data")

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StepLog, "on_step_end", on_step_end)
        sft(OPTIONS, init, data, 0, folder / "run")
    return init, data


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_behind_forged_hashes_is_not_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init, data = interrupted(tmp_path, monkeypatch)
    path = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    poison(path / file)
    metadata = read_metadata(path)
    metadata.files = hash_files(path)
    metadata.sha256 = metadata.hash()
    (path / METADATA).write_text(metadata.model_dump_json())
    with pytest.raises(InputError, match="checkpoint-4: holds code, which is not run; remove"):
        sft(OPTIONS, init, data, 0, tmp_path / "run")
    assert not (tmp_path / "executed").exists()


def test_a_run_with_a_flipped_bit_in_its_last_checkpoint(tmp_path, monkeypatch, caplog):
    """It ends with the bytes of a run that was never interrupted."""
    init, data = interrupted(tmp_path, monkeypatch)
    sft(OPTIONS, init, data, 0, tmp_path / "whole")
    flip_bit(tmp_path / "run" / "checkpoints" / "checkpoint-4" / "model.safetensors")
    caplog.clear()
    sft(OPTIONS, init, data, 0, tmp_path / "run")
    assert [message.rpartition("/")[2] for message in caplog.messages] == [
        "checkpoint-4: removed, since model.safetensors is not as it was written",
        "checkpoint-3: the run resumes from here",
    ]
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# -------------------------------------------------------------------------------------- any damage


@cache
def intact() -> dict[str, bytes]:
    """The content of each file of a folder of checkpoints by its path there."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_checkpoints(Path(folder, "checkpoints"))
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


def is_unchanged(folder: Path, step: int) -> bool:
    """Whether a checkpoint has the files it had, and metadata of the same values."""
    files = {name: content for name, content in intact().items() if f"-{step}/" in name}
    for name, content in files.items():
        found = (folder / name).read_bytes()
        if name.endswith("checkpoint.json"):
            try:
                if json.loads(found) != json.loads(content):
                    return False
            except ValueError:
                return False
        elif found != content:
            return False
    return True


FILES = st.integers(0, 10_000)
DAMAGES = st.one_of(
    st.tuples(st.just("flip"), FILES, st.integers(0, 10_000), st.integers(0, 7)),
    st.tuples(st.just("cut"), FILES, st.integers(0, 10_000), st.just(0)),
    st.tuples(st.just("swap"), FILES, FILES, st.just(0)),
)


def damage(folder: Path, kind: str, file: int, number: int, bit: int) -> None:
    """Flip a bit of a file, cut it off, or swap it with another of equal size."""
    files = [folder / name for name in sorted(intact())]
    path = files[file % len(files)]
    content = bytearray(path.read_bytes())
    if kind == "swap":
        equal = [other for other in files if other.stat().st_size == len(content)]
        other = equal[number % len(equal)]
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif content:
        if kind == "flip":
            content[number % len(content)] ^= 1 << bit
        path.write_bytes(content if kind == "flip" else content[: number % len(content)])


@pytest.mark.fuzz
@given(damages=st.lists(DAMAGES, min_size=1, max_size=4))
def test_any_damage(damages):
    """The run resumes from the last one that is as it was, with its best, or starts again."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for name, content in intact().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for each in damages:
            damage(folder, *each)
        whole = {step for step in BEST if is_unchanged(folder, step)}
        usable = [step for step in whole if BEST[step] in whole]
        expected = folder / f"checkpoint-{max(usable)}" if usable else None
        assert open_checkpoints(folder).latest == expected
        if expected is not None:
            log = intact()[f"{expected.name}/log.jsonl"]
            assert (folder / "log.jsonl").read_bytes() == log
