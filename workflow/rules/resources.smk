"""
How jobs start `rere`, with the resources that a profile or `--set-resources` gives them.

Both functions have an argument `resources`: Snakemake does not compare what such functions return,
so that other resources run no job again.
"""

import shutil

HAS_GPUS = shutil.which("nvidia-smi") is not None


def one_process(wildcards, resources):
    """A job as one process, with GPUs that no other job has."""
    return with_lease(resources, ["python", "-m", "rere"])


def process_per_gpu(wildcards, resources):
    """The same as a process for each of several GPUs; without GPUs these use the CPU."""
    if resources.gpu <= 1:
        return one_process(wildcards, resources)
    torchrun = ["torchrun", "--standalone", f"--nproc-per-node={resources.gpu}"]
    return with_lease(resources, [*torchrun, "-m", "rere"])


def with_lease(resources, command):
    """The command with a lease of GPUs before it, if the machine and the job have any."""
    if not HAS_GPUS or "gpu" not in resources.keys():
        return command
    return ["python", "-m", "rere", "lease", f"--gpus={resources.gpu}", "--", *command]
