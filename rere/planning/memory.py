"""The memory of a training run, computed without allocating it.

The run's own forward pass, backward pass and optimiser run on torch's fake tensors: they have
shapes, dtypes and storages, but no values. Whatever changes memory (LoRA, precision, checkpointed
layers, the architecture) thus counts as it does in the run.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Adafactor, PreTrainedConfig

from rere.backbones import count_parameters, halve_linear_layers, shape_of
from rere.config.rl import RlOptions
from rere.config.training import Training
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import token_log_probs, token_scores
from rere.engine.model.attention_blocks import BLOCK_COST
from rere.engine.model.layers import decoder_layers
from rere.engine.model.precision import arithmetic
from rere.engine.model.softmax import LOGITS_IN_CACHE
from rere.training.models import Model, prepare
from rere.training.reference import Reference


class TrainingMemory(NamedTuple):
    """Bytes at the moment of a training run that needs most."""

    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int  # all that a forward and backward pass holds, logits among it
    gathered_in_pass: int = 0  # of the other ranks' weights, if the model is sharded
    gathered_in_search: int = 0

    @property
    def held_in_search(self) -> int:
        """What a search leaves free: all but activations, though gradients are not there yet."""
        return sum(self) - self.activations - self.gathered_in_pass


class HeldMemory(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made within and still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor.untyped_storage())
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; views share theirs."""
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.release, size)

    def release(self, size: int) -> None:
        self.now -= size


def training_memory(
    config: PreTrainedConfig,
    options: Training,
    packed: PackedBatch,
    has_reference: bool,
    is_synced: bool,
    device: torch.device,
) -> TrainingMemory:
    """The memory of training a model of `config` in passes such as `packed`.

    `options` have a dtype other than `auto`. `is_synced` says that the reference moves.
    """
    score = token_scores if isinstance(options, RlOptions) else token_log_probs
    with torch.device("meta"):
        model = prepare(shape_of(config), options).eval()
        if isinstance(model, PeftModel) and options.dtype == "bfloat16":
            halve_linear_layers(model.get_base_model())
        reference = Reference(model, is_synced, options.dtype) if has_reference else None
    with without_values(device) as mode, HeldMemory() as memory:
        take_memory(model)
        weights = memory.now
        if reference is not None and reference.model is not model:
            take_memory(reference.model)
        before_optimizer = memory.now
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.empty_like(weight)
        gradients = memory.now - before_optimizer
        optimizer = make_optimizer(trained, options)
        optimizer.step()
        lasting = memory.now - gradients
        # Gradients stay, as those of a step's earlier passes. With one pass a step they come as
        # activations go, but allocators seldom fit them into the same place.
        fake = packed.map(mode.from_tensor)
        with arithmetic(torch.device("cpu"), options.dtype):
            if reference is not None:
                reference.log_probs(fake)
            scores = score(model, fake)
        log_prob = scores if isinstance(scores, Tensor) else scores.log_prob
        log_prob.sum().backward()
        optimizer.step()
        return TrainingMemory(
            weights=weights,
            reference=before_optimizer - weights,
            gradients=gradients,
            optimizer=lasting - before_optimizer,
            activations=max(0, memory.peak - lasting - gradients),
        )


def sharded_memory(
    memory: TrainingMemory, config: PreTrainedConfig, options: Training, processes: int
) -> TrainingMemory:
    """The same for each of several processes that split the model (`rere.training.sharding`).

    LoRA adapters stay whole. A pass holds two layers, the second ahead of its use, and what lies
    beside the layers, above all embeddings; and of those that are trained one layer's gradient.
    """
    model = shape_of(config)
    sizes = [*map(count_parameters, decoder_layers(model))]
    total = count_parameters(model)
    byte = memory.weights / total  # of a weight
    beside, layer = total - sum(sizes), max(sizes)
    is_lora = options.lora_rank is not None
    gradients = 0 if is_lora else beside + layer

    def part(size: int) -> int:
        return math.ceil(size / processes)

    return memory._replace(
        weights=part(memory.weights),
        reference=part(memory.reference),
        gradients=memory.gradients if is_lora else part(memory.gradients),
        optimizer=memory.optimizer if is_lora else part(memory.optimizer),
        gathered_in_pass=int(byte * (beside + 2 * layer) + 4 * gradients),
        gathered_in_search=memory.weights,
    )


def take_memory(model: Model) -> None:
    """Move a model from the device `meta` to this one."""
    model.to_empty(device="cpu")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.tie_weights()


@contextmanager
def without_values(device: torch.device) -> Iterator[FakeTensorMode]:
    """Make tensors that take no memory; choose among implementations as `device` would.

    Blocks of attention are left out, since they depend on values: they save a few per cent.
    """
    logits = LOGITS_IN_CACHE if device.type in LOGITS_IN_CACHE else {}
    with (
        patch.dict(BLOCK_COST, clear=True),
        patch.dict(LOGITS_IN_CACHE, logits, clear=True),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


def make_optimizer(trained: list[Tensor], options: Training) -> torch.optim.Optimizer:
    """The optimiser that transformers' Trainer makes for these options."""
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adafactor":
        optimizer = Adafactor(trained, scale_parameter=False, relative_step=False, lr=1.0)
    else:
        optimizer = torch.optim.AdamW(trained, fused=True)
    return optimizer


def inference_weights(config: PreTrainedConfig, dtype: str) -> int:
    """Bytes of a model's weights as `rere.backbones.load_for_inference` keeps them."""
    model = shape_of(config).requires_grad_(False)
    if dtype == "bfloat16":
        halve_linear_layers(model)
    return sum(weight.nbytes for weight in model.parameters())
