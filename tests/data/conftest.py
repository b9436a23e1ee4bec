"""A wheel and a server that stand for the web."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import pytest
from fake_downloads import MEMBERS, Server, fake_pip, register_wheel

from rere.data import download
from rere.files import sha256


@pytest.fixture
def data_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with two data files, registered as ml-100k and downloaded by a fake pip."""
    path = tmp_path / "package-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for member in (*MEMBERS, "package/__init__.py"):
            archive.writestr(member, f"content of {member}\n")
    fake_pip(monkeypatch, wheel=path)
    register_wheel(monkeypatch, sha256(path), MEMBERS)
    return path


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server on the loopback interface, asked again without a pause."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
