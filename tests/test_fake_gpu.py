"""The imitated GPU holds values, tells devices apart, and counts operations and host reads."""

import copy
import io

import pytest
import torch
from fake_gpu import CountOperations, DeviceTensor, fake_gpu
from torch import nn


def test_values_devices_and_gradients():
    with fake_gpu():
        values = torch.arange(6, device="meta").view(2, 3).float()
        assert values.device.type == "meta"
        assert (values + 1).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert torch.tensor([1.5], device="meta").new_tensor(2.5).item() == 2.5
        values[:, 1].add_(3)[0] = 7  # a view writes to its base
        assert values.cpu().tolist() == [[0, 7, 2], [3, 7, 5]]
        layer = nn.Linear(3, 2).to("meta")
        copied = copy.deepcopy(layer)
        assert isinstance(copied.weight, nn.Parameter)
        copied(values).sum().backward()
        assert layer.weight.grad is None
        assert copied.weight.grad.tolist() == [[3, 14, 7]] * 2
        assert isinstance(copied.weight.grad, DeviceTensor)


def test_tensors_without_values_are_torchs_own():
    with fake_gpu():
        with torch.device("meta"):
            empty = torch.ones(2)
        with pytest.raises(RuntimeError, match="meta tensors"):
            empty.sum().item()


def test_devices_do_not_mix():
    with fake_gpu():
        ours, host = torch.ones(3, device="meta"), torch.ones(3)
        index = torch.tensor([0, 2])
        message = "on the same device"
        for mixed in (
            lambda: ours + host,
            lambda: host[index.to("meta")],
            lambda: torch.cat([ours, host]),
            lambda: ours.gather(0, index),
            lambda: host.add_(ours),
            lambda: ours.__setitem__(index, host[:2]),
        ):
            with pytest.raises(RuntimeError, match=message):
                mixed()
        with pytest.raises(RuntimeError, match="for generator"):
            torch.rand(2, device="meta", generator=torch.Generator())
        assert (ours * torch.tensor(2.0))[index].tolist() == [2, 2]
        assert host.copy_(2 * ours).tolist() == [2, 2, 2]


def test_host_reads_are_counted():
    with fake_gpu() as gpu:
        ours, host = torch.ones(3, device="meta"), torch.ones(3)
        ours[torch.tensor([0])] = ours.exp().sum()
        host.sum().item()
        assert gpu.host_reads == 0
        reads = [
            lambda: ours[0].item(),
            lambda: bool(ours.any()),
            ours.tolist,
            ours.cpu,
            ours.nonzero,
            lambda: ours[ours > 0],
            lambda: ours.__setitem__(ours > 0, 1.0),
            lambda: ours.long().repeat_interleave(ours.long()),
            lambda: host.copy_(ours),
        ]
        for number, read in enumerate(reads, 1):
            read()
            assert gpu.host_reads == number
        gpu.reset()
        (ours + 1).exp_()
        assert (gpu.operations, gpu.host_reads) == (2, 0)


def test_operations_are_counted_on_the_cpu():
    with CountOperations() as count:
        torch.ones(3).exp().sum().item()
    assert count.by_name.keys() == {"aten.ones", "aten.exp", "aten.sum", "aten._local_scalar_dense"}
    assert (count.operations, count.host_reads) == (4, 1)


def test_autocast():
    layer, head, hidden = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(3, 4)
    with fake_gpu():
        layer, head, hidden = (x.to("meta") for x in (layer, head, hidden))
        with torch.autocast("meta", torch.bfloat16):
            assert torch.is_autocast_enabled("meta")
            low = layer(hidden)
            with torch.autocast("meta", enabled=False):
                high = head(low.float())
        assert (low.dtype, high.dtype) == (torch.bfloat16, torch.float32)
        high.sum().backward()
        assert layer.weight.grad.dtype == torch.float32


def test_saved_tensors_are_the_hosts():
    with fake_gpu():
        file = io.BytesIO()
        torch.save({"weight": torch.ones(2, device="meta")}, file)
        file.seek(0)
        assert torch.load(file)["weight"].device.type == "cpu"
