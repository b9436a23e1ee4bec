"""Scratch folders: hidden while an output is written, and removed if their process was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rere.errors import InputError
from rere.files import replacing, replacing_all, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from rere import files
with files.replacing(Path(sys.argv[1])) as new:
    new.write_text("half")
    os.kill(os.getpid(), 9)
"""


def kill(path: Path) -> int:
    """Write `path` in another process that is killed; return its number."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    assert process.wait() == -signal.SIGKILL
    return process.pid


def test_a_killed_process_leaves_nothing_for_long(tmp_path):
    path, other = tmp_path / "t.csv", tmp_path / "t"
    process = kill(path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".t.csv.{os.uname().nodename}.{process}.")
    write_json(other, 1)  # another output does not touch it
    assert names(tmp_path) == sorted([left.name, "t"])
    write_json(path, 1)
    assert names(tmp_path) == ["t", "t.csv"]


def test_scratch_folders_of_others_stay(tmp_path):
    host = os.uname().nodename
    others = [
        f".a.json.{host}.{os.getppid()}.abc",  # a process that is running
        f".a.json.another-{host}.99999999.abc",
        f".a.json.{host}.notes",
        ".a.json.abc",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / f".a.json.{host}.{10**30}.abc").mkdir()
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == sorted([*others, "a.json"])


def test_a_folder_moved_away_by_a_killed_process_comes_back(tmp_path):
    left = tmp_path / f".d.{os.uname().nodename}.{kill(tmp_path / 'x')}.abc"
    (left / "d.old").mkdir(parents=True)
    (left / "d.old" / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "d"):
        1 / 0  # noqa: B018
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert not left.exists()


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "d") as new:
        new.mkdir()
        (new / "a").write_text("new")
    assert names(tmp_path) == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "old"


@pytest.mark.parametrize("wrong", [0, 1])
def test_files_replace_all_paths_or_none(wrong, tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    paths[wrong].mkdir()  # a folder where a file should go
    paths[1 - wrong].write_text("old")
    with pytest.raises(InputError, match="is a folder"), replacing_all(paths) as new:
        for path in new:
            path.write_text("new")
    assert names(tmp_path) == ["a", "b"]
    assert paths[1 - wrong].read_text() == "old"
    paths[wrong].rmdir()
    with replacing_all(paths) as new:
        for path in new:
            path.write_text("new")
    assert [path.read_text() for path in paths] == ["new", "new"]
