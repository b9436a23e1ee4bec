"""Several processes of one stage, started by `torchrun`: what each computes, and what they share.

A process is known by its rank. All ranks read the same rows in the same order, and each computes
its share of them. What a row draws at random depends on seed, step and row, not on the rank.
Results are gathered and gradients added up, so that every rank takes the same decisions and has the
same weights. The first rank alone writes files and looks at the clock.

transformers and accelerate must not wrap the model, as one all-reduce per backward pass would need
equally many passes on all ranks. `join` thus removes the variables by which they would know of the
others.
"""

import atexit
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from rere.devices import choose_device
from rere.errors import InputError, LostProcess, is_out_of_memory

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What `torchrun` tells a process of its place among the others."""

TIMEOUT = timedelta(hours=1)
"""How long a rank waits for the others, which may write a checkpoint or time searches meanwhile."""

BUCKET = 2**25
"""Numbers that are added up at a time, 128 MB in float32."""


class Ranks(NamedTuple):
    """The place of this process among those of the stage; every method is quick with only one.

    All ranks must call a method alike, but for `rows` and `deal`.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This rank's share of a sequence: every `size`-th, so lengths are shared evenly."""
        return slice(self.rank, None, self.size)

    def deal(self, batches: Iterable[T]) -> Iterator[T]:
        """This rank's share of batches, each of which stays as one process forms it."""
        return itertools.islice(batches, self.rank, None, self.size)

    def gather(self, mine: Tensor, total: int) -> Tensor:
        """All `total` rows of a tensor of which each rank has its `rows`, in order.

        A rank without rows gives any one row, which is left out.
        """
        if self.size == 1:
            return mine
        share = -(-total // self.size)
        sent = mine.new_zeros(share, *mine.shape[1:])
        sent[: len(mine)] = mine
        is_bool = sent.dtype == torch.bool  # not known to all backends
        sent = sent.byte() if is_bool else sent
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with naming_lost_process():
            distributed.all_gather(parts, sent)
        rows = torch.stack(parts, dim=1).flatten(0, 1)[:total]
        return rows.bool() if is_bool else rows

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' values, which may be overwritten."""
        if self.size == 1:
            return values
        sent = values.to(communication_device()) if values.device.type == "cpu" else values
        with naming_lost_process():
            distributed.all_reduce(sent)
        return sent.to(values.device)

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Add up the gradients of all ranks, once, however many passes each has taken.

        A weight without gradient on every rank stays without. Those that are split over the ranks
        (DTensor) have had theirs added up.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        if not trained:
            return
        device = trained[0].device
        has_gradient = torch.tensor([each.grad is not None for each in trained], device=device)
        counts = self.sum(has_gradient.int()).tolist()
        trained = [each for each, count in zip(trained, counts, strict=True) if count]
        for bucket in buckets(trained):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.sum(torch.cat([each.flatten() for each in gradients]))
            parts = flat.split([each.numel() for each in gradients])
            for weight, gradient, part in zip(bucket, gradients, parts, strict=True):
                weight.grad = gradient.copy_(part.view_as(gradient))

    def first(self, *values: float) -> list[float]:
        """The first rank's values, on all ranks."""
        return self.exchange(values, partial(distributed.broadcast, src=0))

    def largest(self, *values: float) -> list[float]:
        """The largest of all ranks' values, each for itself."""
        return self.exchange(values, partial(distributed.all_reduce, op=distributed.ReduceOp.MAX))

    def exchange(
        self, values: Sequence[float], collective: Callable[[Tensor], object]
    ) -> list[float]:
        """What a collective operation makes of the ranks' numbers."""
        if self.size == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=communication_device())
        with naming_lost_process():
            collective(sent)
            received: list[float] = sent.tolist()
        return received

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.largest(0)

    @contextmanager
    def random_numbers(self, seed: int) -> Iterator[None]:
        """Let other ranks than the first draw numbers of their own, such as for dropout.

        The first rank's are those of a run with one process.
        """
        with torch.random.fork_rng(enabled=not self.is_first):
            if not self.is_first:
                torch.manual_seed(seed + self.rank)
            yield


ALONE = Ranks()


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Raise LostProcess where the other processes cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LostProcess(
            "another process of this run has ended; the same command resumes from its last "
            "checkpoint"
        ) from error


def buckets(parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    """Split parameters into lists of up to BUCKET numbers of one dtype, at least one each."""
    bucket: list[Parameter] = []
    numbers = 0
    for each in parameters:
        if bucket and (numbers + each.numel() > BUCKET or each.dtype != bucket[0].dtype):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(each)
        numbers += each.numel()
    if bucket:
        yield bucket


def communication_device() -> torch.device:
    """Where tensors must be to be sent."""
    return choose_device() if distributed.get_backend() == "nccl" else torch.device("cpu")


@cache
def join() -> Ranks:
    """Join the processes that `torchrun` started, before CUDA is; without it there is one.

    Of several GPUs each process sees its own alone. Raises InputError where a machine has more
    processes than GPUs.
    """
    rank, size, local_rank, _ = (int(os.environ.get(name, "0")) for name in VARIABLES)
    if size <= 1:
        forget_launcher()
        return ALONE
    uses_gpu = torch.cuda.device_count() > 0  # does not start CUDA
    if uses_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(local_rank, visible_gpus())
    distributed.init_process_group("nccl" if uses_gpu else "gloo", timeout=TIMEOUT)
    forget_launcher()
    # It would warn that DDP does not work so.
    logging.getLogger("transformers.training_args").setLevel(logging.ERROR)
    return Ranks(rank, size)


def forget_launcher() -> None:
    """Remove the variables from which libraries conclude that there are several processes."""
    for name in VARIABLES:
        os.environ.pop(name, None)


def visible_gpus() -> list[str]:
    """The names of the GPUs that CUDA_VISIBLE_DEVICES leaves to the stage."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(each) for each in range(torch.cuda.device_count())]


def own_gpu(local_rank: int, gpus: list[str]) -> str:
    """The GPU of the process with this rank on its machine."""
    if local_rank >= len(gpus):
        raise InputError(
            f"torchrun started more processes than the machine's {len(gpus)} GPUs; lower "
            "--nproc-per-node"
        )
    return gpus[local_rank]


def leave(ranks: Ranks) -> None:
    """End the communication when the process does, after the stage has succeeded on all ranks."""
    if ranks.size > 1:
        ranks.wait()
        atexit.unregister(distributed.destroy_process_group)
        atexit.register(distributed.destroy_process_group)
