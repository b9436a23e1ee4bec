"""Logits in float32, whatever the arithmetic of the layers below.

bfloat16 has 8 bits of precision: logits above 16 would be multiples of 1/8, so that candidates tie
and change places.

A search under `catalogue` scoring asks for the logits of few tokens, over and over. It may compute
those of `TokenHead` alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
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

    with replaced_forward(head, forward):
        yield


class TokenHead(NamedTuple):
    """The output embeddings of C tokens."""

    weight: Tensor  # (C, D) f32 at least
    bias: Tensor | None  # (C,), the same

    @classmethod
    def of(cls, model: PreTrainedModel, token: Tensor) -> Self | None:
        """Those of `token` (C,) i64; None unless they give the logits that the model computes."""
        if not computes_logits_by_token(model):
            return None
        return cls.select(model.get_output_embeddings(), token)

    @classmethod
    def select(cls, head: nn.Linear, token: Tensor) -> Self:
        bias = None if head.bias is None else upcast(head.bias[token])
        return cls(upcast(head.weight[token]), bias)

    @contextmanager
    def used_in(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the model compute logits (..., C), those of the tokens, without gradient."""

        def forward(input: Tensor) -> Tensor:
            with full_float32(input.device):
                return linear(input.to(self.weight), self.weight, self.bias)

        with replaced_forward(model.get_output_embeddings(), forward):
            yield


@contextmanager
def replaced_forward(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module compute by `forward`."""
    before = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


_computes_logits_by_token: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def computes_logits_by_token(model: PreTrainedModel) -> bool:
    """Whether a logit depends on its token's embedding alone; tried once.

    The model may scale and cap logits, but not look for a token by its place among them.
    """
    if model not in _computes_logits_by_token:
        _computes_logits_by_token[model] = selects_like_the_whole(model)
    return _computes_logits_by_token[model]


@torch.no_grad()
def selects_like_the_whole(model: PreTrainedModel) -> bool:
    """Whether the model's logits of some tokens are those of a head of these tokens."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    every = torch.arange(len(head.weight), device=head.weight.device)
    token = every.flip(0)[:: len(every) // 64 + 1]
    with head_in_float32(model):
        whole = model(input_ids=every[None, :2], use_cache=False).logits
        try:
            with TokenHead.select(head, token).used_in(model):
                some = model(input_ids=every[None, :2], use_cache=False).logits
        except (IndexError, RuntimeError):
            return False
    if some.shape[-1] != len(token):
        return False
    whole = whole[..., token]
    return bool((some - whole).norm() <= 1e-3 * (whole - whole.mean()).norm())
