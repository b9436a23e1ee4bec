"""Synthetic reviews and metadata in the files of Amazon's 2018 release, of any size."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import igzip

DAY = 86_400
FIRST_DAY, DAYS = 951_868_800 // DAY, 6_850  # 1 March 2000 to the end of November 2018
CHUNK = 100_000
"""Lines made and written at a time."""

LETTERS = np.array(list("etaoinshrdlucmfwypvbgk"))


class Size(NamedTuple):
    """How much there is: with the defaults, about Amazon's Toys_and_Games, 5-core."""

    reviews: int = 2_000_000
    metadata: int = 600_000

    @property
    def users(self) -> int:
        return max(1, self.reviews // 9)

    @property
    def items(self) -> int:
        """Items that have reviews; more have metadata."""
        return max(1, self.metadata // 8)


def write_reviews(folder: Path, category: str, size: Size, seed: int) -> int:
    """Write both files of a category, gzipped, into a folder; returns their bytes unpacked.

    Users and items are drawn with a long tail; every hundredth review comes twice, every fiftieth
    title is longer than twenty words, and every hundredth item has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(LETTERS, random.integers(2, 10))) for _ in range(8000)]
    # As in language, a word's frequency falls with its rank (Zipf).
    frequency = 1 / np.arange(2.0, len(words) + 2)
    lengths = random.integers(3, 90, 8000)
    drawn = random.choice(words, lengths.sum(), p=frequency / frequency.sum()).tolist()
    ends = np.cumsum(lengths).tolist()
    texts = [" ".join(drawn[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    return sum(
        write_lines(folder / name, lines)
        for name, lines in (
            (f"{category}_5.json.gz", reviews(size, texts, random)),
            (f"meta_{category}.json.gz", metadata(size, words, texts, random)),
        )
    )


def reviews(size: Size, texts: list[str], random: np.random.Generator) -> Iterator[str]:
    """JSON lines of reviews, keys as Amazon has them."""
    count = size.reviews
    users = (size.users * random.beta(0.8, 1.6, count)).astype(int)
    items = (size.items * random.beta(0.4, 1.6, count)).astype(int)
    days = FIRST_DAY + (DAYS * random.beta(4, 1, count)).astype(int)
    again = random.random(count) < 0.01
    for column in (users, items, days):
        column[1:][again[1:]] = column[:-1][again[1:]]
    picks = random.integers(0, len(texts), (count, 2))
    for user, item, day, (text, other) in chunked(users, items, days, picks):
        yield (
            f'{{"overall": 5.0, "verified": true, "reviewTime": "10 3, 2016", '
            f'"reviewerID": "{reviewer(user)}", "asin": "{asin(item)}", '
            f'"style": {{"Color:": " Blue"}}, "reviewerName": "J. \\"Jay\\" Doe", '
            f'"reviewText": "{texts[text]}", "summary": "{texts[other][:40]}", '
            f'"unixReviewTime": {day * DAY}}}\n'
        )


def metadata(
    size: Size, words: list[str], texts: list[str], random: np.random.Generator
) -> Iterator[str]:
    """JSON lines of metadata, keys as Amazon has them."""
    lengths = np.where(
        random.random(size.metadata) < 0.02, 25, random.integers(3, 16, size.metadata)
    )
    picks = random.integers(0, len(texts), (size.metadata, 4))
    starts = random.integers(0, len(words) - 25, size.metadata)
    for item, (length, start, numbers) in enumerate(chunked(lengths, starts, picks)):
        title = f"{' '.join(words[start : start + length])}{' &amp;' * (item % 8 == 0)} {item}"
        record = {
            "category": ["Toys & Games", "Games"],
            "description": [texts[number] for number in numbers[:3]],
            **({} if item % 100 == 99 else {"title": title}),
            "feature": [texts[numbers[3]]],
            "also_buy": [asin(number) for number in numbers],
            "rank": [">#1,234 in Toys & Games"],
            "price": "$9.99",
            "asin": asin(item),
        }
        yield f"{json.dumps(record)}\n"


def chunked(*columns: np.ndarray) -> Iterator[tuple]:
    """The rows of columns of one length; Python's own numbers, of which memory holds few."""
    for start in range(0, len(columns[0]), CHUNK):
        yield from zip(*(column[start : start + CHUNK].tolist() for column in columns), strict=True)


def reviewer(number: int) -> str:
    return f"A{number * 2_654_435_761 % 2**52:013X}"


def asin(number: int) -> str:
    return f"B{number * 2_654_435_761 % 10**9:09d}"


def write_lines(path: Path, lines: Iterator[str]) -> int:
    """Gzip lines into a file; returns their bytes."""
    written = 0
    with igzip.open(path, "wb") as file:
        while chunk := "".join(itertools.islice(lines, CHUNK)).encode():
            written += file.write(chunk)
    return written
