"""The last layer of a model, computed for tokens with logits alone.

Other tokens see what a layer makes of one by its keys and values in the next layer. The last has
none behind it: of a token without logits its own keys and values are all that anyone asks for. Its
query, attention and feed-forward network serve nobody; in a model of four layers they are a fifth
of what a prompt costs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.model.attention import for_last_queries

PARTS = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
"""Of a layer, those that take tokens one by one and make nothing that other tokens see."""


@contextmanager
def at_the_end(
    model: PreTrainedModel, num_tokens: int, num_logits: int, num_queries: int
) -> Iterator[None]:
    """For a pass of `num_tokens` a row that asks for the logits of the last `num_logits`.

    Attention is for the last `num_queries` of each of its rows: those of the batch, where the pass
    has but one (`rere.engine.model.unpadding`). Parts that an architecture names differently compute all
    tokens.
    """
    layer, others = last_layer(model), num_tokens - num_logits
    if layer is None or not others:
        yield
        return
    modules = dict(layer.named_modules())
    with ExitStack() as stack:
        for part in (modules[name] for name in PARTS if name in modules):
            before = part.register_forward_pre_hook(lambda _, x: (x[0][:, others:].contiguous(),))
            after = part.register_forward_hook(lambda *x: pad(x[-1], (0, 0, others, 0)))
            stack.enter_context(before)
            stack.enter_context(after)
        if "self_attn" in modules:
            stack.enter_context(for_last_queries(modules["self_attn"], num_queries))
        yield


def last_layer(model: PreTrainedModel) -> nn.Module | None:
    """None where it is not found, or is computed again for its gradient."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", getattr(decoder, "h", None))
    if layers is None or (layers[-1].training and getattr(layers[-1], "gradient_checkpointing", 0)):
        return None
    return layers[-1]
