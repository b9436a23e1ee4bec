"""Write raw files as each source has them, of any size, with broken lines if asked.

An event is (user, item, UTC seconds). Titles map items to titles, or None.
"""

import csv
import gzip
import io
import json
import random
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rere.config.data import Amazon2018, Amazon2023, MovieLens, OwnTables, Rules, Yelp

Events = list[tuple[str, str, int]]
Titles = dict[str, str | None]
Places = dict[str, tuple[str, str, str]]

CATEGORY = "Toys_and_Games"
OPTIONS: dict[str, Rules] = {
    "ml-100k": MovieLens(),
    "ml-1m": MovieLens(source="ml-1m"),
    "ml-20m": MovieLens(source="ml-20m"),
    "amazon-2018": Amazon2018(category=CATEGORY, start=None, end=None, min_items=None),
    "amazon-2023": Amazon2023(category=CATEGORY),
    "yelp": Yelp(start=None, end=None, title="name"),
    "table": OwnTables(),
}
"""Options of each source, without a window of time."""

BROKEN = (
    '{"user_id": "u", "reviewerID": "u", "asin": "i"',  # cut short
    "not JSON",
    '{"asin": ["i"], "parent_asin": {}, "business_id": [1], "user_id": "u"}',
    "[1, 2]",
    '{"asin": "i"}{"asin": "j"}',
    '{"asin": "", "parent_asin": " ", "business_id": null}',
)
"""Lines without an event or a title, for all JSON sources."""


def random_events(events: int, users: int, items: int, seed: int = 0) -> tuple[Events, Titles]:
    """Random events and titles: skewed, with repeats, ties, odd ids, escapes and missing titles."""
    generator = random.Random(seed)
    user_ids = [f'U"{n}\\' if n % 50 == 1 else f"U{n}" for n in range(users)]
    item_ids = [f"B{n:05d}" for n in range(items)]
    made = []
    while len(made) < events:
        user, item = generator.choice(user_ids), item_ids[int(items * generator.random() ** 2)]
        made.append((user, item, 1_500_000_000 + 3600 * generator.randrange(events)))
        if generator.random() < 0.05:
            made.append(made[-1])  # the same review twice, as in Amazon's files
    adjectives = ("Plain", "Café", "R&B", '12"', "日本", "Tom's", "1984", "<b>", "🎲")
    titles = {
        item: f"{generator.choice(adjectives)} thing {n // 2}" for n, item in enumerate(item_ids)
    }
    return made[:events], titles | {item_ids[n]: None for n in range(7, items, 40)}


