"""Attention of one pass over a batch: of the queries asked for, without padding, without copies.

transformers' scaled dot-product attention, but

* a pass may have its tokens in one row, without padding (`rere.engine.model.unpadding`): here they are put
  back into rows, or attend in parts, each over what it sees (`rere.engine.model.attention_blocks`);
* the last layer attends for its last tokens alone (`rere.engine.model.last_layer`);
* heads that share keys and values (grouped-query attention, arXiv 2305.13245) do so without copies
  of them, laid out as further queries of their group. Where all of a batch is scored with gradient,
  transformers' copies stay: on CPUs that was 0-6 % faster, and smaller, in all of four models and
  lengths.

B rows, H heads in G groups, Q query tokens, S seen tokens, D wide, T tokens without padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rere.engine.model.attention_blocks import Parts
from rere.engine.model.unpadding import UnpaddedTokens

Attend = Callable[..., tuple[Tensor, None]]

OURS = BY_ROWS, GROUPED = "sdpa_by_rows", "sdpa_grouped"
NO_GROUPS = torch.nn.Module()  # transformers asks an attention layer for its groups


class Unpadded(NamedTuple):
    """What attention has to know of a pass without padding."""

    tokens: UnpaddedTokens
    index: Tensor  # (T,) i64, the columns of the tokens
    token: Tensor  # (B Q,) i64, the tokens of the columns; any where there is none
    parts: Parts | None
    last: Parts | None  # the same, of the tokens with logits


current: ContextVar[Unpadded | None] = ContextVar("current", default=None)


@contextmanager
def unpadded(tokens: UnpaddedTokens, index: Tensor, parts: Parts | None) -> Iterator[None]:
    """For a pass that takes the columns at `index` alone."""
    token = torch.zeros_like(tokens.is_token, dtype=torch.long).flatten()
    token[index] = torch.arange(len(index), device=index.device)
    last = parts and parts.since(tokens.num_tokens - tokens.num_logits)
    before = current.set(Unpadded(tokens, index, token, parts, last))
    try:
        yield
    finally:
        current.reset(before)


def in_rows(states: Tensor) -> Tensor:
    """States (1, H, T, D) of a pass without padding in their rows, (B, H, Q, D).

    Those that are in rows stay; so do those of a single row, since that has no padding. What is
    at padding no token sees.
    """
    now = current.get()
    if now is None or len(states) == len(now.tokens.is_token):
        return states
    # A gradient of this is added up where tokens differ, or 0: in any order, to the same bits.
    rows = states[0].transpose(0, 1).index_select(0, now.token)
    return rows.unflatten(0, now.tokens.is_token.shape).transpose(1, 2)


def attention_of_pass(attend: Attend) -> Attend:
    """`attend`, for the pass at hand."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        now = current.get()
        key, value = in_rows(key), in_rows(value)
        if now is not None and now.parts is not None:
            parts = now.last if hasattr(module, "num_queries") else now.parts
            return in_parts(parts, query, key, value, attention_mask, **kwargs), None
        query = in_rows(query)
        attended = of_last(attend, module, query, key, value, attention_mask, **kwargs)
        if now is not None:
            attended = attended.flatten(0, 1).index_select(0, now.index)[None]
        return attended, None

    return attention


def of_last(
    attend: Attend,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs,
) -> Tensor:
    """`attend`, but 0 for all but the last `num_queries` of a module that has that number."""
    others = query.shape[2] - getattr(module, "num_queries", query.shape[2])
    if not others or attention_mask is None:
        return attend(module, query, key, value, attention_mask, **kwargs)[0]
    query, attention_mask = query[:, :, others:], attention_mask[:, :, others:]
    attended, _ = attend(module, query, key, value, attention_mask, **kwargs)
    return pad(attended, (0, 0, 0, 0, others, 0))


def in_parts(
    parts: Parts, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs
) -> Tensor:
    """query (1, H, T, D), key and value (B, G, S, D), mask (B, 1, Q, S) -> (1, T, H, D).

    0 for tokens of no part.
    """
    repeats = query.shape[1] // key.shape[1]
    queries = query.transpose(1, 2)
    if not parts.in_order:
        queries = queries.index_select(1, parts.token)
    queries = queries.split(parts.num_tokens, dim=1)
    keys, values = (seen_states(parts, x).split(parts.num_seen) for x in (key, value))
    masks = parts.masks_of(attention_mask, repeats)
    attended = [
        groups_attend(q.transpose(1, 2), *(x.transpose(0, 1)[None] for x in (k, v)), mask, **kwargs)
        for q, k, v, mask in zip(queries, keys, values, masks, strict=True)
    ]
    attended = torch.cat(attended, dim=1)
    if parts.in_order:
        return attended
    shape = (1, query.shape[2], *attended.shape[2:])
    return attended.new_zeros(shape).index_copy(1, parts.token, attended)


def seen_states(parts: Parts, states: Tensor) -> Tensor:
    """Of keys or values (B, G, S, D), those that parts see, one part after another, (M, G, D)."""
    if not states.requires_grad:
        return states[parts.row, :, parts.seen]
    # The gradient of that would be added up in an order that no run repeats.
    every = states.transpose(1, 2).flatten(0, 1)
    return every.index_select(0, parts.row * states.shape[2] + parts.seen)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query (B, H, Q, D), key and value (B, G, S, D), mask (B, 1, Q, S) -> (B, Q, H, D)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attention_mask = attention_mask.repeat(1, 1, repeats, 1)
    return groups_attend(query, key, value, attention_mask, **kwargs), None


def groups_attend(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs
) -> Tensor:
    """The same, of a mask (B, 1, Q H / G, S) for all queries of a group."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    query = query.reshape(rows, groups, -1, width)
    attended, _ = sdpa_attention_forward(NO_GROUPS, query, key, value, attention_mask, **kwargs)
    attended = attended.view(rows, heads // groups, length, groups, -1)
    return attended.permute(0, 2, 3, 1, 4).reshape(rows, length, heads, -1)


for name, attend in ((BY_ROWS, sdpa_attention_forward), (GROUPED, grouped_attention)):
    AttentionInterface.register(name, attention_of_pass(attend))
    AttentionMaskInterface.register(name, sdpa_mask)


@contextmanager
def for_last_queries(attention: torch.nn.Module, num_queries: int) -> Iterator[None]:
    """For a while, a layer that attends by one of OURS does so for rows' last tokens alone."""
    attention.num_queries = num_queries
    try:
        yield
    finally:
        del attention.num_queries


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """For a while, a model attends by `name` if it does by `sdpa` and that can be changed."""
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
