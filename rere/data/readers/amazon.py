"""Amazon reviews, of the 2018 and of the 2023 release (amazon_v2, amazon_2023), as JSON lines.

    2018    {category}_5.json, or all reviews in {category}.json; meta_{category}.json
    2023    {category}.jsonl, meta_{category}.jsonl; an item is the parent of its variants

Metadata as of 2014, Python dictionaries in single quotes, is read as well.
J. Ni, J. Li, J. McAuley: Justifying Recommendations using Distantly-Labeled Reviews and
Fine-Grained Aspects, EMNLP 2019; Y. Hou et al.: Bridging Language and Items for Retrieval and
Recommendation, arXiv 2403.03952.
"""

from pathlib import Path

from rere.config.data import Amazon2018, Amazon2023
from rere.data.readers.lines import Tally, find
from rere.data.readers.records import Raw, json_records, read_events, read_titles, side_by_side


def read_amazon(options: Amazon2018 | Amazon2023, folder: Path) -> Raw:
    """The reviews of a category as events, ratings ignored; raises InputError if malformed."""
    if isinstance(options, Amazon2018):
        names = (f"{options.category}_5.json", f"{options.category}.json")
        metadata = find(folder, f"meta_{options.category}.json")
        user, item, timestamp, unit = "reviewerID", "asin", "unixReviewTime", "s"
    else:
        names = (f"{options.category}.jsonl",)
        metadata = find(folder, f"meta_{options.category}.jsonl")
        user, item, timestamp, unit = "user_id", "parent_asin", "timestamp", "ms"
    reviews = find(folder, *names)

    event = {"user": user, "item": item, "timestamp": timestamp}
    of_reviews, of_titles = Tally(reviews, options.tolerance), Tally(metadata, options.tolerance)
    title = {"item": item, "title": "title"}
    events, titles = side_by_side(
        lambda: read_events(json_records(reviews, event, of_reviews), of_reviews, unit),
        lambda: read_titles(json_records(metadata, title, of_titles), of_titles),
    )
    return Raw(
        files=(reviews, metadata),
        events=events,
        titles=titles,
        unreadable={tally.path.name: tally.settle() for tally in (of_reviews, of_titles)},
    )
