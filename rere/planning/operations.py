"""The floating-point operations of a model, by what its passes compute.

A multiplication with an addition counts as two. Only products of matrices count: with a layer's
weights, with the output embeddings, and of attention's queries with keys and of its weights with
values. This is the count of Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with attention and
output added. All experts of a mixture count, though a token is given to few of them.
"""

from typing import NamedTuple, Self

from transformers import PreTrainedConfig

from rere.backbones import shape_of
from rere.engine.model.layers import decoder_layers


class Counts(NamedTuple):
    """What forward passes compute."""

    tokens: float = 0  # that are fed
    pairs: float = 0  # of a fed token and one that it attends to
    logits: float = 0  # positions times tokens of the vocabulary
    passes: float = 0

    def plus(self, other: Self, weight: float = 1) -> Self:
        return type(self)(*(a + weight * b for a, b in zip(self, other, strict=True)))


class Operations(NamedTuple):
    """Floating-point operations, by the precision that a GPU has for them."""

    layers: float = 0  # in the options' `dtype`
    head: float = 0  # of logits, in float32
    head_gradient: float = 0  # of their gradients, with factors in TF32

    @property
    def total(self) -> float:
        return sum(self)


class Shape(NamedTuple):
    """What of a model decides its operations."""

    num_layers: int
    layer_weights: int  # in matrices, of all layers
    attention_width: int  # of all heads and layers
    hidden_size: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Self:
        layers = decoder_layers(shape_of(config))
        text = config.get_text_config()
        heads = getattr(text, "num_attention_heads", 0)  # recurrent models have none
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
        weights = [each for layer in layers for each in layer.parameters() if each.dim() > 1]
        return cls(
            len(layers),
            sum(each.numel() for each in weights),
            heads * head_dim * len(layers),
            text.hidden_size,
        )

    def forward(self, counts: Counts) -> Operations:
        """The operations of forward passes."""
        linear = 2 * self.layer_weights * counts.tokens
        attention = 4 * self.attention_width * counts.pairs
        return Operations(linear + attention, 2 * self.hidden_size * counts.logits)
