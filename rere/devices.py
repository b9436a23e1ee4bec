"""What models run on: the device, the precision and the order of sums that it is given."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """A device of torch by its name; `auto` is the GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> str:
    """The precision of arithmetic on a device; `auto` is bfloat16 on a GPU, else float32."""
    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return dtype


@contextmanager
def deterministic_algorithms(is_wanted: bool) -> Iterator[None]:
    """Let a GPU use only algorithms that add up in a fixed order, if that is wanted.

    Raises RuntimeError within for an operation that has none.
    """
    if not is_wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
