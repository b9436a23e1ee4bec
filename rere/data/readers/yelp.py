"""The Yelp Open Dataset: its files of JSON lines, or the tar that it is published as.

    yelp_academic_dataset_review.json, yelp_academic_dataset_business.json
    yelp_dataset.tar, which holds both

Its dates name no time zone; they are taken as UTC.
"""

from pathlib import Path

import polars as pl

from rere.config.data import Yelp
from rere.data.readers.lines import Tally, find
from rere.data.readers.records import Raw, json_records, read_events, read_titles

REVIEW, BUSINESS = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
TARS = ("yelp_dataset.tar", "yelp_dataset.tgz")

EVENT = {"user": "user_id", "item": "business_id", "timestamp": "date"}
TITLE = {"item": "business_id", "title": "name"}
PLACE = ("address", "city", "state")


def read_yelp(options: Yelp, folder: Path) -> Raw:
    """The reviews as events, stars ignored; raises InputError if the files are malformed."""
    reviews = find(folder, REVIEW, *TARS)
    if reviews.name.startswith(TARS):
        files, members = (reviews, reviews), (REVIEW, BUSINESS)
    else:
        files, members = (reviews, find(folder, BUSINESS)), (None, None)

    of_reviews, of_titles = (Tally(path, options.tolerance) for path in files)
    reviews = json_records(files[0], EVENT, of_reviews, members[0])
    events = read_events(reviews, of_reviews, "text")
    businesses = json_records(
        files[1], TITLE | {name: name for name in PLACE}, of_titles, members[1]
    )
    titles = read_titles((place_last(rows) for rows in businesses), of_titles)
    return Raw(
        files=tuple(dict.fromkeys(files)),
        events=events,
        titles=titles if options.title == "address" else titles.drop("suffix"),
        unreadable={REVIEW: of_reviews.settle(), BUSINESS: of_titles.settle()},
    )


def place_last(businesses: pl.DataFrame) -> pl.DataFrame:
    """Records of businesses with ` (Address, City, ST)` as suffix, without what is not known."""
    known = [pl.col(name).str.strip_chars().replace("", None) for name in PLACE]
    place = pl.concat_str(known, separator=", ", ignore_nulls=True)
    suffix = pl.when(place != "").then(" (" + place + ")").otherwise(pl.lit(""))
    return businesses.with_columns(suffix=suffix).drop(PLACE)
