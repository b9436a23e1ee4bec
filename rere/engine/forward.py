"""A forward pass over a batch of trees: logits after the tokens asked for, without padding."""

from contextlib import nullcontext

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rere.engine.attention import BY_ROWS, OURS, instead_of_sdpa, unpadded
from rere.engine.columns import Columns
from rere.engine.last_layer import at_the_end
from rere.engine.masks import attention_mask
from rere.engine.parts import parts_of
from rere.engine.room import logits_in_room
from rere.engine.tied import sparse_where_tied


def logits_of(
    model: torch.nn.Module,
    ids: Tensor,
    position: Tensor,
    visible: Tensor,
    seen_position: Tensor,
    columns: Columns,
    **kwargs,
) -> Tensor:
    """Logits (N, V) after the tokens in the last columns, row by row.

    ids and position (B, Q) i64; visible (B, Q, S) bool, which of the tokens at seen_position (B, S)
    each one follows. The model may be wrapped for several devices or carry adapters; `kwargs` are
    its own. Padding is computed where attention is not ours to steer.
    """
    base = extract_model_from_parallel(model)
    mask = attention_mask(base.config, visible, position, seen_position, base.dtype)
    rows_apart, num_kept = nullcontext(), columns.keep
    with instead_of_sdpa(base, BY_ROWS), sparse_where_tied(base), logits_in_room(base):
        if base.config._attn_implementation in OURS and not computes_again(base):
            index = columns.index
            parts = parts_of(index, visible, base.config.get_text_config().hidden_size)
            if parts is not None or columns.num_real < ids.numel():
                ids, position = (x.flatten()[index][None] for x in (ids, position))
                rows_apart, num_kept = unpadded(columns, index, parts), columns.num_kept
        with rows_apart, at_the_end(base, ids.shape[1], num_kept, columns.keep):
            logits = model(
                input_ids=ids,
                position_ids=position,
                attention_mask=mask,
                logits_to_keep=num_kept,
                **kwargs,
            ).logits
    return columns.of_kept(logits)


def computes_again(model: torch.nn.Module) -> bool:
    """Whether layers are computed again for their gradient, when nobody knows of rows any more."""
    layers = (layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))
    return torch.is_grad_enabled() and any(
        "forward" in vars(layer) or (layer.gradient_checkpointing and layer.training)
        for layer in layers
    )
