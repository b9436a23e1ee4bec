"""A machine with GPUs, as far as `nvidia-smi` says."""

from pathlib import Path
from uuid import uuid4


def write_nvidia_smi(folder: Path, script: str) -> None:
    """Write a program that does what the script says."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def write_gpus(folder: Path, count: int) -> list[str]:
    """Write one that lists new GPUs; return their UUIDs."""
    uuids = [f"GPU-{uuid4()}" for _ in range(count)]
    listed = "\n".join(f"GPU {n}: NVIDIA H200 (UUID: {uuid})" for n, uuid in enumerate(uuids))
    plain = "\n".join(uuids)
    write_nvidia_smi(folder, f'[ "$1" = -L ] && echo "{listed}" || echo "{plain}"')
    return uuids
