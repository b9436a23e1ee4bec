"""A local server that speaks what uploading to the Hugging Face hub needs."""

import base64
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories on the loopback interface.

    `statuses` has the answer of a route that refuses, by the last part of its path or the one
    before.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}  # of "owner/name@branch", by path
        self.private: dict[str, bool] = {}  # by repository
        self.statuses: dict[str, int] = {}
        self.requests: list[str] = []

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

    def do_GET(self) -> None:
        repo = self.path.removeprefix("/api/models/")
        if repo not in self.server.private:
            return self.answer(404, {"error": "missing"})
        self.answer(200, {"id": repo, "private": self.server.private[repo]})

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
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
