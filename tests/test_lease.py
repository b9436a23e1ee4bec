"""GPUs that one job at a time has, on machines that a fake `nvidia-smi` describes."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_nvidia_smi import write_nvidia_smi
from test_architecture import IMPORTS
from test_cli import error_line, rere

from rere import lease
from rere.errors import InputError
from rere.lease import VISIBLE, lock, lock_file, lock_free, visible_gpus

SHOW = f"echo ${VISIBLE}"
SHOW_AND_STAY = f"{SHOW}; exec sleep 60"
# What torchrun does: it starts processes in another session, which inherit no files.
START_WORKER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True).wait()
"""
WORKER = """
import os, time
from rere.lease import join_lease
join_lease()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@contextmanager
def leasing(gpus: int, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a lease, and kill it at the end."""
    whole = [sys.executable, "-m", "rere", "lease", f"--gpus={gpus}", "--", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def devices(process: subprocess.Popen[str]) -> list[str]:
    """What a process with SHOW sees, once it has its lease."""
    return process.stdout.readline().strip().split(",")


def test_a_third_lease_waits_until_one_of_two_is_killed(machine_with):
    uuids = machine_with(2)
    show = ("sh", "-c", SHOW_AND_STAY)
    with leasing(1, *show) as first, leasing(1, *show) as second:
        held = [devices(first), devices(second)]
        assert sorted(held) == sorted([uuid] for uuid in uuids)
        with leasing(1, *show) as third:
            said = third.stderr.readline()
            assert said == "rere lease: waits for 1 of 2 GPUs, of which 0 are free\n"
            os.kill(first.pid, signal.SIGKILL)
            assert devices(third) == held[0]
            third.kill()
            assert third.stderr.read() == ""


def test_a_lease_of_two_holds_none_while_it_waits(machine_with):
    uuids = machine_with(2)
    show = ("sh", "-c", SHOW_AND_STAY)
    with leasing(1, *show) as first:
        held = devices(first)
        with leasing(2, *show) as both:
            said = both.stderr.readline()
            assert said == "rere lease: waits for 2 of 2 GPUs, of which 1 are free\n"
            with leasing(1, *show) as other:
                assert sorted([*held, *devices(other)]) == sorted(uuids)
            first.kill()
            assert devices(both) == uuids


def test_sigterm_ends_a_lease_that_waits(machine_with):
    machine_with(1)
    with leasing(1, "sh", "-c", SHOW_AND_STAY) as first:
        devices(first)
        with leasing(1, "true") as second:
            second.stderr.readline()
            second.terminate()
            assert second.stderr.read() == "rere lease: stopped by SIGTERM\n"
            assert second.wait() == 128 + signal.SIGTERM


def test_a_worker_keeps_the_lease_of_a_job_that_was_killed(machine_with):
    machine_with(1)
    with leasing(1, sys.executable, "-c", START_WORKER, WORKER) as job:
        worker = int(job.stdout.readline())
        job.kill()
        job.wait()
        with leasing(1, "sh", "-c", SHOW) as second:
            assert "waits" in second.stderr.readline()
            os.kill(worker, signal.SIGKILL)
            assert second.wait() == 0


def test_more_gpus_than_there_are_are_refused(machine_with, monkeypatch):
    machine_with(2)
    line = error_line("lease", "--gpus=3", "--", "true", status=1)
    assert line == "rere lease: --gpus: 3 are wanted, this machine has 2; ask for fewer"
    monkeypatch.setenv(VISIBLE, "1")
    line = error_line("lease", "--gpus=2", "--", "true", status=1)
    assert line == f"rere lease: --gpus: 2 are wanted, {VISIBLE} leaves 1; ask for fewer"


def test_a_lease_is_of_the_gpus_that_are_visible(machine_with, monkeypatch):
    uuids = machine_with(3)
    monkeypatch.setenv(VISIBLE, "2,0")
    assert rere("lease", "--gpus=1", "--", "sh", "-c", SHOW).stdout == f"{uuids[2]}\n"
    assert rere("lease", "--gpus=2", "--", "sh", "-c", SHOW).stdout == f"{uuids[2]},{uuids[0]}\n"
    assert rere("lease", "--gpus=0", "--", "sh", "-c", SHOW).stdout == "\n"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ["GPU-ab", "GPU-ac", "GPU-b"]),
        ("", []),
        ("-1", []),
        ("1, 0", ["GPU-ac", "GPU-ab"]),
        ("1,1", ["GPU-ac"]),
        ("2,3,0", ["GPU-b"]),
        ("GPU-b,GPU-ab", ["GPU-b", "GPU-ab"]),
        ("GPU-b,GPU-a", ["GPU-b"]),
        ("MIG-x", ["MIG-x"]),
    ],
)
def test_visible_gpus_are_read_as_cuda_does(given, found):
    assert visible_gpus(["GPU-ab", "GPU-ac", "GPU-b"], given) == found


