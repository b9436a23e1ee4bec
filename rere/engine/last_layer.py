"""The last layer of a model, without a feed-forward network where no logits are asked for.

Other tokens see what a layer makes of one by its keys and values in the next layer. The last has
none behind it: for a token without logits its feed-forward network serves nobody. In a model of
four layers that is a seventh of what a prompt costs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel


@contextmanager
def at_the_end(model: PreTrainedModel, num_tokens: int, keep: int) -> Iterator[None]:
    """For a pass of `num_tokens` a row that asks for the logits of the last `keep`.

    Without effect on an architecture that names its parts as few do.
    """
    network, others = feed_forward(model), num_tokens - keep
    if network is None or not others:
        yield
        return
    before = network.register_forward_pre_hook(lambda _, x: (x[0][:, others:].contiguous(),))
    after = network.register_forward_hook(lambda *x: pad(x[-1], (0, 0, others, 0)))
    with before, after:
        yield


def feed_forward(model: PreTrainedModel) -> nn.Module | None:
    """The last layer's; None where it is not found, or is computed again for its gradient."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", getattr(decoder, "h", None))
    if layers is None or (layers[-1].training and getattr(layers[-1], "gradient_checkpointing", 0)):
        return None
    return getattr(layers[-1], "mlp", None)
