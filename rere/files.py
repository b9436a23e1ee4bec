"""Write files and folders atomically."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rere.errors import InputError

SNAKEMAKE = ".snakemake_timestamp"
"""A file that Snakemake writes to a folder that is a rule's output."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path for a file or folder, which replaces `path` atomically if the block succeeds.

    A block that fails leaves nothing. Symbolic links are followed. Raises InputError if a folder
    at `path` has files that the new one lacks, as the user may have named it by mistake.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new, old = Path(scratch, path.name), Path(scratch, f"{path.name}.old")
        yield new
        flush(new)
        if path.exists() and path.is_dir() != new.is_dir():
            kind = "folder" if path.is_dir() else "file"
            raise InputError(f"{path}: is a {kind}; remove it or choose another output")
        if path.is_dir():
            for entry in path.iterdir():
                if entry.name != SNAKEMAKE and not Path(new, entry.name).exists():
                    raise InputError(f"{entry}: would be lost; remove it or choose another output")
            path.rename(old)
        new.replace(path)


def flush(path: Path) -> None:
    """Flush a file, or each file below a folder, to disk."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            sync(file)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; raise ValueError for NaN, which JSON lacks."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
