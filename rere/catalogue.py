"""The catalogue file of a trained model: ids, titles, prefix tree and fingerprint."""

import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rere.errors import InputError
from rere.files import replacing
from rere.prefix_tree import PrefixTree, node_depths
from rere.tokenization import PromptEncoder

log = logging.getLogger(__name__)

CATALOGUE = "catalogue.safetensors"
"""The file's name in the folder of a trained model."""

ARRAYS = {
    "token": torch.int64,
    "edge": torch.int64,
    "first_child": torch.int64,
    "leaf_of_item": torch.int64,
    "title_bytes": torch.uint8,  # all titles in UTF-8, one after another
    "title_edge": torch.int64,  # (I + 1,) start of each title, and end of the last
    "id_bytes": torch.uint8,  # all raw ids in UTF-8
    "id_edge": torch.int64,  # (I + 1,)
    "max_history": torch.int64,  # (1,)
}
"""The arrays of the file, from which the others of the tree follow."""


@dataclass(frozen=True)
class Catalogue:
    """Raw ids and titles by item id, the titles' prefix tree, and what it was made from."""

    titles: Sequence[str]
    tree: PrefixTree
    fingerprint: str
    """Of the tokenizer and the texts that the tree was made from."""
    ids: Sequence[str]
    """What the raw data call the items; distinct."""
    max_history: int
    """Items of the longest history that the model was trained on."""

    @classmethod
    def build(
        cls,
        encoder: PromptEncoder,
        responses: Sequence[Sequence[int]],
        ids: Sequence[str],
        max_history: int,
    ) -> Self:
        """Return the catalogue of an encoder and its responses, as `with_titles`."""
        tree = with_titles(PrefixTree.build(responses), encoder.titles)
        return cls(encoder.titles, tree, encoder.fingerprint(), ids, max_history)

    def save(self, path: Path) -> None:
        """Write the catalogue to a safetensors file."""
        title_bytes, title_edge = join_text(self.titles)
        id_bytes, id_edge = join_text(self.ids)
        arrays = {
            **vars(self.tree),
            "title_bytes": title_bytes,
            "title_edge": title_edge,
            "id_bytes": id_bytes,
            "id_edge": id_edge,
            "max_history": torch.tensor([self.max_history]),
        }
        arrays = {name: arrays[name] for name in ARRAYS}
        # One entry: safetensors writes several in random order.
        metadata = {"fingerprint": f"{self.fingerprint} {hash_arrays(arrays)}"}
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata)

    @classmethod
    def load(cls, path: Path, vocab_size: int) -> Self:
        """Read the catalogue in a file, for a model of `vocab_size` tokens.

        Raises InputError if there is no file, or one that `save` cannot have written: whatever is
        loaded is safe to search.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; `rere sft`, `rere preference` and `rere rl` write it"
            )
        try:
            with safe_open(path, framework="pt") as file:
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                metadata = file.metadata() or {}
            fingerprint, _, digest = metadata["fingerprint"].partition(" ")
            if not is_catalogue(arrays, vocab_size) or digest != hash_arrays(arrays):
                raise ValueError
            titles = split_text(arrays.pop("title_bytes"), arrays.pop("title_edge"))
            ids = split_text(arrays.pop("id_bytes"), arrays.pop("id_edge"))
            max_history = int(arrays.pop("max_history"))
        except (SafetensorError, KeyError, ValueError):
            raise InputError(f"{path}: not a catalogue; train the model again") from None
        depth = node_depths(arrays["edge"], arrays["first_child"])
        tree = PrefixTree(**arrays, depth=depth, longest=int(depth.max()))
        return cls(titles, with_titles(tree, titles), fingerprint, ids, max_history)


def with_titles(tree: PrefixTree, titles: Sequence[str]) -> PrefixTree:
    """Return the tree of items with these titles, with their shadowed items.

    A leaf stands for the title of its first item. Warns of shadowed titles.
    """
    pairs = find_shadowed(tree.leaf_of_item, titles)
    if pairs:
        item, other = pairs[0]
        log.warning(
            "%d titles have the same tokens as another one and are never recommended, such as item "
            "%d %a (as item %d %a); rename them or take another backbone",
            len({titles[item] for item, _ in pairs}),
            item,
            titles[item],
            other,
            titles[other],
        )
    return replace(tree, shadowed=torch.tensor([item for item, _ in pairs], dtype=torch.int64))


def find_shadowed(leaf_of_item: Tensor, titles: Sequence[str]) -> list[tuple[int, int]]:
    """Return the items whose leaf stands for another title, each with the leaf's first item.

    `leaf_of_item` is (I,) i64, with one title per item.
    """
    _, first, leaf = np.unique(leaf_of_item.numpy(), return_index=True, return_inverse=True)
    others = np.flatnonzero(first[leaf] != np.arange(len(leaf)))
    pairs = zip(others.tolist(), first[leaf[others]].tolist(), strict=True)
    return [(item, other) for item, other in pairs if titles[item] != titles[other]]


def hash_arrays(arrays: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal sha256 of arrays, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].numpy().data)
    return digest.hexdigest()


def is_catalogue(arrays: dict[str, Tensor], vocab_size: int) -> bool:
    """Whether the ARRAYS of a file, with any content, are those of a catalogue."""
    if any(arrays[name].dtype != ARRAYS[name] or arrays[name].dim() != 1 for name in ARRAYS):
        return False
    token, edge, first_child, leaf_of_item, title_bytes, title_edge, id_bytes, id_edge, longest = (
        arrays[name] for name in ARRAYS
    )
    num_nodes = len(edge) - 1
    if not (
        is_nondecreasing(edge, 0, len(token))
        and is_nondecreasing(first_child, 1, num_nodes)
        and is_nondecreasing(title_edge, 0, len(title_bytes))
        and len(first_child) == len(edge)
        and is_nondecreasing(id_edge, 0, len(id_bytes))
        and len(title_edge) == len(id_edge) == len(leaf_of_item) + 1
        and len(longest) == 1
        and int(longest) > 0
    ):
        return False
    nodes, fanout = torch.arange(num_nodes), first_child.diff()
    parent = nodes.repeat_interleave(fanout)  # of the nodes after the root
    first_token = token[edge[1:-1].clamp(max=len(token) - 1)]
    tests = (
        edge.diff()[1:] > 0,
        fanout != 1,
        first_child[:-1] > nodes,  # so every path leads away from the root and ends
        (parent[1:] > parent[:-1]) | (first_token[1:] > first_token[:-1]),
        (token >= 0) & (token < vocab_size),
    )
    has_items = leaf_of_item.unique().equal(nodes[fanout == 0])
    return has_items and len(token) > 0 and all(bool(test.all()) for test in tests)


def is_nondecreasing(edge: Tensor, start: int, end: int) -> bool:
    """Whether `edge` goes from `start` to `end` and never decreases."""
    if not len(edge) or (int(edge[0]), int(edge[-1])) != (start, end):
        return False
    return bool((edge[1:] >= edge[:-1]).all())


def join_text(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return texts in UTF-8 (bytes,) u8, one after another, and their edges (texts + 1,) i64."""
    encoded = [text.encode() for text in texts]
    edge = np.append(0, np.cumsum([len(text) for text in encoded]))
    data = torch.frombuffer(bytearray().join(encoded) or bytearray(1), dtype=torch.uint8)
    return data[: edge[-1]].clone(), torch.from_numpy(edge).long()


def split_text(data: Tensor, edge: Tensor) -> list[str]:
    """Return the texts between `edge` in UTF-8 bytes; raises UnicodeDecodeError."""
    raw = data.numpy().tobytes()
    return [raw[start:end].decode() for start, end in itertools.pairwise(edge.tolist())]
