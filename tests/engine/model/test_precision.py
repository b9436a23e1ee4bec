"""The precision of products within contexts, and afterwards."""

import pytest
import torch

from rere.engine.model.precision import arithmetic, full_float32

CPU = torch.device("cpu")


def product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_contexts_nest_and_leave_no_trace():
    cuda = torch.backends.cuda.matmul
    before = cuda.fp32_precision
    with arithmetic(CPU, "bfloat16"):
        assert (product(), cuda.fp32_precision) == (torch.bfloat16, "tf32")
        with full_float32(CPU):
            assert (product(), cuda.fp32_precision) == (torch.float32, "ieee")
        assert (product(), cuda.fp32_precision) == (torch.bfloat16, "tf32")
    with arithmetic(CPU, "float32"):
        assert (product(), cuda.fp32_precision) == (torch.float32, "tf32")
    with pytest.raises(ZeroDivisionError), arithmetic(CPU, "bfloat16"):
        raise ZeroDivisionError
    assert (product(), cuda.fp32_precision) == (torch.float32, before)
