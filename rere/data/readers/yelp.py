"""Read the Yelp Open Dataset: its files of JSON lines, or the tar that holds both.

    yelp_academic_dataset_review.json, yelp_academic_dataset_business.json
    yelp_dataset.tar

Its dates have no time zone and are taken as UTC.
"""

from pathlib import Path

import polars as pl

from rere.config.data import Yelp
from rere.data.readers.events import RawData, read_events, read_titles
from rere.data.readers.json_lines import read_json_records
from rere.data.readers.text_files import LineCounter, find_file

REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
TARS = ("yelp_dataset.tar", "yelp_dataset.tgz")
REMEDY = "`rere fetch --source yelp` says where it can be found"

EVENT_FIELDS = {"user": "user_id", "item": "business_id", "timestamp": "date"}
ADDRESS_FIELDS = ("address", "city", "state")
TITLE_FIELDS = {"item": "business_id", "title": "name"} | {name: name for name in ADDRESS_FIELDS}


def read_yelp(options: Yelp, folder: Path) -> RawData:
    """Return the reviews, without stars, as events; raise InputError if the files are malformed."""
    files = find_yelp_files(folder)
    members = (REVIEWS, BUSINESSES) if files[0] == files[1] else (None, None)

    counters = [LineCounter(path, options.tolerance) for path in files]
    reviews = read_json_records(files[0], EVENT_FIELDS, counters[0], members[0])
    events = read_events(reviews, counters[0], "text")
    businesses = read_json_records(files[1], TITLE_FIELDS, counters[1], members[1])
    titles = read_titles((add_address_suffix(rows) for rows in businesses), counters[1])
    return RawData(
        files=tuple(dict.fromkeys(files)),
        events=events,
        titles=titles if options.title == "address" else titles.drop("suffix"),
        line_counts={REVIEWS: counters[0].check(), BUSINESSES: counters[1].check()},
    )


def find_yelp_files(folder: Path) -> tuple[Path, Path]:
    """Return the files of reviews and of businesses, perhaps one tar; raise InputError without."""
    reviews = find_file(folder, REVIEWS, *TARS, remedy=REMEDY)
    if reviews.name.startswith(TARS):
        return reviews, reviews
    return reviews, find_file(folder, BUSINESSES, remedy=REMEDY)


def add_address_suffix(businesses: pl.DataFrame) -> pl.DataFrame:
    """Return businesses with the suffix ` (Address, City, ST)`, without the parts not known."""
    known = [pl.col(name).str.strip_chars().replace("", None) for name in ADDRESS_FIELDS]
    address = pl.concat_str(known, separator=", ", ignore_nulls=True)
    suffix = pl.when(address != "").then(" (" + address + ")").otherwise(pl.lit(""))
    return businesses.with_columns(suffix=suffix).drop(ADDRESS_FIELDS)
