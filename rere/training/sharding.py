"""Sharded training: weights, gradients and optimiser state split over the processes (FSDP2).

A layer's weights are gathered when it computes and dropped again. Its forward and backward passes
are thus communication, which all ranks must take part in equally often. Searches and validation,
whose passes differ in number, gather all weights once and keep them until they end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from rere.engine.model.layers import decoder_layers
from rere.ranks import Ranks
from rere.training.models import Model


def shard(model: Model, ranks: Ranks, device: torch.device) -> None:
    """Split the model's weights over all ranks, layer by layer; move them to the device.

    LoRA adapters stay whole on every rank, since they are small.
    """
    ignored: set[nn.Parameter] = set()
    if isinstance(model, PeftModel):
        ignored = {each for each in model.parameters() if each.requires_grad}
        model = model.get_base_model()
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in [*decoder_layers(model), model]:
        # The root's weights, too, so that no weight is whole after a pass.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    for module in sharded_modules(model):
        # Losses are sums over all ranks' rows, divided by the number of all.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [each for each in model.modules() if isinstance(each, FSDPModule)]


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Keep all weights on every rank meanwhile, so that ranks may take unequally many passes.

    All ranks must enter together. Does nothing for a model that is not sharded.
    """
    modules = sharded_modules(model)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def whole_weights(model: nn.Module, is_kept: bool) -> dict[str, Tensor]:
    """The weights by name, whole and on the CPU; of a model in training those that it trains.

    All ranks must call it together. Those that do not keep them get none.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    if trained := {name: weight for name, weight in weights.items() if weight.requires_grad}:
        weights = trained
    found: dict[Tensor, Tensor] = {}  # so that tied weights stay one
    for weight in dict.fromkeys(weights.values()):
        gathered = whole(weight.detach())
        if is_kept:
            found[weight] = gathered.cpu()
    return {name: found[weight] for name, weight in weights.items() if is_kept}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set each rank's part of the weights that are given by name; tied ones under either name."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in weights:
            with torch.no_grad():
                part_of(weight).copy_(part_of(like(weights[name], weight)))


def whole_state(state: dict[str, Any], is_kept: bool) -> dict[str, Any]:
    """An optimiser's state with whole tensors on the CPU, for ranks that keep it.

    All ranks must call it together.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        gathered = whole(value)
        return gathered.cpu() if is_kept else None

    found: dict[str, Any] = tree_map(gather, state)
    return found


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore the optimiser's state from whole tensors, of which each rank takes its part."""
    weights = [each for group in optimizer.param_groups for each in group["params"]]
    state["state"] = {
        number: {
            name: like(value, weights[number]) if value.shape == weights[number].shape else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(state)


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which every rank has a part, or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor, split as the weight is."""
    if not isinstance(weight, DTensor):
        return tensor
    tensor = tensor.to(weight.device)
    # Every rank has the whole tensor, so nothing need be sent.
    return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)
