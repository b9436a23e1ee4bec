"""An imitation of a GPU: tensors on the device `meta` that hold values, which the CPU computes.

Code takes its branches for other devices than the CPU. As under CUDA, an operation on tensors of
both devices raises RuntimeError, but for copies, numbers (tensors without dimensions) of the host,
and a device tensor that is indexed by a host tensor. Results are those of the CPU's kernels, so
what is not imitated is CUDA's own arithmetic, memory, and the order in which kernels run. Autocast
lowers linear layers and attention alone.

torch's own tensors on `meta`, without values, still come from `with torch.device("meta")`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Self

import accelerate
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

from rere.devices import choose_device

DEVICE = torch.device("meta")
by_default: ContextVar[bool] = ContextVar("by_default", default=False)
"""Whether a device is that of `with torch.device`, not one that a call names."""
aten = torch.ops.aten

WAITS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive),
}
"""Operations whose value or shape the host reads from the device, besides copies and masks."""


class CountOperations(TorchDispatchMode):
    """Counts the operations of torch while it is active, and those that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.host_reads = 0

    @property
    def operations(self) -> int:
        return self.by_name.total()

    def reset(self) -> None:
        self.by_name.clear()
        self.host_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count(func, args)
        return func(*args, **(kwargs or {}))

    def count(self, func: Any, args: Any) -> None:
        packet = func.overloadpacket
        has_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        has_counts = func is aten.repeat_interleave.Tensor
        self.by_name[str(packet)] += 1
        self.host_reads += packet in WAITS or has_mask or has_counts


class DeviceTensor(Tensor):
    """A tensor on the imitated GPU; `values` are on the CPU."""

    values: Tensor
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, values: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the imitated GPU, which is switched off")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An index is a tensor where it is a list, whose values torch's `meta` would drop."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                args = (args[0], on_device(args[1]), *args[2:])
            return func(*args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.values})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceTensor":
        copied = DeviceTensor(self.values.detach().clone()).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), copied)

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def data_ptr(self) -> int:
        return self.values.data_ptr()


class FakeGpu(CountOperations):
    """While it is active, the device `meta` has values. Counts operations on its tensors only."""

    is_on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given: list[Tensor] = []
        values: list[Tensor] = []

        def unwrap(tensor: Tensor) -> Tensor:
            given.append(tensor)
            values.append(tensor.values if isinstance(tensor, DeviceTensor) else tensor)
            return values[-1]

        host_args, host_kwargs = map_tensors(unwrap, args), map_tensors(unwrap, kwargs)
        has_ours, device = any(map(is_device_tensor, given)), kwargs.get("device")
        is_ours = has_ours if device is None else is_fake(device)
        if not has_ours and not is_ours:
            return func(*args, **kwargs)
        check_devices(func, args, kwargs, given)
        self.count(func, args)
        is_copied_back = func is aten.copy_.default and not is_device_tensor(args[0])
        self.host_reads += has_ours and (is_copied_back or not is_ours)
        if is_ours and device is not None:
            host_kwargs["device"] = torch.device("cpu")
        with torch._C._DisableAutocast():
            result = func(*host_args, **host_kwargs)
        known = dict(zip(map(id, values), given, strict=True))  # results that are arguments

        def wrap(tensor: Tensor) -> Tensor:
            ours = known.get(id(tensor))
            assert ours is None or ours.shape == tensor.shape, f"{func}: changes a shape in place"
            return DeviceTensor(tensor) if ours is None else ours

        return map_tensors(wrap, result) if is_ours else result


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with `function` of each tensor in it, in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([map_tensors(function, each) for each in value])
    if isinstance(value, dict):
        return {name: map_tensors(function, each) for name, each in value.items()}
    return value


def on_device(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(on_device, index))
    return torch.tensor([*index]).to(DEVICE) if isinstance(index, list | range) else index


def is_fake(device: Any) -> bool:
    """Whether tensors of this device have values."""
    is_meta = device is not None and torch.device(device).type == DEVICE.type
    return is_meta and not by_default.get()


