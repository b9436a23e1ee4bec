"""Attention masks for tokens that follow a path in a tree, not all tokens before them.

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
    """The `attention_mask` of a decoder: 4-D, or a mapping by layer type where types differ.

    visible (B, Q, S) bool says which tokens each query sees; position (B, Q) i64 and seen_position
    (B, S) i64. transformers takes a 4-D mask as it is, so the window of sliding-window layers is
    applied here, by position.
    """
    masks = {}
    for layer_type, window in layer_windows(config).items():
        in_window = visible
        if window is not None:
            in_window = visible & (position[:, :, None] - seen_position[:, None, :] < window)
        masks[layer_type] = additive(in_window, dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The sliding window of each type of layer, in tokens; None for full attention.

    Follows transformers (`masking_utils.create_masks_for_generate`).
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        layer_types = ["full_attention" if window is None else "sliding_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in layer_types}


def causal(is_token: Tensor) -> Tensor:
    """The causal mask (B, S, S) bool of padded rows; is_token (B, S) bool.

    Padding sees itself, since attention to nothing is NaN in some models.
    """
    itself = torch.eye(is_token.shape[1], dtype=torch.bool, device=is_token.device)
    return (is_token[:, None, :] & torch.ones_like(itself).tril()) | itself


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (B, Q, S) as the mask (B, 1, Q, S) that attention adds to its scores."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
