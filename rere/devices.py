"""The device that models run on, and the precision of their arithmetic."""

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """A device of torch by its name; `auto` is the GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def arithmetic(device: torch.device, dtype: str) -> torch.autocast:
    """A context in which models compute in `dtype`, float32 or bfloat16, from float32 weights.

    Under bfloat16 matrix products and attention are in bfloat16, all other sums in float32. Enter
    it separately for search and update: it caches the weights it casts, and those cast without
    gradient in a search would have none in the update.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
