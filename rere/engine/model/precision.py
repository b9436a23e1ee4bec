"""The precision in which models compute. Their weights may be stored in another one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(device: torch.device, dtype: str) -> Iterator[None]:
    """Let models compute in `dtype`, bfloat16 or float32, from float32 weights.

    Under bfloat16 matrix products and attention are in bfloat16, all other sums in float32. Under
    float32 a GPU rounds the factors of products to TF32. Logits are not affected
    (`rere.engine.model.head`). Enter it separately for search and update: it caches the weights it
    casts, and those cast without gradient in a search would have none in the update.
    """
    is_half = dtype == "bfloat16"
    with products_in("tf32"), torch.autocast(device.type, torch.bfloat16, enabled=is_half):
        yield


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in the dtype of the operands within `arithmetic`, float32 without TF32."""
    with products_in("ieee"), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Set how a GPU multiplies float32 matrices, whatever the environment says."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = before
