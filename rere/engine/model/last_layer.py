"""Compute the last layer for the tokens with logits alone.

No layer follows the last one. Of a token without logits it needs only the key and value, which
other tokens see, but no query, attention or feed-forward network.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.model.attention import last_queries_only

TOKEN_WISE = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
"""Modules of a layer that handle tokens one by one and do not affect other tokens."""


@contextmanager
def last_layer_for(
    model: PreTrainedModel, num_tokens: int, num_logits: int, num_queries: int
) -> Iterator[None]:
    """Let the last layer of a pass compute the last `num_logits` of its `num_tokens` tokens.

    Its attention computes the last `num_queries` tokens of each padded row. Modules under other
    names than TOKEN_WISE compute all tokens.
    """
    layer, num_skipped = last_layer(model), num_tokens - num_logits
    if layer is None or not num_skipped:
        yield
        return
    modules = dict(layer.named_modules())
    with ExitStack() as stack:
        for module in (modules[name] for name in TOKEN_WISE if name in modules):
            cut = module.register_forward_pre_hook(
                lambda _, x: (x[0][:, num_skipped:].contiguous(),)
            )
            fill = module.register_forward_hook(lambda *x: pad(x[-1], (0, 0, num_skipped, 0)))
            stack.enter_context(cut)
            stack.enter_context(fill)
        if "self_attn" in modules:
            stack.enter_context(last_queries_only(modules["self_attn"], num_queries))
        yield


def last_layer(model: PreTrainedModel) -> nn.Module | None:
    """The last layer; None if it is not found, or is computed again in the backward pass."""
    decoder = model.get_decoder()
    layers: nn.ModuleList | None = getattr(decoder, "layers", getattr(decoder, "h", None))
    if layers is None or (
        layers[-1].training and getattr(layers[-1], "gradient_checkpointing", False)
    ):
        return None
    return layers[-1]
