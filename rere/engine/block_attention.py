"""Attention of a packed row block by block, each over the tokens that it sees.

Behind a prompt of P tokens most of the M nodes do not see one another, but their paths alone. A
mask says so, and products are made before it is looked at: (P + M)^2 of them. Here the prompt
attends to itself. The nodes are taken in the order of a walk through their tree, so that some in a
row have few ancestors, and each block attends to the prompt and the nodes that some of it sees.

B rows, S = P + M tokens, C blocks of Q nodes, N nodes seen by a block, H heads, D wide.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rere.engine.attention import grouped_attention, instead_of_sdpa, of_last

IN_BLOCKS = "sdpa_in_blocks"
BLOCK = 64
"""Nodes of a block."""
MANY_NODES = {"cpu": 256}
"""Nodes of a row from which on blocks are faster, by device; elsewhere all is done at once."""


class Blocks(NamedTuple):
    """Which nodes, in [0, M), attend together, and to which."""

    node: Tensor  # (B, C, Q) i64; the last one again where a block is not full
    seen: Tensor  # (B, C, N) i64, none twice; some that none of the block sees where they are few
    place: Tensor  # (B, M) i64, where `node`, flattened to (B, C Q), has each node


blocks_of_pass: ContextVar[Blocks] = ContextVar("blocks_of_pass")


@contextmanager
def in_blocks(model: PreTrainedModel, ancestors: Tensor) -> Iterator[None]:
    """For a pass of packed rows with many nodes, of `ancestors` (B, M, M) bool.

    Not where layers are computed again for their gradient, which is after this has ended.
    """
    again = model.training and model.is_activation_checkpointing
    if again or ancestors.shape[1] < MANY_NODES.get(ancestors.device.type, torch.inf):
        yield
        return
    token = blocks_of_pass.set(blocks_of(ancestors))
    try:
        with instead_of_sdpa(model, IN_BLOCKS):
            yield
    finally:
        blocks_of_pass.reset(token)


def blocks_of(ancestors: Tensor) -> Blocks:
    """The blocks of nodes with these `ancestors` (B, M, M) bool, themselves included."""
    order = torch.stack([walk(row) for row in ancestors])
    spare = order[:, -1:].expand(-1, -order.shape[1] % BLOCK)
    node = torch.cat([order, spare], dim=1).unflatten(1, (-1, BLOCK))
    sees = gathered(ancestors, node).any(2)
    by_need = sees.int().argsort(dim=-1, descending=True, stable=True)
    return Blocks(node, by_need[..., : sees.sum(-1).max()], order.argsort(-1))


def walk(ancestors: Tensor) -> Tensor:
    """The nodes (M,) of a row, depth first: their ancestors (M, M) as strings of bits, sorted."""
    bits = np.packbits(ancestors.numpy(), axis=1)
    return torch.from_numpy(bits.view(f"S{bits.shape[1]}")[:, 0].argsort(kind="stable"))


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query, key and value (B, H, S, D), mask (B, 1, S, S) -> (B, S, H, D).

    At once for some of the queries, without a mask, and where all tokens are nodes.
    """
    blocks = blocks_of_pass.get()
    num_prompt = key.shape[2] - blocks.place.shape[1]
    if query.shape[2] < key.shape[2] or attention_mask is None or num_prompt == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt, nodes = slice(num_prompt), slice(num_prompt, None)
    of_prompt, _ = sdpa_attention_forward(
        module,
        *(states[:, :, prompt] for states in (query, key, value)),
        attention_mask[:, :, prompt, prompt],
        **kwargs,
    )

    def of_blocks(states: Tensor, index: Tensor) -> Tensor:
        """Nodes' states of (B, H, S, D) in blocks, (B, C, H, X, D)."""
        return gathered(states[:, :, nodes].transpose(1, 2), index).transpose(2, 3)

    def with_prompt(states: Tensor) -> Tensor:
        of_all = states[:, None, :, prompt].expand(-1, blocks.seen.shape[1], -1, -1, -1)
        return torch.cat([of_all, of_blocks(states, blocks.seen)], dim=3).flatten(0, 1)

    attended, _ = grouped_attention(
        module,
        of_blocks(query, blocks.node).flatten(0, 1),
        with_prompt(key),
        with_prompt(value),
        mask_of_blocks(attention_mask[:, 0, nodes], blocks),
        **kwargs,
    )
    attended = attended.unflatten(0, blocks.node.shape[:2]).flatten(1, 2)  # (B, C Q, H, D)
    return torch.cat([of_prompt, gathered(attended, blocks.place)], dim=1), None


def mask_of_blocks(mask: Tensor, blocks: Blocks) -> Tensor:
    """What the mask of the nodes (B, M, S) says of blocks, (B C, 1, Q, P + N)."""
    num_prompt = mask.shape[2] - mask.shape[1]
    mask = gathered(mask, blocks.node)
    index = blocks.seen[:, :, None].expand(-1, -1, mask.shape[2], -1)
    of_nodes = mask[..., num_prompt:].gather(-1, index)
    return torch.cat([mask[..., :num_prompt], of_nodes], dim=-1).flatten(0, 1)[:, None]


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """values[b, index[b, ...]] of values (B, M, ...); its gradient adds up in the index's order."""
    first = values.shape[1] * torch.arange(len(values), device=index.device)
    rows = index + first.view(-1, *(1,) * (index.ndim - 1))
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


AttentionInterface.register(IN_BLOCKS, of_last(block_attention))
AttentionMaskInterface.register(IN_BLOCKS, sdpa_mask)
