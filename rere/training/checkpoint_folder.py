"""The folder of a run's checkpoints: locked, and on another disk if the user wants so."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from rere.errors import InputError

log = logging.getLogger(__name__)

LOCK = ".lock"
DISK = "RERE_CHECKPOINTS"
"""Environment variable: a folder on another disk for the checkpoints of all runs."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold a lock on it; at the end, remove it if it has nothing else.

    Jobs of a killed Snakemake keep running, and must not share the folder with their successors:
    raises InputError if another process holds the lock.
    """
    make_folder(folder)
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"{folder}: another process is training here; wait for it or stop it"
        ) from error
    except OSError:
        log.warning("%s: cannot be locked; start no second process here", folder)
    try:
        yield
    finally:
        file.close()  # first, since network file systems keep the names of open files
        with suppress(OSError):
            remove_if_unused(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, or a link to a new one on the disk that the variable DISK names.

    The variable holds for runs that have no checkpoints yet. A link that is there is followed. Its
    folder is made again if that disk was cleared. Raises InputError if DISK names no folder.
    """
    disk = os.environ.get(DISK)
    if disk and not folder.exists():
        if not Path(disk).is_dir():
            raise InputError(f"{DISK}: there is no folder {disk}; make it or unset the variable")
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.unlink(missing_ok=True)
        name = "-".join(folder.parent.resolve().parts[1:])[-100:]
        folder.symlink_to(mkdtemp(prefix=f"{name}-", dir=Path(disk).resolve()))
    folder.resolve().mkdir(parents=True, exist_ok=True)


def remove_if_unused(folder: Path) -> None:
    """Remove a folder with only a lock, the link to it, and the run's folder if it is empty."""
    if [entry.name for entry in folder.iterdir()] != [LOCK]:
        return
    (folder / LOCK).unlink()
    folder.resolve().rmdir()
    if folder.is_symlink():
        folder.unlink()
    folder.parent.rmdir()
