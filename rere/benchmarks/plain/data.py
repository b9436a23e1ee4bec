"""Preprocessing in plain Python: the rules of `rere.data` with dictionaries and loops.

It reads line by line and drops rows as early as possible, as one would without data frames.
"""

import gzip
import html
import json
from collections import Counter, defaultdict
from pathlib import Path

from rere.config.data import Amazon2018
from rere.data.filtering import start_of_day, year_before

Events = list[tuple[str, str, int]]
Row = tuple[int, int, list[int], int, int]


def read(folder: Path, category: str) -> tuple[Events, list[tuple[str, str | None]]]:
    """Read events and titles from a category's gzipped files of Amazon's 2018 release."""
    events, titles = [], []
    with gzip.open(folder / f"{category}_5.json.gz", "rt", encoding="utf-8") as file:
        for line in file:
            review = json.loads(line)
            events.append((review["reviewerID"], review["asin"], review["unixReviewTime"]))
    with gzip.open(folder / f"meta_{category}.json.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            titles.append((record["asin"], record.get("title")))
    return events, titles


def split(
    events: Events, titles: list[tuple[str, str | None]], rules: Amazon2018
) -> tuple[list[str], list[list[Row]]]:
    """Return titles in the order of item ids, and the rows of train, valid and test."""
    start, end, core = rules.start, start_of_day(rules.end), rules.core
    max_words, max_history = rules.max_title_words, rules.max_history
    title_of: dict[str, str] = {}
    for item, raw in titles:
        title = clean(raw)
        if title is not None and len(title.split()) <= max_words:
            title_of[item] = min(title, title_of.get(item, title))
    titled = [event for event in events if event[1] in title_of and event[2] < end]
    earliest = min(time for _, _, time in events)
    while True:
        kept = [event for event in titled if event[2] >= start_of_day(start)]
        while True:
            users = Counter(user for user, _, _ in kept)
            items = Counter(item for _, item, _ in kept)
            fewer = [e for e in kept if users[e[0]] >= core and items[e[1]] >= core]
            if len(fewer) == len(kept):
                break
            kept = fewer
        if len(items) >= rules.min_items or start_of_day(start) <= earliest:
            break
        start = year_before(start)
    user_ids = {user: number for number, user in enumerate(sorted(users))}
    item_ids = {item: number for number, item in enumerate(sorted(items))}
    sequences = defaultdict(list)
    for user, item, time in kept:
        user, item = user_ids[user], item_ids[item]
        sequences[user].append((time, split_mix(user << 32 | item), item))
    rows = []
    for user, sequence in sequences.items():
        sequence.sort()
        items_of_user = [item for _, _, item in sequence]
        for position in range(1, len(sequence)):
            history = items_of_user[max(0, position - max_history) : position]
            rows.append((sequence[position][0], user, position, history, items_of_user[position]))
    rows.sort(key=lambda row: row[:3])
    rows = [(n, user, past, item, time) for n, (time, user, _, past, item) in enumerate(rows)]
    train, valid = 8 * len(rows) // 10, 9 * len(rows) // 10
    splits = [rows[:train], rows[train:valid], rows[valid:]]
    return [title_of[item] for item in item_ids], splits


def clean(title: str | None) -> str | None:
    """Clean an ASCII title without markup as `rere.data.titles` does; None if that rejects it."""
    title = unquote(html.unescape(unquote(title or "")))
    return None if len(title) <= 1 or len(title) > 1000 or "<span id" in title else title


def unquote(title: str) -> str:
    title = " ".join(title.split())
    is_quoted = len(title) > 1 and title[0] == title[-1] == '"' and '"' not in title[1:-1]
    return title[1:-1].strip() if is_quoted else title


def split_mix(key: int) -> int:
    """Apply the finaliser of SplitMix64, as `rere.data.splitting.shuffle_key` does."""
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    return key ^ key >> 31
