"""The catalogue's prefix tree: which tokens may follow which, and which items a path ends in."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rere.errors import InputError
from rere.files import replacing
from rere.tokenization import PromptEncoder

CATALOGUE = "catalogue.safetensors"
"""The catalogue's file in the folder of a model that was trained on it."""

ARRAYS = {
    "token": torch.int64,
    "edge": torch.int64,
    "first_child": torch.int64,
    "leaf_of_item": torch.int64,
    "title_bytes": torch.uint8,  # all titles in UTF-8, one after another
    "title_edge": torch.int64,  # (I + 1,) where each of them begins and the last one ends
}
"""What the file holds; the rest follows from it."""


@dataclass(frozen=True)
class PrefixTree:
    """A prefix tree of token sequences in flat arrays, its chains drawn together (a radix tree).

    A node is where sequences part, or a leaf, where they end; the tokens between two nodes lie
    on the edge. Nodes are numbered level by level from the root, 0, so that the children of `n`
    are neighbours, `first_child[n] .. first_child[n + 1] - 1`, in the order of the first tokens
    of their edges. The edge into `n` holds the tokens `token[edge[n] : edge[n + 1]]`, at least
    one but for the root's, which holds what all sequences begin with. A leaf holds the items
    whose sequence ends there, in the order of item id.

    T tokens, N nodes, I items; all i64.
    """

    token: torch.Tensor  # (T,)
    edge: torch.Tensor  # (N + 1,)
    first_child: torch.Tensor  # (N + 1,)
    depth: torch.Tensor  # (N,) tokens from a sequence's start to the end of the node's edge
    leaf_of_item: torch.Tensor  # (I,)
    longest: int
    """Tokens of the longest sequence."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """The tree of one token sequence an item, all ended by the same end-of-sequence token.

        Raises InputError for an empty catalogue, and for a sequence that another one continues
        (it would end on an edge and could never be told apart).
        """
        if not sequences:
            raise InputError("the catalogue is empty; there is nothing to recommend")
        length = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter(itertools.chain.from_iterable(sequences), np.int64, length.sum())
        start = length.cumsum() - length
        order, rank = sort_distinct(flat, start, length)
        start, length = start[order], length[order]
        shared = shared_prefix(flat, start, length)
        continued = np.flatnonzero(shared[1:-1] == length[:-1])
        if len(continued):
            item = order[continued[0]]
            raise InputError(f"item {item}: another item's tokens begin with all of its")

        # Level by level: a node is a run low .. high - 1 of the sorted sequences, those below it.
        low, high, above = np.array([0]), np.array([len(order)]), np.array([0])
        edge_starts, depths, edge_lengths, fanouts = [], [], [], []
        leaf = np.empty(len(order), dtype=np.int64)
        num_nodes = 0
        while len(low):
            size = high - low
            least_shared = np.minimum.reduceat(shared, np.stack([low + 1, high], axis=1).ravel())
            depth = np.where(size == 1, length[low], least_shared[::2])
            leaf[low[size == 1]] = num_nodes + np.flatnonzero(size == 1)
            edge_starts.append(start[low] + above)
            edge_lengths.append(depth - above)
            depths.append(depth)
            num_nodes += len(low)

            # A run parts wherever neighbours share no more than all of the run do.
            node = np.repeat(np.arange(len(low)), np.where(size > 1, size, 0))
            place = ranges(low[size > 1], size[size > 1])
            parts = (place == low[node]) | (shared[place] == depth[node])
            parent, begin = node[parts], place[parts]
            fanouts.append(np.bincount(parent, minlength=len(low)))
            is_last = np.append(parent[1:] != parent[:-1], True)[: len(parent)]
            low, high = begin, np.where(is_last, high[parent], np.roll(begin, -1))
            above = depth[parent]

        edge_length = np.concatenate(edge_lengths)
        return cls(
            token=torch.from_numpy(flat[ranges(np.concatenate(edge_starts), edge_length)]),
            edge=torch.from_numpy(np.append(0, edge_length.cumsum())),
            first_child=torch.from_numpy(1 + np.append(0, np.concatenate(fanouts).cumsum())),
            depth=torch.from_numpy(np.concatenate(depths)),
            leaf_of_item=torch.from_numpy(leaf[rank]),
            longest=int(length.max()),
        )

    @cached_property
    def length(self) -> torch.Tensor:
        """The tokens on the edge into each node, (N,)."""
        return self.edge.diff()

    @cached_property
    def fanout(self) -> torch.Tensor:
        """The children of each node, (N,); 0 of a leaf."""
        return self.first_child.diff()

    @cached_property
    def parent(self) -> torch.Tensor:
        """The node above each one, (N,); the root above itself."""
        node = torch.arange(len(self.fanout), device=self.fanout.device)
        return torch.cat([node[:1], node.repeat_interleave(self.fanout)])

    def children(self, node: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The children (..., most) i64 of each `node` (...), and where there is one, bool.

        0, the root, stands where there is none. No node may have more than `most`.
        """
        number = torch.arange(most, device=node.device)
        exists = number < self.fanout[node][..., None]
        return (self.first_child[node][..., None] + number).where(exists, 0), exists

    @cached_property
    def num_levels(self) -> int:
        """How many nodes the longest way from the root to a leaf has, both included."""
        levels, end = 1, 1
        while end < len(self.fanout):
            levels, end = levels + 1, int(self.first_child[end])
        return levels

    @cached_property
    def eos(self) -> int:
        """The token that ends every sequence; the last node is a leaf."""
        return int(self.token[-1])

    @cached_property
    def opening(self) -> int:
        """How many tokens all sequences begin with: those on the root's edge."""
        return int(self.edge[1])

    @cached_property
    def first_fanout(self) -> int:
        """The children of the root; 0 if it is the only leaf."""
        return int(self.first_child[1]) - 1

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its arrays on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {k: v.to(device) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)

    @cached_property
    def leaf_items(self) -> dict[int, list[int]]:
        """The item ids of each leaf, several where titles coincide, in the order of item id."""
        leaves: dict[int, list[int]] = {}
        for item, leaf in enumerate(self.leaf_of_item.tolist()):
            leaves.setdefault(leaf, []).append(item)
        return leaves

    @cached_property
    def first_item(self) -> torch.Tensor:
        """Each leaf's first item, (N,) i64 on the tree's device; -1 at nodes that are no leaf."""
        items = torch.arange(len(self.leaf_of_item), device=self.leaf_of_item.device)
        none = torch.full_like(self.depth, len(items))
        first = none.scatter_reduce(0, self.leaf_of_item, items, "amin")
        return first.masked_fill(first == len(items), -1)


