"""One forward pass over a batch of trees, without computing padding."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from rere.engine.model.attention import own_attention, rows_restored
from rere.engine.model.attention_blocks import make_blocks
from rere.engine.model.head import head_in_float32
from rere.engine.model.last_layer import last_layer_for
from rere.engine.model.masks import attention_mask
from rere.engine.model.unpadding import UnpaddedTokens


def forward_logits(
    model: torch.nn.Module,
    ids: Tensor,
    position: Tensor,
    visible: Tensor,
    seen_position: Tensor,
    tokens: UnpaddedTokens,
    **kwargs: Any,
) -> Tensor:
    """The logits (N, V) that `tokens` needs, in row order.

    ids and position (B, Q) i64; visible (B, Q, S) bool says which tokens, at seen_position (B, S),
    each query sees. The model may be wrapped for several devices or carry adapters; `kwargs` go to
    its forward. Padding is computed where the model's attention cannot be replaced.
    """
    base = extract_model_from_parallel(model)
    mask = attention_mask(base.config, visible, position, seen_position, base.dtype)
    rows: AbstractContextManager[None] = nullcontext()
    num_logits = tokens.logits_to_keep
    with own_attention(base) as is_own, head_in_float32(base):
        if is_own:
            index = tokens.token_index
            blocks = make_blocks(index, visible, base.config.get_text_config().hidden_size)
            if blocks is not None or tokens.num_tokens < ids.numel():
                ids, position = (x.flatten()[index][None] for x in (ids, position))
                rows, num_logits = rows_restored(tokens, index, blocks), tokens.num_logits
        with rows, last_layer_for(base, ids.shape[1], num_logits, tokens.logits_to_keep):
            logits = model(
                input_ids=ids,
                position_ids=position,
                attention_mask=mask,
                logits_to_keep=num_logits,
                **kwargs,
            ).logits
    return tokens.drop_padding(logits)
