"""Write files and folders under another name, then rename them."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rere.errors import InputError

SNAKEMAKE = ".snakemake_timestamp"
"""A file that Snakemake writes to a folder that is a rule's output."""

DISK_FULL = "the disk is full; free some space and run the command again"
FULL = {errno.ENOSPC, errno.EDQUOT}
FULL_TEXT = re.compile(
    "No space left on device|Disk quota exceeded|PytorchStreamWriter failed|inline_container"
)
"""How libraries word it that raise errors of their own; torch only says that it cannot write."""

CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EBADF}
"""What network file systems say if they cannot flush, folders above all."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path for a file or folder, which replaces `path` if the block succeeds.

    `replacing_all` of one path.
    """
    with replacing_all([path]) as (new,):
        yield new


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield paths for files or folders, which replace `paths` once the block has written them all.

    A block that fails leaves nothing. At the end the paths are renamed one by one: a kill between
    two renames leaves the first ones new and the others old, each whole. A folder takes two
    renames; after a kill between them it is missing, and the next call puts the old one back.
    Symbolic links are followed. Raises InputError if the disk is full, or if a folder among `paths`
    has files that the new one lacks, as the user may have named it by mistake.
    """
    paths = [Path(path).resolve() for path in paths]
    with naming_full_disk(paths[0]), ExitStack() as stack:
        new = [stack.enter_context(scratch_folder(path)) / path.name for path in paths]
        yield new
        for path, written in zip(paths, new, strict=True):
            flush(written)
            check_replaceable(path, written)
        for path, written in zip(paths, new, strict=True):
            move(written, path)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise InputError that names `path`, not a scratch file, if the block fills the disk."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise InputError(f"{path}: {DISK_FULL}") from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error, whatever a library made of it."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, removed at the end; those that killed processes left go first.

    Its name has the machine and the process that own it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{os.uname().nodename}."
    for entry in path.parent.iterdir():
        process = entry.name.removeprefix(prefix).partition(".")[0]
        if entry.name.startswith(prefix) and process.isdecimal() and not is_running(int(process)):
            old = entry / old_name(path)
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(entry, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{prefix}{os.getpid()}.", dir=path.parent) as folder:
        yield Path(folder)


def is_running(process: int) -> bool:
    """Whether there is a process with this number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_replaceable(path: Path, new: Path) -> None:
    """Raise InputError if `new` may not replace what is at `path`."""
    if path.exists() and path.is_dir() != new.is_dir():
        kind = "folder" if path.is_dir() else "file"
        raise InputError(f"{path}: is a {kind}; remove it or choose another output")
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.name != SNAKEMAKE and not Path(new, entry.name).exists():
            raise InputError(f"{entry}: would be lost; remove it or choose another output")


def move(new: Path, path: Path) -> None:
    """Move `new` to `path`. A folder there goes beside `new`, and comes back if that fails."""
    if not path.is_dir():
        new.replace(path)
        return
    old = new.with_name(old_name(path))
    try:
        path.rename(old)
        new.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise


def old_name(path: Path) -> str:
    return f"{path.name}.old"


def flush(path: Path) -> None:
    """Flush a file, or each file below a folder, to disk."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            sync(file)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; raise ValueError for NaN, which JSON lacks."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, stages: str) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises InputError, with the `stages` that write the file, if it is missing or holds anything
    else.
    """
    remedy = f"make it again: {stages}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {stages} writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a mapping; {remedy}")
    return value


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