@dataclass(frozen=True)
class Catalogue:
    """The titles by item id, their tree, and the fingerprint of what the tree was made from."""

    titles: Sequence[str]
    tree: PrefixTree
    fingerprint: str

    @classmethod
    def build(cls, encoder: PromptEncoder, responses: Sequence[Sequence[int]]) -> Self:
        """The catalogue of an encoder and its responses."""
        return cls(encoder.titles, PrefixTree.build(responses), encoder.fingerprint())

    def save(self, path: Path) -> None:
        """Write the catalogue as one safetensors file."""
        titles = [title.encode() for title in self.titles]
        edge = np.append(0, np.cumsum([len(title) for title in titles]))
        arrays = {
            **vars(self.tree),
            "title_bytes": torch.frombuffer(bytearray().join(titles), dtype=torch.uint8),
            "title_edge": torch.from_numpy(edge),
        }
        with replacing(path) as temporary:
            save_file(
                {name: arrays[name] for name in ARRAYS},
                temporary,
                metadata={"fingerprint": self.fingerprint},
            )

    @classmethod
    def load(cls, path: Path, vocab_size: int) -> Self:
        """The catalogue in a file, for a model of `vocab_size` tokens.

        Raises InputError where there is none, and for a file that `save` does not write: no
        content of it can make a search fail.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; `rere sft` and `rere rl` write it")
        try:
            with safe_open(path, framework="pt") as file:
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                fingerprint = (file.metadata() or {})["fingerprint"]
            if not is_catalogue(arrays, vocab_size):
                raise ValueError
            titles = split_text(arrays.pop("title_bytes"), arrays.pop("title_edge"))
        except (SafetensorError, KeyError, ValueError):
            raise InputError(f"{path}: not a catalogue; train the model again") from None
        depth = depths(arrays["edge"], arrays["first_child"])
        return cls(titles, PrefixTree(**arrays, depth=depth, longest=int(depth.max())), fingerprint)


def sort_distinct(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first of each distinct sequence in lexicographic order, and everyone's rank in it."""
    raw = flat.astype(">u4").tobytes()  # big-endian, bytes sort as the tokens do
    bounds = zip(start.tolist(), (start + length).tolist(), strict=True)
    keys = [raw[4 * begin : 4 * end] for begin, end in bounds]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    is_new = [True, *(keys[a] != keys[b] for a, b in itertools.pairwise(order))]
    order, is_new = np.array(order), np.array(is_new)
    rank = np.empty_like(order)
    rank[order] = is_new.cumsum() - 1
    return order[is_new], rank


