"""The gradient of embeddings that are the output layer's weights as well.

The output layer's gradient has every token of the vocabulary. That of the embeddings, of the few
tokens in a batch, would by default be as large, mostly 0: another matrix to fill and to add.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

LARGE = {"cpu": 2**24}
"""Weights from which on that matters, by device: where sparse gradients add up in one order."""


@contextmanager
def sparse_where_tied(model: PreTrainedModel) -> Iterator[None]:
    """For a pass, tied embeddings give a sparse gradient, which autograd adds to the dense one."""
    embedding = model.get_input_embeddings()
    if not torch.is_grad_enabled() or not isinstance(embedding, nn.Embedding):
        yield
        return
    weight, before = embedding.weight, embedding.sparse
    is_tied = weight is getattr(model.get_output_embeddings(), "weight", None)
    is_large = weight.numel() >= LARGE.get(weight.device.type, torch.inf)
    embedding.sparse = before or (weight.requires_grad and is_tied and is_large)
    try:
        yield
    finally:
        embedding.sparse = before
