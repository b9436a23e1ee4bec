"""A local server that speaks what uploads to the Hugging Face hub and downloads need."""

import base64
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories on the loopback interface.

    `statuses` has the answer of a route that refuses, by the last part of its path or the one
    before.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}  # of "owner/name@branch" or commit, by path
        self.heads: dict[str, str] = {}  # commit of a published "owner/name@branch"
        self.gated: set[str] = set()  # repositories that only TOKEN may read
        self.private: dict[str, bool] = {}  # by repository
        self.statuses: dict[str, int] = {}
        self.requests: list[str] = []

    def publish(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Move a branch of a repository to a commit with the files of `folder`; return it."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        commit = hashlib.sha1(b"".join([repo.encode(), *files.values()])).hexdigest()
        self.files[f"{repo}@{commit}"] = files
        self.heads[f"{repo}@{branch}"] = commit
        self.private[repo] = False
        return commit

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.removeprefix("/api/").split("/")
        self.server.requests.append(self.path)
        status = next((s for part, s in self.server.statuses.items() if part in parts[-2:]), None)
        if status is None and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            return self.answer(status, {"error": "refused"})
        if parts == ["validate-yaml"]:
            return self.answer(200, {"warnings": [], "errors": []})
        if parts == ["repos", "create"]:
            return self.create(json.loads(body))
        repo, route, branch = "/".join(parts[1:3]), *parts[3:]
        routes: dict[str, Callable[[str, bytes], None]] = {
            "branch": self.branch,
            "preupload": self.preupload,
            "commit": self.commit,
        }
        routes[route](f"{repo}@{branch}", body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if "/resolve/" in self.path:
            repo, _, place = self.path[1:].partition("/resolve/")
            return self.resolve(repo, *place.split("/", 1))
        repo = self.path.removeprefix("/api/models/")
        if repo not in self.server.private:
            return self.answer(404, {"error": "missing"})
        self.answer(200, {"id": repo, "private": self.server.private[repo]})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        """Send a file of a published commit, or of the one that a branch is at."""
        commit = self.server.heads.get(f"{repo}@{revision}", revision)
        files = self.server.files.get(f"{repo}@{commit}", {})
        if repo not in self.server.private:
            self.refuse(401, "RepoNotFound")
        elif repo in self.server.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.refuse(401, "GatedRepo")
        elif not files:
            self.refuse(404, "RevisionNotFound")
        elif path not in files:
            self.refuse(404, "EntryNotFound", commit)
        else:
            etag = hashlib.sha1(files[path]).hexdigest()
            self.send(200, files[path], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": "refused"}
        self.send(status, b"{}", headers | ({"X-Repo-Commit": commit} if commit else {}))

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        is_new = repo not in self.server.private
        self.server.private.setdefault(repo, wanted.get("visibility") == "private")
        self.server.files.setdefault(f"{repo}@main", {})
        self.answer(200 if is_new else 409, {"url": f"{self.server.url}/{repo}"})

    def branch(self, place: str, _: bytes) -> None:
        is_new = place not in self.server.files
        self.server.files.setdefault(place, {})
        self.answer(200 if is_new else 409, {})

    def preupload(self, _: str, body: bytes) -> None:
        """Have every file sent in the commit; the real hub has large ones sent beforehand."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        self.answer(200, {"files": modes})

    def commit(self, place: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[place][line["value"]["path"]] = content
        url = f"{self.server.url}/{place.partition('@')[0]}/commit/1"
        self.answer(200, {"commitUrl": url, "commitOid": "1"})

    def answer(self, status: int, value: Any) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
