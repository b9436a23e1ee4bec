"""
What jobs need of a machine, and how they start `rere` with it.

A profile or the command line may say otherwise: `--set-resources rl:gpu=4 rl:mem_mb=64000`. Nothing
here makes a finished job run again: Snakemake compares no resources, and no params of functions with
an argument `resources`.
"""

import json
import math
import os
import shutil
import socket
from functools import lru_cache

HAS_GPUS = shutil.which("nvidia-smi") is not None

PLAN = "results/plan.json"
UNPLANNED_MEMORY, UNPLANNED_DISK = 32_000, 64_000  # MB
# Of the host: on a GPU the weights are loaded in float32, with a copy. A plan counts tensors alone.
PROCESS_ON_CPU, PROCESS_ON_GPU = 0.5e9, 6e9  # bytes
SHARE_OF_PLAN = 1.3
RUNTIME_SLACK, SPARE_MINUTES = 3, 30  # GPUs differ, and their speed is not measured


def one_process(wildcards, resources):
    """A job as one process, with GPUs that no other job has."""
    return with_lease(resources.get("gpu"), ["python", "-m", "rere"])


def process_per_gpu(wildcards, resources):
    """The same as a process for each of several GPUs; without GPUs these use the CPU."""
    if resources.gpu <= 1:
        return one_process(wildcards, resources)
    nodes = resources.get("nodes", 1)
    if nodes > 1:
        return on_nodes(nodes, resources.gpu // nodes)
    torchrun = ["torchrun", "--standalone", f"--nproc-per-node={resources.gpu}"]
    return with_lease(resources.gpu, [*torchrun, "-m", "rere"])


def on_nodes(nodes, gpus):
    """The same on several nodes of a Slurm job, of which this machine is the first."""
    job = os.environ.get("SLURM_JOB_ID", "0")
    srun = ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", f"--gpus-per-node={gpus}"]
    torchrun = ["torchrun", f"--nnodes={nodes}", f"--nproc-per-node={gpus}"]
    port = 20000 + int(job) % 10000  # jobs may share a node
    meet = ["--rdzv-backend=c10d", f"--rdzv-id={job}"]
    meet += [f"--rdzv-endpoint={socket.gethostname()}:{port}"]
    return [*srun, *with_lease(gpus, [*torchrun, *meet, "-m", "rere"])]


def with_lease(gpus, command):
    """The command with a lease of GPUs before it, if the machine has any."""
    if not HAS_GPUS or gpus is None:
        return command
    return ["python", "-m", "rere", "lease", f"--gpus={gpus}", "--", *command]


def growing(amount):
    """An amount of a resource that grows with each attempt to run a job."""

    def at_attempt(wildcards, attempt):
        return amount * attempt

    return at_attempt


def planned_runtime(minutes):
    """Minutes of a job that trains or searches, by its plan if there is one, else `minutes`."""

    def at_attempt(wildcards, attempt, rulename):
        row = find_plan(wildcards)
        if row is None:
            return minutes * attempt
        gpus = [each["seconds"] for each in row["gpus"].values()]  # which one is not known
        planned = gpus if runs_on_gpus(rulename) else [row["cpu"]["seconds"]]
        fitting = [RUNTIME_SLACK * each / 60 for each in planned if each is not None]
        return math.ceil(SPARE_MINUTES + max(fitting) if fitting else minutes) * attempt

    return at_attempt


def runs_on_gpus(rulename):
    """Whether the jobs of a rule have GPUs; on a cluster, whether they ask for some."""
    gpus = workflow.get_rule(rulename).resources["gpu"].value
    return bool(gpus) and (HAS_GPUS or not workflow.local_exec)


def planned_memory(wildcards, attempt, rulename):
    """MB of host memory of a job that trains or searches, by its plan if there is one."""
    row = find_plan(wildcards)
    if row is None:
        return UNPLANNED_MEMORY * attempt
    stated = workflow.get_rule(rulename).resources
    gpus = stated["gpu"].value
    if runs_on_gpus(rulename):
        needed = PROCESS_ON_GPU + 2 * row["weights"]
    else:
        needed = PROCESS_ON_CPU + SHARE_OF_PLAN * row["cpu"]["peak"]
    nodes = stated["nodes"].value if "nodes" in stated else 1  # Slurm asks for memory of each
    return math.ceil(max(1, gpus // nodes) * needed / 1e6) * attempt


def planned_disk(wildcards):
    """MB of a training run's checkpoints, by its plan if there is one."""
    row = find_plan(wildcards)
    return math.ceil(MAX_CHECKPOINTS * row["checkpoint"] / 1e6) + 1000 if row else UNPLANNED_DISK


def find_plan(wildcards):
    """The row of a job in the file that `snakemake plan` writes, or None."""
    if not os.path.exists(PLAN):
        return None
    at = wildcards
    key = at.dataset, at.backbone, at.method, at.get("evaluation", None)
    return read_plan(os.stat(PLAN).st_mtime_ns).get(key)


@lru_cache(maxsize=1)
def read_plan(changed):
    """The rows of PLAN by job, as it was when it last changed; training has no evaluation."""
    with open(PLAN) as file:
        rows = json.load(file)["jobs"]
    return {
        (
            *(row[name] for name in ("dataset", "backbone", "method")),
            row["evaluation"] if row["stage"] in ("recommend", "decode") else None,
        ): row
        for row in rows
    }
