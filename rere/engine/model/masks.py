"""Attention masks for tokens that follow others than those before them.

B rows, Q query tokens, S tokens they may see.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def attention_mask(
    config: PreTrainedConfig,
    visible: Tensor,
    position: Tensor,
    seen_position: Tensor,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """What a decoder takes as `attention_mask`: 4-D, or one a layer type where types differ.

    visible (B, Q, S) bool, position (B, Q) i64 and seen_position (B, S) i64. A 4-D mask is taken
    as it is, so layers with a sliding window get theirs from here, by position.
    """
    masks = {}
    for layer_type, window in layer_windows(config).items():
        inside = visible
        if window is not None:
            inside = visible & (position[:, :, None] - seen_position[:, None, :] < window)
        masks[layer_type] = additive(inside, dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The sliding window of each type of layer; None sees everything.

    The rule is transformers' own (`masking_utils.create_masks_for_generate`).
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        layer_types = ["full_attention" if window is None else "sliding_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in layer_types}


def causal(real: Tensor) -> Tensor:
    """Which tokens each one follows where those that are `real` (B, S) are all one path, (B, S, S).

    Padding sees itself, since attention to nothing is not a number in some models.
    """
    itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    return (real[:, None, :] & torch.ones_like(itself).tril()) | itself


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (B, Q, S) as the 4-D mask (B, 1, Q, S) that attention adds to its scores."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
