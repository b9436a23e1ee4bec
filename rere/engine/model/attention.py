"""Attention for forward passes without padding.

transformers' scaled dot-product attention, with three differences:

* A pass may hold the tokens of all rows as one row (`rere.engine.model.unpadding`). Attention puts
  them back into padded rows, or into blocks that attend apart
  (`rere.engine.model.attention_blocks`), and its results into one row.
* The last layer attends for the last tokens of each row alone (`rere.engine.model.last_layer`).
* Heads that share keys and values (grouped-query attention, arXiv 2305.13245) need no copies of
  them: the queries of such heads become further queries of one head.

B rows, H heads in G groups, Q query tokens, S seen tokens, D wide, T tokens without padding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rere.engine.model.attention_blocks import AttentionBlocks
from rere.engine.model.layers import decoder_layers
from rere.engine.model.unpadding import UnpaddedTokens

NAME = "rere"
NO_GROUPS = torch.nn.Module()  # transformers would copy the keys of a module that has groups


class RowLayout(NamedTuple):
    """How the tokens of a pass without padding map to padded rows."""

    shape: torch.Size  # (B, Q)
    flat_index: Tensor  # (T,) i64, the place of each token in (B Q,)
    token: Tensor  # (B Q,) i64, the inverse; arbitrary at padding
    blocks: AttentionBlocks | None
    last_blocks: AttentionBlocks | None  # of the tokens with logits


current: ContextVar[RowLayout | None] = ContextVar("current", default=None)


@contextmanager
def rows_restored(
    tokens: UnpaddedTokens, flat_index: Tensor, blocks: AttentionBlocks | None
) -> Iterator[None]:
    """Let attention restore padded rows, for passes over the tokens at `flat_index` in (B Q,).

    With `blocks` it attends block by block instead.
    """
    token = torch.zeros_like(tokens.is_token, dtype=torch.long).flatten()
    token[flat_index] = torch.arange(len(flat_index), device=flat_index.device)
    last_blocks = blocks and blocks.starting_at(tokens.num_tokens - tokens.num_logits)
    before = current.set(RowLayout(tokens.is_token.shape, flat_index, token, blocks, last_blocks))
    try:
        yield
    finally:
        current.reset(before)


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Use this module's attention in a model with transformers' `sdpa`; yield whether it can."""
    is_sdpa = model.config._attn_implementation == "sdpa"
    if model.config._attn_implementation == NAME:
        yield True
    elif not is_sdpa or not model._can_set_attn_implementation() or recomputes_layers(model):
        yield False
    else:
        model.set_attn_implementation(NAME)
        try:
            with without_cudnn():
                yield True
        finally:
            model.set_attn_implementation("sdpa")


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Leave attention to the other kernels of a GPU.

    cuDNN's plans each new shape for tens of milliseconds, and nearly every pass has a new one.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def recomputes_layers(model: PreTrainedModel) -> bool:
    """Whether the backward pass computes layers again, when this attention is no longer in use."""
    return torch.is_grad_enabled() and any(
        "forward" in vars(layer) or (layer.gradient_checkpointing and layer.training)
        for layer in decoder_layers(model)
    )


@contextmanager
def last_queries_only(attention: torch.nn.Module, num_queries: int) -> Iterator[None]:
    """Let an attention layer compute the last `num_queries` tokens of each row, 0 elsewhere."""
    attention.num_queries = num_queries  # type: ignore[assignment]  # torch types tensors only
    try:
        yield
    finally:
        del attention.num_queries


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa_attention_forward` does.

    query (B, H, Q, D), key and value (B, G, S, D), mask (B, 1, Q, S) -> (B, Q, H, D); without
    padding query (1, H, T, D) -> (1, T, H, D).
    """
    pass_, key, value = current.get(), in_rows(key), in_rows(value)
    blocks = pass_ and (pass_.last_blocks if hasattr(module, "num_queries") else pass_.blocks)
    if blocks is not None and attention_mask is not None:
        return attend_in_blocks(blocks, query, key, value, attention_mask, **kwargs), None
    query = in_rows(query)
    num_skipped = query.shape[2] - getattr(module, "num_queries", query.shape[2])
    if num_skipped and attention_mask is not None:
        query, attention_mask = query[:, :, num_skipped:], attention_mask[:, :, num_skipped:]
    attended = grouped_attention(module, query, key, value, attention_mask, **kwargs)
    if num_skipped and attention_mask is not None:
        attended = pad(attended, (0, 0, 0, 0, num_skipped, 0))
    if pass_ is not None:
        attended = attended.flatten(0, 1).index_select(0, pass_.flat_index)[None]
    return attended, None


def in_rows(states: Tensor) -> Tensor:
    """States (1, H, T, D) of a pass without padding as padded rows (B, H, Q, D).

    States in rows stay as they are. The states at padding are arbitrary, since no token sees them.
    """
    pass_ = current.get()
    if pass_ is None or len(states) == pass_.shape[0]:
        return states
    # A token's gradient is one summand and zeros, so their order cannot change its bits.
    tokens = states[0].transpose(0, 1).index_select(0, pass_.token)
    rows: Tensor = tokens.unflatten(0, pass_.shape)
    return rows.transpose(1, 2)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """query (B, H, Q, D), key and value (B, G, S, D), mask (B, 1, Q, S) -> (B, Q, H, D)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1 or attention_mask is None:
        attended: Tensor
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return attended
    mask = attention_mask.repeat(1, 1, repeats, 1)
    return attend_to_groups(query, key, value, mask, **kwargs)


def attend_to_groups(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> Tensor:
    """`grouped_attention` with a mask (B, 1, Q H / G, S), repeated for the queries of a group."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    query = query.reshape(rows, groups, -1, width)
    attended: Tensor
    attended, _ = sdpa_attention_forward(NO_GROUPS, query, key, value, attention_mask, **kwargs)
    attended = attended.view(rows, heads // groups, length, groups, -1)
    return attended.permute(0, 2, 3, 1, 4).reshape(rows, length, heads, -1)


def attend_in_blocks(
    blocks: AttentionBlocks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    **kwargs: Any,
) -> Tensor:
    """query (1, H, T, D), key and value (B, G, S, D), mask (B, 1, Q, S) -> (1, T, H, D).

    0 for tokens in no block.
    """
    repeats = query.shape[1] // key.shape[1]
    queries = query.transpose(1, 2)
    if not blocks.is_in_order:
        queries = queries.index_select(1, blocks.token)
    by_block = [
        attend_to_groups(
            q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask, **kwargs
        )
        for q, k, v, mask in zip(
            queries.split(blocks.num_tokens, dim=1),
            gather_seen(blocks, key).split(blocks.num_seen),
            gather_seen(blocks, value).split(blocks.num_seen),
            blocks.select_masks(attention_mask, repeats),
            strict=True,
        )
    ]
    attended = torch.cat(by_block, dim=1)
    if blocks.is_in_order:
        return attended
    shape = (1, query.shape[2], *attended.shape[2:])
    return attended.new_zeros(shape).index_copy(1, blocks.token, attended)


def gather_seen(blocks: AttentionBlocks, states: Tensor) -> Tensor:
    """The keys or values (B, G, S, D) that blocks see, block after block, M in all: (M, G, D)."""
    if not states.requires_grad:
        return states[blocks.row, :, blocks.seen]
    # That indexing would add up gradients in another order in each run.
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat.index_select(0, blocks.row * states.shape[2] + blocks.seen)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
