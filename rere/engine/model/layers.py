"""The layers of a decoder."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model of transformers, whatever it calls them, from first to last."""
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