def write(
    source: str,
    folder: Path,
    events: Events,
    titles: Titles,
    broken: float = 0.0,
    compress: bool = False,
    **more: Any,
) -> tuple[int, int]:
    """Write events and titles as `source` has them; return the number of broken lines per file.

    `broken` is the fraction of broken lines among the others; `more` goes to the writer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = []
    for name, lines in WRITERS[source](events, titles, **more).items():
        generator, out = random.Random(name), []
        for line in lines:
            while generator.random() < broken / (1 + broken):
                out.append(generator.choice(BROKEN))
            out.append(line)
        counts.append(len(out) - len(lines))
        encoding = "latin-1" if name in ("u.item", "movies.dat") else "utf-8"
        content = "".join(f"{line}\n" for line in out).encode(encoding, "replace")
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
        else:
            (folder / name).write_bytes(content)
    return counts[0], counts[1]


def amazon_2018(
    events: Events, titles: Titles, python: bool = False, category: str = CATEGORY
) -> dict[str, list[str]]:
    """Reviews and metadata as JSON, or metadata as Python dictionaries (2014)."""
    reviews = [
        {
            **{"overall": 5.0, "verified": True, "reviewTime": "10 3, 2016", "reviewerID": user},
            **{"asin": item, "style": {"Size:": " Large"}, "reviewerName": 'A "B" C'},
            **{"reviewText": "Good.\nVery\tgood \\ é", "summary": "x", "unixReviewTime": time},
        }
        for user, item, time in events
    ]
    metadata = []
    for item, title in titles.items():
        record = {"category": ["Toys", "Games"], "description": ["It's"], "asin": item}
        metadata.append(record if title is None else {**record, "title": title, "also_buy": []})
    dump = repr if python else json.dumps
    return {
        f"{category}_5.json": list(map(json.dumps, reviews)),
        f"meta_{category}.json": list(map(dump, metadata)),
    }


def amazon_2023(events: Events, titles: Titles) -> dict[str, list[str]]:
    """Timestamps are in milliseconds; items are parents of variants."""
    reviews = [
        {
            **{"rating": 5.0, "title": "x", "text": "y\n", "images": [], "asin": f"{item}-v"},
            **{"parent_asin": item, "user_id": user, "timestamp": 1000 * time + 7},
        }
        for user, item, time in events
    ]
    metadata = [
        {"main_category": "Toys", "title": title, "features": [], "parent_asin": item}
        for item, title in titles.items()
    ]
    return {
        f"{CATEGORY}.jsonl": [json.dumps(review, ensure_ascii=False) for review in reviews],
        f"meta_{CATEGORY}.jsonl": [json.dumps(each, ensure_ascii=False) for each in metadata],
    }


def yelp(events: Events, titles: Titles, places: Places | None = None) -> dict[str, list[str]]:
    """Dates are text; `places` has the address, city and state of businesses."""
    reviews = [
        {
            **{"review_id": f"r{n}", "user_id": user, "business_id": item, "stars": 4.0},
            "date": str(datetime.fromtimestamp(time, UTC).replace(tzinfo=None)),
        }
        for n, (user, item, time) in enumerate(events)
    ]
    businesses = []
    for item, title in titles.items():
        address, city, state = (places or {}).get(item, ("", "", ""))
        business = {"business_id": item, "address": address, "city": city, "state": state}
        businesses.append({**business, "name": title, "attributes": {"WiFi": "u'free'"}})
    return {
        "yelp_academic_dataset_review.json": list(map(json.dumps, reviews)),
        "yelp_academic_dataset_business.json": list(map(json.dumps, businesses)),
    }


def write_yelp_tar(
    folder: Path, events: Events, titles: Titles, compress: bool, places: Places | None = None
) -> Path:
    """Write Yelp's files in a tar, as published, after the user agreement."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "yelp_dataset.tar"
    with tarfile.open(path, "w:gz" if compress else "w") as archive:
        files = {"Dataset_User_Agreement.pdf": ["%PDF"], **yelp(events, titles, places)}
        for name, lines in reversed(files.items()):
            content = "".join(f"{line}\n" for line in lines).encode()
            entry = tarfile.TarInfo(f"yelp_dataset/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def ml_100k(events: Events, titles: Titles) -> dict[str, list[str]]:
    genres = "|0" * 19
    return {
        "u.data": [f"{user}\t{item}\t3\t{time}" for user, item, time in events],
        "u.item": [f"{item}|{title or ''}|01-Jan-1995||{genres}" for item, title in titles.items()],
    }


def ml_1m(events: Events, titles: Titles) -> dict[str, list[str]]:
    return {
        "ratings.dat": [f"{user}::{item}::3::{time}" for user, item, time in events],
        "movies.dat": [f"{item}::{title or ''}::Drama" for item, title in titles.items()],
    }


def ml_20m(events: Events, titles: Titles) -> dict[str, list[str]]:
    return {
        "ratings.csv": rows(
            ["userId", "movieId", "rating", "timestamp"],
            [[user, item, 3.5, time] for user, item, time in events],
        ),
        "movies.csv": rows(
            ["movieId", "title", "genres"],
            [[item, title, "Drama"] for item, title in titles.items()],
        ),
    }


def table(events: Events, titles: Titles) -> dict[str, list[str]]:
    return {
        "events.csv": rows(["timestamp", "item", "user"], [event[::-1] for event in events]),
        "items.csv": rows(["item", "title"], list(titles.items())),
    }


def rows(header: list[str], records: list) -> list[str]:
    """Return the lines of a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *records])
    return out.getvalue().splitlines()


WRITERS = {
    "ml-100k": ml_100k,
    "ml-1m": ml_1m,
    "ml-20m": ml_20m,
    "amazon-2018": amazon_2018,
    "amazon-2023": amazon_2023,
    "yelp": yelp,
    "table": table,
}