def shared_prefix(flat: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """How many tokens each sequence begins like the one before; 0 before the first and after."""
    shared = np.zeros(len(start) + 1, dtype=np.int64)
    alike = np.arange(1, len(start))
    while len(alike):
        depth = shared[alike]
        goes_on = depth < np.minimum(length[alike - 1], length[alike])
        alike, depth = alike[goes_on], depth[goes_on]
        alike = alike[flat[start[alike - 1] + depth] == flat[start[alike] + depth]]
        shared[alike] += 1
    return shared


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0] .. start[0] + length[0] - 1, start[1] .., one after another."""
    return np.arange(length.sum()) + np.repeat(start - (length.cumsum() - length), length)


def is_catalogue(arrays: dict[str, torch.Tensor], vocab_size: int) -> bool:
    """Whether the ARRAYS of a file, which may hold anything, are those of a catalogue."""
    if any(arrays[name].dtype != ARRAYS[name] or arrays[name].dim() != 1 for name in ARRAYS):
        return False
    token, edge, first_child, leaf_of_item, title_bytes, title_edge = map(arrays.get, ARRAYS)
    num_nodes = len(edge) - 1
    if not (
        rises(edge, 0, len(token))
        and rises(first_child, 1, num_nodes)
        and rises(title_edge, 0, len(title_bytes))
        and len(first_child) == len(edge)
        and len(title_edge) == len(leaf_of_item) + 1
    ):
        return False
    nodes, fanout = torch.arange(num_nodes), first_child.diff()
    parent = nodes.repeat_interleave(fanout)  # of the nodes after the root
    begins_with = token[edge[1:-1].clamp(max=len(token) - 1)]
    tests = (
        edge.diff()[1:] > 0,
        fanout != 1,
        first_child[:-1] > nodes,  # so every path leads away from the root and ends
        (parent[1:] > parent[:-1]) | (begins_with[1:] > begins_with[:-1]),
        (token >= 0) & (token < vocab_size),
    )
    has_items = leaf_of_item.unique().equal(nodes[fanout == 0])
    return has_items and len(token) > 0 and all(bool(test.all()) for test in tests)


def rises(edge: torch.Tensor, start: int, end: int) -> bool:
    """Whether `edge` goes from `start` to `end` and never down."""
    if not len(edge) or (int(edge[0]), int(edge[-1])) != (start, end):
        return False
    return bool((edge[1:] >= edge[:-1]).all())


def depths(edge: torch.Tensor, first_child: torch.Tensor) -> torch.Tensor:
    """The tokens from the start to the end of each node's edge, (N,).

    Each round adds what an ancestor has gathered and goes on from that one's, twice as far up.
    """
    depth = edge.diff()
    opening, depth[0] = int(depth[0]), 0
    ancestor = torch.arange(len(depth)).repeat_interleave(first_child.diff())
    ancestor = torch.cat([ancestor.new_zeros(1), ancestor])
    while ancestor.any():
        depth, ancestor = depth + depth[ancestor], ancestor[ancestor]
    return depth + opening


def split_text(data: torch.Tensor, edge: torch.Tensor) -> list[str]:
    """The texts whose UTF-8 bytes lie one after another; raises UnicodeDecodeError."""
    raw = data.numpy().tobytes()
    return [raw[start:end].decode() for start, end in itertools.pairwise(edge.tolist())]
