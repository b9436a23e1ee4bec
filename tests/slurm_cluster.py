"""A Slurm of two nodes on this machine, and profiles/slurm with the values of a site."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snakemake_runs import ROOT

PROFILE = ROOT / "profiles" / "slurm" / "profile.yaml"


def profile_text(**site: str | int) -> str:
    """The profile with other values of some of its `__variables__`."""
    text = PROFILE.read_text()
    for name, value in site.items():
        text, count = re.subn(rf"^  {name}: \w+", f"  {name}: {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "squeue", "setpriv")

# Each node has one GPU that is an empty file, and claims more processors and memory than it has.
# Signals reach all descendants of a step, as with cgroups. There is no accounting.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {node}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {node}
PartitionName=cpu Nodes=node1,node2 Default=YES MaxTime=60
PartitionName=gpu Nodes=node1,node2 MaxTime=60
"""
NODE = "CPUs=2 RealMemory=100000 Gres=gpu:1 State=UNKNOWN"

# The plugin takes SLURM_CONF from the environment of a job's srun: real clusters have their file in
# /etc/slurm or serve it.
SRUN = '#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n'


def find_missing() -> list[str]:
    """What this machine lacks to run such a Slurm."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking + ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run Slurm for the body of a `with` statement; the variables with which its commands find it.

    Keys, logs and state are below `folder`, whose path is short, since sockets are there. Ports are
    on the loopback interface. At the end all jobs and daemons are gone.
    """
    write_config(folder)
    variables = {
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }
    environment = os.environ | variables
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"node{i}"] for i in (1, 2))]
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context((folder / f"{command[0]}.out").open("a"))
            dying_with_pytest = ["setpriv", "--pdeathsig", "TERM", *command]
            process = subprocess.Popen(dying_with_pytest, env=environment, stdout=log, stderr=log)
            stack.callback(stop, process)
            if command is munged:
                wait_until((folder / "munge.socket").exists, "munged")
        wait_until(lambda: count_idle(environment) == 2, "Slurm")
        stack.callback(cancel_all, environment)
        yield variables


def write_config(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    config = CONFIG.format(folder=folder, host=host, ports=free_ports(3), node=NODE)
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text(
        "".join(f"NodeName=node{i} Name=gpu File={folder}/gpu{i}\n" for i in (1, 2))
    )
    for i in (1, 2):
        (folder / f"gpu{i}").touch()
        (folder / f"node{i}").mkdir()
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text(SRUN.format(folder=folder, srun=shutil.which("srun")))
    (folder / "bin" / "srun").chmod(0o755)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def count_idle(environment: dict[str, str]) -> int:
    """The number of nodes that wait for jobs."""
    command = ["sinfo", "--noheader", "--partition=cpu", "--Node", "--format=%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def cancel_all(environment: dict[str, str]) -> None:
    """End all jobs; leave none behind that no daemon would end."""
    subprocess.run(["scancel", "--user=root"], env=environment)
    queue = ["squeue", "--noheader"]
    wait_until(lambda: not subprocess.check_output(queue, env=environment), "the last job")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} seconds for {what}"
        time.sleep(0.2)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