def check_devices(func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> None:
    """Raise RuntimeError where CUDA would: tensors of both devices, or the host's generator."""
    packet = func.overloadpacket
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: Expected a 'meta' device type for generator but found 'cpu'")
    if packet in (aten.copy_, aten._to_copy):
        return
    if packet in (aten.index, aten.index_put, aten.index_put_) and is_device_tensor(args[0]):
        given = [args[0], *args[2:3]]
    hosts = [x for x in given if isinstance(x, Tensor) and not is_device_tensor(x)]
    assert all(x.device != DEVICE for x in hosts), f"{func}: a tensor has lost its values"
    if len(hosts) < len(given) and any(x.dim() > 0 for x in hosts):
        raise RuntimeError(
            f"{func}: Expected all tensors to be on the same device, but found at least two "
            "devices, meta and cpu!"
        )


def is_device_tensor(value: Any) -> bool:
    return isinstance(value, DeviceTensor)


# ------------------------------------------------------------------------------------- patches


class Autocast(torch.autocast):
    """torch's, which has no `meta`: the CPU's switch stands for it (`with_autocast`)."""

    def __init__(self, device_type: str, *args: Any, **more: Any) -> None:
        super().__init__(host_type(device_type), *args, **more)


def with_autocast(compute: Any) -> Any:
    """A function of torch that computes in the type of autocast: linear layers and attention."""

    def lower(tensor: Tensor) -> Tensor:
        is_lowered = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(torch.get_autocast_dtype("cpu")) if is_lowered else tensor

    def computed(*args: Any, **more: Any) -> Any:
        if is_device_tensor(args[0]) and torch.is_autocast_enabled("cpu"):
            args, more = map_tensors(lower, (args, more))
        return compute(*args, **more)

    return computed


def with_one_kernel(attention: Any) -> Any:
    """torch's attention as one operation, as on a GPU, by the kernel that the CPU would choose."""
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    flash = 1

    def attend(*args: Any, attn_mask: Any = None, dropout_p: float = 0.0, **more: Any) -> Tensor:
        given = (*args, attn_mask) if attn_mask is not None else args
        if is_device_tensor(args[0]):
            values = [x.values.detach() for x in given]
            if torch._fused_sdp_choice(*values, dropout_p=dropout_p, **more) == flash:
                if attn_mask is not None and attn_mask.dtype == torch.bool:
                    added = torch.zeros_like(attn_mask, dtype=args[0].dtype)
                    attn_mask = added.masked_fill(~attn_mask, -torch.inf)
                more.pop("enable_gqa", None)
                return fused(*args, dropout_p, attn_mask=attn_mask, **more)[0]
        return attention(*args, attn_mask=attn_mask, dropout_p=dropout_p, **more)

    return attend


def keep_values(make: Any) -> Any:
    """torch's `tensor` or `as_tensor`, which drop the values of tensors on `meta`."""

    def made(*args: Any, device: Any = None, **more: Any) -> Tensor:
        if is_fake(device):
            return make(*args, **more).to(device)
        return make(*args, device=device, **more)

    return made


class DefaultDevice(DeviceContext):
    """`with torch.device`, which says when it is what chooses a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = by_default.set((kwargs or {}).get("device") is None)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            by_default.reset(before)


def host_type(device_type: str) -> str:
    return "cpu" if device_type == DEVICE.type else device_type


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """A GPU that everything chooses by default: `rere`, the Trainer and accelerate."""
    gpu = FakeGpu()

    def choose(device: str | torch.device = "auto") -> torch.device:
        # A module that is imported meanwhile keeps this function.
        return DEVICE if device == "auto" and gpu.is_on else choose_device(device)

    def by_type(function: Any) -> Any:
        return lambda device_type="cuda": function(host_type(device_type))

    optimizer = sys.modules["torch.optim.optimizer"]  # torch hides it behind the package
    fused = optimizer._get_fused_kernels_supported_devices
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, module in list(sys.modules.items()):
            if name.startswith("rere.") and vars(module).get("choose_device") is choose_device:
                patch.setattr(module, "choose_device", choose)
        patch.setattr(torch, "autocast", Autocast)
        _device_constructors()  # remembers torch's functions at its first call
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, keep_values(getattr(torch, name)))
        patch.setattr(F, "linear", with_autocast(F.linear))
        attend = with_autocast(with_one_kernel(F.scaled_dot_product_attention))
        patch.setattr(F, "scaled_dot_product_attention", attend)
        patch.setattr(torch.utils._device, "DeviceContext", DefaultDevice)
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            patch.setattr(torch, name, by_type(getattr(torch, name)))
        with_ours = [*fused(), DEVICE.type]
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: with_ours)
        patch.setattr(transformers.TrainingArguments, "device", DEVICE)
        patch.setattr(
            accelerate.PartialState, "set_device", lambda self: setattr(self, "device", DEVICE)
        )
        stack.callback(setattr, gpu, "is_on", False)
        yield stack.enter_context(gpu)
