"""GPUs of this machine for one job, whoever starts it, until the job ends.

A lease is a lock (flock) on a file for each GPU. The kernel releases it when the last process that
holds it ends, even by SIGKILL.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rere.errors import InputError

FOLDER = Path("/tmp")
"""The same for all users and jobs of a machine, whatever TMPDIR is."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
LEASED = "RERE_LEASE"
"""The environment variable with the files that a job has locked."""

POLL = 0.5
"""Seconds between two looks for free GPUs."""


def lease(num_gpus: int, command: list[str]) -> None:
    """Become `command`, which sees `num_gpus` GPUs that no other lease has.

    Waits until as many are free at once. On a machine without GPUs, or where CUDA_VISIBLE_DEVICES
    hides them all, the command runs as it is. Raises InputError if there are fewer GPUs, a file
    cannot be locked or the command cannot be started.
    """
    machine = list_gpus()
    gpus = visible_gpus(machine, os.environ.get(VISIBLE))
    if gpus:
        if num_gpus > len(gpus):
            left = f"{VISIBLE} leaves" if len(gpus) < len(machine) else "this machine has"
            raise InputError(f"--gpus: {num_gpus} are wanted, {left} {len(gpus)}; ask for fewer")
        leased = wait_for(gpus, num_gpus)
        os.environ[VISIBLE] = ",".join(leased)
        os.environ[LEASED] = ":".join(str(lock_file(gpu)) for gpu in leased)
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and would pass that on
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise InputError(f"{command[0]}: {error.strerror}") from error


def join_lease() -> None:
    """Hold the lease of the job that this process belongs to as long as it runs.

    `torchrun` starts processes that do not inherit locks and may outlive it.
    """
    for path in filter(None, os.environ.get(LEASED, "").split(":")):
        lock(Path(path), fcntl.LOCK_SH)


def list_gpus() -> list[str]:
    """The UUIDs of the machine's GPUs, in the order of their numbers.

    Empty if there is no `nvidia-smi`, or, which is said in one line, if it fails.
    """
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True)
    except OSError:
        return []
    if done.returncode:
        reason = " ".join(f"{done.stdout} {done.stderr}".split())
        say(f"no GPU is leased, since nvidia-smi fails: {reason}")
        return []
    return done.stdout.split()


def visible_gpus(machine: list[str], given: str | None) -> list[str]:
    """Those of the machine's GPUs that CUDA_VISIBLE_DEVICES names; None: all.

    A name is a number, the begin of a UUID, or that of a part of a GPU (MIG). As CUDA does, it
    ignores the first name that fits none and all after it.
    """
    if given is None:
        return machine
    found = []
    for name in map(str.strip, given.split(",")):
        if name.startswith("MIG-"):
            fitting = [name]
        elif name.isdecimal():
            fitting = machine[int(name) :][:1]
        else:
            fitting = [gpu for gpu in machine if name and gpu.startswith(name)]
        if len(fitting) != 1:
            break
        found += fitting
    return list(dict.fromkeys(found))


def wait_for(gpus: list[str], num_gpus: int) -> list[str]:
    """Lock as many of the GPUs once they are free at the same time; return them."""
    leased, free = lock_free(gpus, num_gpus)
    if len(leased) < num_gpus:
        say(f"waits for {num_gpus} of {len(gpus)} GPUs, of which {free} are free")
    while len(leased) < num_gpus:
        time.sleep(POLL)
        leased, _ = lock_free(gpus, num_gpus)
    return leased


def lock_free(gpus: list[str], num_gpus: int) -> tuple[list[str], int]:
    """Lock `num_gpus` that are free, or none if fewer are; return them, and how many are free."""
    gate = lock(FOLDER / "rere-gpus.lock", fcntl.LOCK_EX)  # one process looks at a time
    locks: dict[str, int] = {}
    for gpu in gpus:
        if len(locks) < num_gpus:
            with suppress(BlockingIOError):
                locks[gpu] = lock(lock_file(gpu), fcntl.LOCK_EX | fcntl.LOCK_NB)
    is_enough = len(locks) == num_gpus
    for descriptor in locks.values():
        if is_enough:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # for `join_lease`
            os.utime(descriptor)  # programs that clean /tmp delete old files
            os.set_inheritable(descriptor, True)
        else:
            os.close(descriptor)
    os.close(gate)
    return list(locks) if is_enough else [], len(locks)


def lock(path: Path, how: int) -> int:
    """The descriptor of a file that is locked, and made before if it is missing.

    Raises BlockingIOError if another process has the lock and `how` forbids to wait, and
    InputError if the file cannot be opened or locked.
    """
    while True:
        try:
            descriptor = open_or_make(path)
            try:
                fcntl.flock(descriptor, how)
                is_current = is_at(path, descriptor)
            except OSError:
                os.close(descriptor)
                raise
        except BlockingIOError:
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be locked: {error.strerror}") from error
        if is_current:
            return descriptor
        os.close(descriptor)  # deleted before it was locked: others would lock a new one


def open_or_make(path: Path) -> int:
    """The descriptor of a file that every user may open.

    In /tmp the kernel may refuse O_CREAT for a file of another user (fs.protected_regular).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        mask = os.umask(0)
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(path, flags)
        finally:
            os.umask(mask)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def lock_file(gpu: str) -> Path:
    """The file whose lock leases a GPU."""
    return FOLDER / f"rere-{gpu.replace('/', '_')}.lock"


def say(line: str) -> None:
    print(f"rere lease: {line}", file=sys.stderr, flush=True)