def test_without_gpus_a_command_runs_as_it_is(tmp_path, monkeypatch):
    program = ("lease", "--gpus=2", "--", sys.executable, "-c", f"import os; {WITHOUT_LEASE}")
    monkeypatch.setenv(VISIBLE, "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rere(*program).stdout == "0 None\n"
    write_nvidia_smi(tmp_path, "echo NVIDIA-SMI has failed; exit 9")
    done = rere(*program)
    assert done.stdout == "0 None\n"
    expected = "rere lease: no GPU is leased, since nvidia-smi fails: NVIDIA-SMI has failed\n"
    assert done.stderr == expected


def test_hidden_gpus_are_not_leased(machine_with, monkeypatch):
    machine_with(1)
    monkeypatch.setenv(VISIBLE, "")
    assert rere("lease", "--", sys.executable, "-c", f"import os; {WITHOUT_LEASE}").stdout == (
        " None\n"
    )


WITHOUT_LEASE = f"print(os.environ['{VISIBLE}'], os.environ.get('{lease.LEASED}'))"


def test_a_command_keeps_its_own_options_and_status(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = rere("lease", "--", sys.executable, "-c", code, "--help", "--", "--gpus=1")
    assert (done.returncode, done.stdout) == (7, "['--help', '--', '--gpus=1']\n")
    line = error_line("lease", "--", "nosuch", status=1)
    assert line == "rere lease: nosuch: No such file or directory"
    assert error_line("lease", "--", status=2) == "rere lease: missing --command"


def test_a_file_system_without_locks_is_named(machine_with, monkeypatch):
    def fail(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InputError, match=r"^/tmp/rere-gpus\.lock: cannot be locked: No locks"):
        lock_free(machine_with(1), 1)


def test_every_user_may_lock_the_files(tmp_path):
    mask = os.umask(0o077)
    try:
        os.close(lock(tmp_path / "file", fcntl.LOCK_EX))
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666


def test_a_file_that_is_deleted_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    path, flock = tmp_path / "file", fcntl.flock

    def clean(descriptor, how):
        if not (tmp_path / "cleaned").exists():
            path.unlink()
            (tmp_path / "cleaned").touch()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", clean)
    descriptor = lock(path, fcntl.LOCK_EX)
    assert os.path.samestat(path.stat(), os.fstat(descriptor))
    os.close(descriptor)


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="link: cannot be locked"):
        lock(tmp_path / "link", fcntl.LOCK_EX)


def test_the_name_of_a_part_of_a_gpu_is_a_file_name():
    assert lock_file("MIG-GPU-1/2/0") == Path("/tmp/rere-MIG-GPU-1_2_0.lock")


def test_a_lease_imports_nothing_heavy():
    assert {name.partition(".")[0] for name in IMPORTS["rere.lease"]} - sys.stdlib_module_names == {
        "rere"
    }
    assert {name for name in IMPORTS["rere.lease"] if name.startswith("rere")} == {"rere.errors"}
