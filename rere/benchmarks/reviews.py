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
"""Lines written at a time."""

LETTERS = np.array(list("etaoinshrdlucmfwypvbgk"))


class Size(NamedTuple):
    """Numbers of rows; the defaults are about those of Amazon's Toys_and_Games, 5-core."""

    reviews: int = 2_000_000
    metadata: int = 600_000

    @property
    def users(self) -> int:
        return max(1, self.reviews // 9)

    @property
    def items(self) -> int:
        """Items with reviews; more items have metadata."""
        return max(1, self.metadata // 8)


def write_reviews(folder: Path, category: str, size: Size, seed: int) -> int:
    """Write both gzipped files of a category into a folder; return their uncompressed bytes.

    Users and items have a long tail. One review in 100 is repeated, one title in 50 has more than
    20 words, and one item in 100 has no title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(LETTERS, random.integers(2, 10))) for _ in range(8000)]
    # Word frequencies follow Zipf's law.
    frequency = 1 / np.arange(2.0, len(words) + 2)
    lengths = random.integers(3, 90, 8000)
    sampled = random.choice(words, lengths.sum(), p=frequency / frequency.sum()).tolist()
    ends = np.cumsum(lengths).tolist()
    texts = [" ".join(sampled[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    return sum(
        write_lines(folder / name, lines)
        for name, lines in (
            (f"{category}_5.json.gz", make_reviews(size, texts, random)),
            (f"meta_{category}.json.gz", make_metadata(size, words, texts, random)),
        )
    )


def make_reviews(size: Size, texts: list[str], random: np.random.Generator) -> Iterator[str]:
    """Yield reviews as JSON lines with Amazon's keys."""
    count = size.reviews
    users = (size.users * random.beta(0.8, 1.6, count)).astype(int)
    items = (size.items * random.beta(0.4, 1.6, count)).astype(int)
    days = FIRST_DAY + (DAYS * random.beta(4, 1, count)).astype(int)
    is_repeat = random.random(count) < 0.01
    for column in (users, items, days):
        column[1:][is_repeat[1:]] = column[:-1][is_repeat[1:]]
    picks = random.integers(0, len(texts), (count, 2))
    for user, item, day, (text, other) in iterate_rows(users, items, days, picks):
        yield (
            f'{{"overall": 5.0, "verified": true, "reviewTime": "10 3, 2016", '
            f'"reviewerID": "{reviewer_id(user)}", "asin": "{asin(item)}", '
            f'"style": {{"Color:": " Blue"}}, "reviewerName": "J. \\"Jay\\" Doe", '
            f'"reviewText": "{texts[text]}", "summary": "{texts[other][:40]}", '
            f'"unixReviewTime": {day * DAY}}}\n'
        )


def make_metadata(
    size: Size, words: list[str], texts: list[str], random: np.random.Generator
) -> Iterator[str]:
    """Yield metadata as JSON lines with Amazon's keys."""
    lengths = np.where(
        random.random(size.metadata) < 0.02, 25, random.integers(3, 16, size.metadata)
    )
    picks = random.integers(0, len(texts), (size.metadata, 4))
    starts = random.integers(0, len(words) - 25, size.metadata)
    for item, (length, start, numbers) in enumerate(iterate_rows(lengths, starts, picks)):
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


def iterate_rows(*columns: np.ndarray) -> Iterator[tuple]:
    """Yield the rows of equally long columns, converted to Python numbers chunk by chunk."""
    for start in range(0, len(columns[0]), CHUNK):
        yield from zip(*(column[start : start + CHUNK].tolist() for column in columns), strict=True)


def reviewer_id(number: int) -> str:
    return f"A{number * 2_654_435_761 % 2**52:013X}"


def asin(number: int) -> str:
    return f"B{number * 2_654_435_761 % 10**9:09d}"


def write_lines(path: Path, lines: Iterator[str]) -> int:
    """Write lines to a gzipped file; return their uncompressed bytes."""
    written = 0
    with igzip.open(path, "wb") as file:
        while chunk := "".join(itertools.islice(lines, CHUNK)).encode():
            written += file.write(chunk)
    return written
