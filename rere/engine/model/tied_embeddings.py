"""The gradient of embeddings that are the output layer's weights as well.

The output layer's gradient has every token of the vocabulary. That of the embeddings, of the few
tokens in a batch, would by default be as large, mostly 0: another matrix to fill and to add.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LARGE = {"cpu": 2**24}
"""Weights from which on that matters, by device: where sparse gradients add up in one order."""


@contextmanager
def sparse_where_tied(model: PreTrainedModel) -> Iterator[None]:
    """For a pass, tied embeddings give a sparse gradient, added to the output layer's in place."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not (
        torch.is_grad_enabled()
        and isinstance(embedding, nn.Embedding)
        and isinstance(output, nn.Linear)
        and embedding.weight is output.weight
        and embedding.weight.requires_grad
        and embedding.weight.numel() >= LARGE.get(embedding.weight.device.type, torch.inf)
    ):
        yield
        return
    weight, before = embedding.weight, embedding.sparse
    embedding.sparse = True
    # Modules refuse to take what is no parameter but here.
    embedding._parameters["weight"], output._parameters["weight"] = ForBoth.apply(weight)
    try:
        yield
    finally:
        embedding.sparse = before
        for module in (embedding, output):
            module._parameters["weight"] = weight


class ForBoth(torch.autograd.Function):
    """A matrix (V, D) for the embeddings, and for the output layer.

    Autograd adds sparse to dense gradients as well, but as a new matrix.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, of_embedding: Tensor | None, of_output: Tensor | None) -> Tensor | None:
        if of_output is None:  # of kept prompts, from which nothing is predicted
            return of_embedding
        return of_output if of_embedding is None else of_output.add_(of_embedding)
