"""Large files over HTTP: what has arrived stays, and is gone on from."""

import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rere.errors import InputError
from rere.files import sha256
from rere.progress import progress

TRIES = 5
"""In a row without a byte, the first included."""

PAUSE = 2.0
"""Seconds before the second try, doubled for each further one."""

TIMEOUT = 60
"""Seconds without an answer."""

BLOCK = 1 << 20


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, which exists once all of it is there.

    What has arrived is kept in `path` with `.part`, for the next try and the next call; the server
    is asked for the rest if its file is still the same, for all of it otherwise. Raises InputError
    if the server has no such file or cannot be reached.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while not path.exists():
        before = part.stat().st_size if part.exists() else 0
        try:
            if transfer(url, part):
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
        arrived = part.exists() and part.stat().st_size > before
        failures = 0 if arrived else failures + 1
        if failures == TRIES:
            raise InputError(
                f"{url}: {reason}, {TRIES} times in a row; check the network and fetch it again, "
                f"which goes on from {part}"
            )
        if failures and not path.exists():
            time.sleep(PAUSE * 2 ** (failures - 1))


def transfer(url: str, part: Path) -> bool:
    """Append the rest of `url` to `part`; whether that is all of it."""
    version = part.with_name(f"{part.name}.version")
    have = part.stat().st_size if part.exists() and version.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text()}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        have = have if answer.status == 206 else 0
        tag = answer.headers["ETag"] or answer.headers["Last-Modified"]
        if tag is None or tag.startswith("W/"):
            version.unlink(missing_ok=True)  # nothing to tell a changed file by: start again
        else:
            version.write_text(tag)
        length = answer.headers["Content-Length"]
        total = None if length is None else have + int(length)
        megabytes = None if total is None else total // 1_000_000
        with (
            part.open("ab" if have else "wb") as file,
            progress(megabytes, part.stem, unit="MB") as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                bar.update(have // 1_000_000 - bar.n)
    return total is None or have == total


def check(files: list[Path], record: Path) -> None:
    """Compare files with the sha256 that `record` has of them; it gets those it has not.

    `record` has the lines of `sha256sum`. Raises InputError where a file is another one than it
    was when it was first fetched; that file is removed.
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
                f"{path.name}: has sha256 {found}, not the {known[path.name]} of {record}; if its "
                "publisher changed it, take its line out of there, else fetch it again"
            )
    lines = [f"{digest}  {name}\n" for name, digest in known.items()]
    record.write_text("".join(lines), encoding="utf-8")
