"""
Where jobs find Python and `rere`, and how they are told to stop.
"""

import atexit
import os
import re
import signal
import subprocess
import sys

import psutil
from snakemake.scheduling.job_scheduler import JobScheduler

from rere.errors import printable


def finds_this_rere():
    """Whether jobs import this checkout's `rere` without help, as after `pip install -e .`."""
    command = [sys.executable, "-P", "-c", "import rere; print(*rere.__path__)"]
    found = subprocess.run(command, cwd="/", capture_output=True, text=True).stdout.strip()
    return os.path.realpath(found) == os.path.realpath(f"{workflow.basedir}/rere")


# Jobs find this Python and this `rere`, with or without an activated environment; a conda
# environment puts its own Python first. They import no module of the working folder unless they
# ask for it. Waiting threads sleep: if two jobs share the processors, spinning threads make the
# other job a hundred times slower. torch asks the kernel for huge pages, so that a training pass of
# gigabytes has thousands of page faults, not hundreds of thousands. On a GPU, whose passes differ in
# size, torch's memory grows in segments that can be extended.
for place in (workflow.basedir, os.path.dirname(sys.executable)):
    if re.search("[{}:]", place):
        sys.exit(printable(f"{place}: a path with braces or colons cannot be used; rename it"))
modules = [] if finds_this_rere() else [workflow.basedir]
modules += filter(None, os.environ.get("PYTHONPATH", "").split(":"))
os.environ.update(
    PATH=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}",
    PYTHONPATH=":".join(modules),
    PYTHONSAFEPATH="1",
    OMP_WAIT_POLICY="passive",
    THP_MEM_ALLOC_ENABLE="1",
)
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def stop_jobs():
    """Tell running stages to stop; training writes a checkpoint first."""
    for process in psutil.Process().children(recursive=True):
        try:
            # Not torchrun, which ends its processes 30 seconds later: they have `-u` first.
            words = [word for word in process.cmdline()[1:4] if word != "-u"]
            if words[:2] == ["-m", "rere"]:
                process.terminate()
        except psutil.Error:
            pass  # it has ended


# Schedulers send SIGTERM to all processes of a job. The stage alone decides whether that ends it: if
# its last step is running it finishes, and Snakemake must not count the job as failed after that.
if workflow.remote_exec:
    JobScheduler.exit_gracefully = lambda *_: None
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


onstart:
    # On SIGTERM, Snakemake starts no further jobs, but would wait for those that run.
    finish = signal.getsignal(signal.SIGTERM)
    signal.signal(
        signal.SIGTERM, lambda *signal_and_frame: (stop_jobs(), finish(*signal_and_frame))
    )
