"""transformers' `generate`, constrained to the catalogue by a logits processor.

Only its public interface is used. The processor is cheap beside the model: it looks up all beams
at once in a token-level tree on the model's device.

B rows, K beams, T tokens generated so far, F children of a node, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from rere.engine.search.generate import FILLER, generate_tokens


@dataclass(frozen=True)
class TokenTree:
    """A prefix tree with one node per token, numbered level by level from the root, 0.

    The children of `n` are the nodes `first_child[n] .. first_child[n + 1] - 1`, sorted by token.
    So the pairs `parent * vocab_size + token` are sorted, and a binary search finds a child.
    N nodes; all i64.
    """

    token: Tensor  # (N,), 0 at the root
    first_child: Tensor  # (N + 1,)
    pair: Tensor  # (N - 1,), of nodes 1 to N - 1
    vocab_size: int
    fanout: tuple[int, ...]
    """Most children of a node at each depth; on the host, to avoid synchronisations."""
    longest: int

    @classmethod
    def build(
        cls,
        sequences: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Build the tree of sequences that all end in the same end-of-sequence token."""
        length = np.fromiter(map(len, sequences), np.int64, len(sequences))
        table = np.full((len(sequences), length.max()), -1)
        table[np.arange(table.shape[1]) < length[:, None]] = np.concatenate(sequences)
        # The level of a node is its depth; np.unique sorts a level by parent, then by token.
        node, num_nodes, levels, fanout = np.zeros(len(table), dtype=np.int64), 1, [], []
        for column in table.T:
            continues = column >= 0
            pair = node[continues] * vocab_size + column[continues]
            level, number = np.unique(pair, return_inverse=True)
            levels.append(level)
            fanout.append(int(np.unique(level // vocab_size, return_counts=True)[1].max()))
            node[continues] = num_nodes + number
            num_nodes += len(level)
        pair = np.concatenate(levels)
        first_child = 1 + np.searchsorted(pair // vocab_size, np.arange(num_nodes + 1))
        return cls(
            token=torch.tensor(np.append(0, pair % vocab_size), device=device),
            first_child=torch.tensor(first_child, device=device),
            pair=torch.tensor(pair, device=device),
            vocab_size=vocab_size,
            fanout=(*fanout, 0),
            longest=int(length.max()),
        )


class TreeProcessor(LogitsProcessor):
    """Set the scores of tokens that continue no sequence of the tree to -inf."""

    def __init__(self, tree: TokenTree, prompt_length: int) -> None:
        self.tree, self.prompt_length = tree, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B K, L + T), scores (B K, V) -> (B K, V)."""
        tree, generated = self.tree, input_ids[:, self.prompt_length :]
        node = torch.zeros_like(input_ids[:, 0])
        # `generate` may have reordered its beams, so each step walks down from the root.
        for token in generated.T:
            pair = node * tree.vocab_size + token
            index = torch.searchsorted(tree.pair, pair).clamp(max=len(tree.pair) - 1)
            node = torch.where((tree.pair[index] == pair) & (node >= 0), index + 1, -1)
        first, end = (tree.first_child[node.clamp(min=0) + i] for i in (0, 1))
        child = first[:, None] + torch.arange(tree.fanout[generated.shape[1]], device=node.device)
        exists = (child < end[:, None]) & (node >= 0)[:, None]
        token = tree.token[child.where(exists, 0)]
        allowed = scores.gather(1, token).masked_fill(~exists, -torch.inf)
        # amax, since entries without a child share a token with others.
        return torch.full_like(scores, -torch.inf).scatter_reduce(1, token, allowed, "amax")


def generate(
    model: PreTrainedModel,
    tree: TokenTree,
    eos: int,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    return_scores: bool = False,
) -> tuple[list[list[list[int]]], list[list[float]] | None]:
    """Return the `num_beams` best token sequences of each prompt, unpadded, and their scores.

    `tree` is on the model's device. Scores cost memory and are None without `return_scores`; rows
    may then contain filler. One beam, greedy decoding, has no scores.
    """
    length = max(map(len, prompts))
    found, scores = generate_tokens(
        model, prompts, eos, tree.longest, [TreeProcessor(tree, length)], num_beams, return_scores
    )
    found = found.tolist()
    found = [tokens[: tokens.index(eos) + 1] if eos in tokens else [] for tokens in found]
    rows = [found[start : start + num_beams] for start in range(0, len(found), num_beams)]
    if not return_scores:
        return rows, None
    scores = scores.view(len(prompts), num_beams).tolist()
    kept = [sum(score > FILLER for score in row) for row in scores]
    return (
        [row[:count] for row, count in zip(rows, kept, strict=True)],
        [row[:count] for row, count in zip(scores, kept, strict=True)],
    )
