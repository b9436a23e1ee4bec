"""The device that models run on."""

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """A device of torch by its name; `auto` is the GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
