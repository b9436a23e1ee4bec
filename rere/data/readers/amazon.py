"""Read Amazon reviews of the 2018 and 2023 releases (amazon_v2, amazon_2023), JSON lines.

    2018    {category}_5.json, or all reviews in {category}.json; meta_{category}.json
    2023    {category}.jsonl, meta_{category}.jsonl; an item is the parent of its variants

Metadata of 2014, Python dictionaries in single quotes, is also read.
J. Ni, J. Li, J. McAuley: Justifying Recommendations using Distantly-Labeled Reviews and
Fine-Grained Aspects, EMNLP 2019; Y. Hou et al.: Bridging Language and Items for Retrieval and
Recommendation, arXiv 2403.03952.
"""

from pathlib import Path

from rere.config.data import Amazon2018, Amazon2023
from rere.data.readers.events import RawData, read_events, read_in_parallel, read_titles
from rere.data.readers.json_lines import read_json_records
from rere.data.readers.text_files import LineCounter, find_file

REMEDY = "`rere fetch` downloads it"


def read_amazon(options: Amazon2018 | Amazon2023, folder: Path) -> RawData:
    """Return a category's reviews, without ratings, as events; raise InputError if malformed."""
    reviews, metadata = find_amazon_files(options, folder)
    if isinstance(options, Amazon2018):
        user, item, timestamp, unit = "reviewerID", "asin", "unixReviewTime", "s"
    else:
        user, item, timestamp, unit = "user_id", "parent_asin", "timestamp", "ms"

    counters = [LineCounter(path, options.tolerance) for path in (reviews, metadata)]
    event_fields = {"user": user, "item": item, "timestamp": timestamp}
    title_fields = {"item": item, "title": "title"}
    events, titles = read_in_parallel(
        lambda: read_events(
            read_json_records(reviews, event_fields, counters[0]), counters[0], unit
        ),
        lambda: read_titles(read_json_records(metadata, title_fields, counters[1]), counters[1]),
    )
    return RawData(
        files=(reviews, metadata),
        events=events,
        titles=titles,
        line_counts={counter.path.name: counter.check() for counter in counters},
    )


def find_amazon_files(options: Amazon2018 | Amazon2023, folder: Path) -> tuple[Path, Path]:
    """Return a category's files of reviews and of metadata; raise InputError if one is missing."""
    category = options.category
    if isinstance(options, Amazon2018):
        names, metadata = (f"{category}_5.json", f"{category}.json"), f"meta_{category}.json"
    else:
        names, metadata = (f"{category}.jsonl",), f"meta_{category}.jsonl"
    found = find_file(folder, metadata, remedy=REMEDY)
    return find_file(folder, *names, remedy=REMEDY), found
