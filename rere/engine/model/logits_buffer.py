"""Memory for a pass's logits that stays for those of the next.

The C library gives blocks as large back to the system as soon as they are free, and the next ones
come page by page, each cleared: with the logits of 1,700 tokens of SmolLM2, 334 MB, that took from
a fifth to as long again as to compute them. Devices with a caching allocator need none of this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from rere.engine.model.linear_layers import gradients, instead, is_plain

LARGE = 2**25
"""Bytes of a block from which on glibc never keeps it (mallopt(3), M_MMAP_THRESHOLD)."""

PART = 1024
"""Tokens of the vocabulary whose logits are computed at a time: MKL takes a quarter less for 130
rows of 576 than for all of 49,152 at once, and as long for thousands of rows."""


class Room:
    """A block of the host's memory, as large as its largest tensor, for one tensor at a time."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.tenant: StorageWeakRef | None = None

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A new tensor, not initialised: in the block unless that is still in use."""
        size = prod(shape) * dtype.itemsize
        if size <= LARGE or not (self.tenant is None or self.tenant.expired()):
            return torch.empty(shape, dtype=dtype)
        if size > len(self.memory):
            self.memory = torch.empty(size, dtype=torch.uint8)
        # A storage of its own, whose end tells that the block is free.
        tensor = torch.frombuffer(self.memory.numpy(), dtype=dtype, count=prod(shape)).view(shape)
        self.tenant = StorageWeakRef(tensor.untyped_storage())
        return tensor


ROOM = Room()


@contextmanager
def logits_in_room(model: PreTrainedModel) -> Iterator[None]:
    """For a pass, a model on the host has its logits in ROOM."""
    output = model.get_output_embeddings()
    on_host = is_plain(output) and output.weight.device.type == "cpu"
    if not on_host or torch.is_autocast_enabled("cpu"):
        yield
        return
    with instead({output: partial(logits, output)}):
        yield


def logits(output: nn.Linear, states: Tensor) -> Tensor:
    """What the layer gives of states (..., D), (..., V)."""
    return LinearInRoom.apply(states, output.weight, output.bias)


class LinearInRoom(torch.autograd.Function):
    """A linear layer that gives its result in ROOM."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        result = ROOM.take((*states.shape[:-1], len(weight)), states.dtype)
        flat, flat_result = states.flatten(0, -2), result.view(-1, len(weight))
        for part, columns in zip(weight.split(PART), flat_result.split(PART, dim=1), strict=True):
            torch.mm(flat, part.T, out=columns)
        return result if bias is None else result.add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, gradient)
