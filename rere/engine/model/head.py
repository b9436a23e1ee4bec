"""Logits in float32, whatever the arithmetic of the layers below.

bfloat16 has 8 bits of precision: logits above 16 would be multiples of 1/8, so that candidates tie
and change places.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from rere.engine.model.precision import full_float32
from rere.engine.model.softmax import upcast


@contextmanager
def head_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Compute the product of hidden states and output embeddings in float32.

    For a head that is a plain linear layer, as in all of transformers' causal language models, in
    lower precision by its weights or by autocast. Gradients reach the weights in their own dtype.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return

    def forward(input: Tensor) -> Tensor:
        with full_float32(input.device):
            weight, bias = upcast(head.weight), head.bias
            return linear(input.to(weight), weight, bias if bias is None else upcast(bias))

    head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
