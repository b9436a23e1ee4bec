"""Rankings of items: their type, their batches, and items with equal tokens."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol, Self

import numpy as np

from rere.errors import out_of_memory
from rere.ranks import ALONE, Ranks

Ranking = tuple[list[int], list[float]]
"""Items, best first, and their scores."""


class Ranker(Protocol):
    """A model that ranks the allowed items of its catalogue after histories."""

    def only(self, items: Sequence[int]) -> Self:
        """A ranker of these of the allowed items, in ascending order, and no others."""

    def with_titles(self, titles: Sequence[str]) -> Self:
        """A ranker of new items; raises InputError if the model cannot rank them untrained."""

    def numbers_of(self, items: Sequence[int]) -> np.ndarray:
        """The numbers of items among the allowed ones, (items,) i64; -1 for those not allowed."""

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        excluded: Sequence[Collection[int]],
        top: int,
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, Ranking]]:
        """Yield each row's number and its `top` allowed items, without those the row excludes.

        Histories have items, oldest first. Rows come in any order. A row that excludes all items
        has none.
        """


def rank_by_length(
    prompts: Sequence[Sequence[int]],
    rows: Iterable[int],
    batch_size: int,
    rank: Callable[[list[int]], Iterable[Ranking]],
    remedy: str,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[int, Ranking]]:
    """Yield the number and the ranking of each of the `rows`; `rank` ranks a batch of them.

    Rows with prompts of similar length share a batch, which keeps padding small. Batches are dealt
    out to the `ranks`. Raises InputError if memory runs out; its remedy is a lower `batch_size`,
    followed by `remedy`.
    """
    order = sorted(rows, key=lambda row: len(prompts[row]))
    for start in ranks.deal(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        with out_of_memory(f"lower batch_size (now {batch_size} rows per pass){remedy}"):
            ranked = list(rank(batch))
        yield from zip(batch, ranked, strict=True)


def rank_leaves(
    leaves: Sequence[int], scores: Sequence[float], items_of: Callable[[int], list[int]]
) -> Ranking:
    """The items of a row's leaves, best leaf first, each with its leaf's score.

    Negative leaves are padding. `items_of` gives the items that a leaf ranks, in order of item id.
    """
    pairs = [
        (item, score)
        for leaf, score in zip(leaves, scores, strict=True)
        if leaf >= 0
        for item in items_of(leaf)
    ]
    return [item for item, _ in pairs], [score for _, score in pairs]


def with_first_title(items: Sequence[int], titles: Sequence[str]) -> list[int]:
    """The items of a leaf that a search ranks: those with the title of the first.

    Different titles may have the same tokens. A beam is one title, so it ranks one of them.
    """
    return [item for item in items if titles[item] == titles[items[0]]]
