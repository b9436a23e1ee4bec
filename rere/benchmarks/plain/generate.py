"""What the search is measured against: transformers' `generate`, held to the catalogue.

Everything public: its own beam search with a logits processor. The processor costs little beside
the model, looking up all beams at once in a token-level tree on the model's device.

B rows, K beams, T tokens generated so far, F children of a node, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from rere.engine.search.generate import FILLER, generate_tokens


@dataclass(frozen=True)
class TokenTree:
    """A prefix tree of token sequences, a node a token, numbered level by level from the root, 0.

    The children of `n` are the nodes `first_child[n] .. first_child[n + 1] - 1`, in the order of
    their tokens, so the pairs (parent, token), each the number `parent * vocab_size + token`,
    are sorted and a binary search finds the way down. N nodes; all i64.
    """

    token: Tensor  # (N,), 0 at the root
    first_child: Tensor  # (N + 1,)
    pair: Tensor  # (N - 1,), those of nodes 1 ..
    vocab_size: int
    fanout: tuple[int, ...]
    """The most children that a node of each depth has; on the host, to spare synchronisations."""
    longest: int

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], vocab_size: int) -> Self:
        """The tree of sequences that all end in the same end-of-sequence token."""
        length = np.fromiter(map(len, sequences), np.int64, len(sequences))
        table = np.full((len(sequences), length.max()), -1)
        table[np.arange(table.shape[1]) < length[:, None]] = np.concatenate(sequences)
        table = table[np.lexsort(table.T[::-1])]

        # Rows are sorted, so a node of depth d starts wherever the first d tokens change.
        tokens, parents, fanout = [np.array([0])], [], []
        node_of_row = np.zeros(len(table), dtype=np.int64)
        is_new = np.arange(len(table)) == 0
        num_nodes = 1
        for column in table.T:
            is_new[1:] |= column[1:] != column[:-1]
            starts = is_new & (column >= 0)
            tokens.append(column[starts])
            parents.append(node_of_row[starts])
            fanout.append(int(np.bincount(parents[-1]).max()))
            node_of_row = np.where(column >= 0, num_nodes + starts.cumsum() - 1, node_of_row)
            num_nodes += len(tokens[-1])
        token, parent = np.concatenate(tokens), np.concatenate(parents)
        return cls(
            token=torch.from_numpy(token),
            first_child=torch.from_numpy(1 + np.searchsorted(parent, np.arange(num_nodes + 1))),
            pair=torch.from_numpy(parent * vocab_size + token[1:]),
            vocab_size=vocab_size,
            fanout=(*fanout, 0),
            longest=int(length.max()),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its arrays on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if name in ARRAYS}
        return replace(self, **tensors)


ARRAYS = ("token", "first_child", "pair")


class TreeProcessor(LogitsProcessor):
    """-inf for what no sequence of the tree continues with."""

    def __init__(self, tree: TokenTree, prompt_length: int) -> None:
        self.tree, self.prompt_length = tree, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B K, L + T), scores (B K, V) -> (B K, V)."""
        tree, generated = self.tree, input_ids[:, self.prompt_length :]
        node = torch.zeros_like(input_ids[:, 0])
        # `generate` reorders its beams without a word, so each step walks down from the root.
        for token in generated.T:
            pair = node * tree.vocab_size + token
            at = torch.searchsorted(tree.pair, pair).clamp(max=len(tree.pair) - 1)
            node = torch.where((tree.pair[at] == pair) & (node >= 0), at + 1, -1)
        first, end = (tree.first_child[node.clamp(min=0) + i] for i in (0, 1))
        child = first[:, None] + torch.arange(tree.fanout[generated.shape[1]], device=node.device)
        exists = (child < end[:, None]) & (node >= 0)[:, None]
        token = tree.token[child.where(exists, 0)]
        allowed = scores.gather(1, token).masked_fill(~exists, -torch.inf)
        # amax, since places without a child share a token with others.
        return torch.full_like(scores, -torch.inf).scatter_reduce(1, token, allowed, "amax")


def generate(
    model: PreTrainedModel,
    tree: TokenTree,
    eos: int,
    prompts: Sequence[Sequence[int]],
    num_beams: int,
    scored: bool = False,
) -> tuple[list[list[list[int]]], list[list[float]] | None]:
    """The `num_beams` best token sequences of each prompt, without padding, and their scores.

    `tree` lies on the model's device. Without `scored` there are no scores, nor what keeping them
    costs, and rows may hold filler; with them filler is left out. Greedy decoding, one beam,
    has none.
    """
    length = max(map(len, prompts))
    found, scores = generate_tokens(
        model, prompts, eos, tree.longest, [TreeProcessor(tree, length)], num_beams, scored
    )
    found = found.tolist()
    found = [tokens[: tokens.index(eos) + 1] if eos in tokens else [] for tokens in found]
    rows = [found[start : start + num_beams] for start in range(0, len(found), num_beams)]
    if not scored:
        return rows, None
    scores = scores.view(len(prompts), num_beams).tolist()
    kept = [sum(score > FILLER for score in row) for row in scores]
    return (
        [row[:count] for row, count in zip(rows, kept, strict=True)],
        [row[:count] for row, count in zip(scores, kept, strict=True)],
    )
