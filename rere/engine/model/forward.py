"""A forward pass over a batch of trees: logits after the tokens asked for, without padding."""

from contextlib import nullcontext

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rere.engine.model.attention import BY_ROWS, OURS, attention_implementation, unpadded
from rere.engine.model.attention_blocks import parts_of
from rere.engine.model.last_layer import at_the_end
from rere.engine.model.masks import attention_mask
from rere.engine.model.unpadding import UnpaddedTokens


def forward_logits(
    model: torch.nn.Module,
    ids: Tensor,
    position: Tensor,
    visible: Tensor,
    seen_position: Tensor,
    tokens: UnpaddedTokens,
    **kwargs,
) -> Tensor:
    """Logits (N, V) after the tokens in the last columns, row by row.

    ids and position (B, Q) i64; visible (B, Q, S) bool, which of the tokens at seen_position (B, S)
    each one follows. The model may be wrapped for several devices or carry adapters; `kwargs` are
    its own. Padding is computed where attention is not ours to steer.
    """
    base = extract_model_from_parallel(model)
    mask = attention_mask(base.config, visible, position, seen_position, base.dtype)
    rows_apart, num_logits = nullcontext(), tokens.logits_to_keep
    with attention_implementation(base, BY_ROWS):
        if base.config._attn_implementation in OURS and not computes_again(base):
            index = tokens.index
            parts = parts_of(index, visible, base.config.get_text_config().hidden_size)
            if parts is not None or tokens.num_tokens < ids.numel():
                ids, position = (x.flatten()[index][None] for x in (ids, position))
                rows_apart, num_logits = unpadded(tokens, index, parts), tokens.num_logits
        with rows_apart, at_the_end(base, ids.shape[1], num_logits, tokens.logits_to_keep):
            logits = model(
                input_ids=ids,
                position_ids=position,
                attention_mask=mask,
                logits_to_keep=num_logits,
                **kwargs,
            ).logits
    return tokens.drop_padding(logits)


def computes_again(model: torch.nn.Module) -> bool:
    """Whether layers are computed again for their gradient, when nobody knows of rows any more."""
    layers = (layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))
    return torch.is_grad_enabled() and any(
        "forward" in vars(layer) or (layer.gradient_checkpointing and layer.training)
        for layer in layers
    )
