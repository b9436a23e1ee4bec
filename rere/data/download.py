"""Download large files over HTTP, and resume interrupted downloads."""

import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rere.errors import InputError
from rere.files import sha256
from rere.progress import progress

MAX_TRIES = 5
"""In a row without receiving a byte."""

PAUSE = 2.0
"""Seconds before the second try, doubled for each further one."""

TIMEOUT = 60
"""Seconds without an answer."""

BLOCK = 1 << 20


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, which exists once the download is complete.

    Received bytes are kept in `path` with `.part` added, and the next try or call asks for the
    rest; if the server's file has changed, for all of it. Raises InputError if the server has no
    such file or cannot be reached.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while not path.exists():
        before = part.stat().st_size if part.exists() else 0
        try:
            if download_rest(url, part):
                part.replace(path)
                part.with_name(f"{part.name}.version").unlink(missing_ok=True)
        except HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise InputError(f"{url}: the server says {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            reason = "the connection ended early"
        has_grown = part.exists() and part.stat().st_size > before
        failures = 0 if has_grown else failures + 1
        if failures == MAX_TRIES:
            raise InputError(
                f"{url}: {reason}, {MAX_TRIES} times in a row; check the network and fetch it "
                f"again, which resumes from {part}"
            )
        if failures and not path.exists():
            time.sleep(PAUSE * 2 ** (failures - 1))


def download_rest(url: str, part: Path) -> bool:
    """Append the rest of `url` to `part`; return whether it is complete then."""
    version = part.with_name(f"{part.name}.version")
    size = part.stat().st_size if part.exists() and version.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers |= {"Range": f"bytes={size}-", "If-Range": version.read_text()}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        size = size if answer.status == 206 else 0
        tag = answer.headers["ETag"] or answer.headers["Last-Modified"]
        if tag is None or tag.startswith("W/"):
            version.unlink(missing_ok=True)  # a changed file would go unnoticed: do not resume
        else:
            version.write_text(tag)
        length = answer.headers["Content-Length"]
        total = None if length is None else size + int(length)
        megabytes = None if total is None else total // 1_000_000
        with (
            part.open("ab" if size else "wb") as file,
            progress(megabytes, part.stem, unit="MB") as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                size += len(block)
                bar.update(size // 1_000_000 - bar.n)
    return total is None or size == total


def check_sha256(files: list[Path], record: Path) -> None:
    """Compare files with their sha256 in `record`, and add those that it lacks.

    `record` has the lines of `sha256sum`. Raises InputError if a file differs from the first one
    fetched, and removes it.
    """
    known = {}
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            known[name] = digest
    for path in files:
        found = sha256(path)
        if known.setdefault(path.name, found) != found:
            path.unlink()
            raise InputError(
                f"{path.name}: has sha256 {found}, not the {known[path.name]} of {record}; if the "
                "publisher changed it, remove its line there, else fetch it again"
            )
    lines = [f"{digest}  {name}\n" for name, digest in known.items()]
    record.write_text("".join(lines), encoding="utf-8")
