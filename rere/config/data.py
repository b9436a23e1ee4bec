"""Data sets: where they come from and what of them is kept."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rere.config.options import Name, Options

Day = Annotated[date, Field(strict=False)]  # YAML's own dates, and text
Source = Literal[
    "ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m", "amazon-2018", "amazon-2023", "yelp"
]


class Fetch(Options):
    """Download a public data set, or say where it is to be had; checked by sha256."""

    source: Source = Field(description="Which data set.")
    category: Name | None = Field(None, description="Category of Amazon's, as its files spell it.")


class Rules(Options):
    """How events become samples and splits, whatever they are read from."""

    tolerance: float = Field(
        1e-3, ge=0, lt=1, description="Share of a file's lines that may be unreadable."
    )
    start: Day | None = Field(None, description="First day of the events (UTC).")
    end: Day | None = Field(None, description="Day after the last one of the events (UTC).")
    min_items: int | None = Field(
        None, ge=1, description="While fewer items are left, start moves back by a year."
    )
    max_title_words: int | None = Field(
        None, ge=1, description="Items whose title has more words go."
    )
    repeats: Literal["keep", "first"] = Field(
        "keep", description="All events of a user with the same item, or the first alone."
    )
    core: int = Field(5, ge=1, description="Keep users and items with at least this many events.")
    max_history: int = Field(10, ge=1, description="Items of a history at most, the latest ones.")
    split: Literal["chronological", "leave_one_out"] = Field(
        "chronological",
        description="All samples 8:1:1 in time, or of each user the last two for valid and test.",
    )

    @model_validator(mode="after")
    def the_window_is_one(self):
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"end must be after start, {self.start}")
        return self


class MovieLens(Rules):
    """Turn MovieLens' raw files into items and train, valid and test splits."""

    source: Literal["ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m"] = "ml-100k"


class Amazon2018(Rules):
    """Turn reviews and metadata of Amazon's 2018 release into items and splits."""

    source: Literal["amazon-2018"] = "amazon-2018"
    category: Name = Field(description="Category as the files spell it, Toys_and_Games.")
    start: Day | None = Field(date(2016, 10, 1), description="First day of the events (UTC).")
    end: Day | None = Field(
        date(2018, 11, 1), description="Day after the last one of the events (UTC)."
    )
    min_items: int | None = Field(
        3000, ge=1, description="While fewer items are left, start moves back by a year."
    )
    max_title_words: int | None = Field(20, ge=1, description="Items with longer titles go.")


class Amazon2023(Rules):
    """Turn reviews and metadata of Amazon's 2023 release into items and splits."""

    source: Literal["amazon-2023"] = "amazon-2023"
    category: Name = Field(description="Category as the files spell it, Toys_and_Games.")
    max_title_words: int | None = Field(20, ge=1, description="Items with longer titles go.")


class Yelp(Rules):
    """Turn reviews and businesses of the Yelp Open Dataset into items and splits."""

    source: Literal["yelp"] = "yelp"
    start: Day | None = Field(date(2021, 1, 1), description="First day of the events (UTC).")
    end: Day | None = Field(
        date(2022, 1, 1), description="Day after the last one of the events (UTC)."
    )
    max_title_words: int | None = Field(20, ge=1, description="Businesses with longer names go.")
    title: Literal["address", "name"] = Field(
        "address", description="`Name (Address, City, ST)`, or the name alone."
    )


class OwnTables(Rules):
    """Turn tables of your own, events and items, into items and splits."""

    source: Literal["table"] = "table"
    events: str = Field(
        "events.csv", min_length=1, description="Events: csv, tsv, jsonl or parquet in the folder."
    )
    items: str = Field("items.csv", min_length=1, description="Items and titles, likewise.")
    user: str = Field("user", min_length=1, description="Column of the user, in events.")
    item: str = Field("item", min_length=1, description="Column of the item, in both files.")
    timestamp: str = Field("timestamp", min_length=1, description="Column of the time, in events.")
    title: str = Field("title", min_length=1, description="Column of the title, in items.")
    time_unit: Literal["s", "ms", "us", "text"] = Field(
        "s", description="What times count since 1970, or text as in 2021-03-04 05:06:07 (UTC)."
    )


class Splits(Options):
    """Check splits that others made and take them as they are."""

    source: Literal["splits"] = "splits"


SOURCES = (MovieLens, Amazon2018, Amazon2023, Yelp, OwnTables, Splits)
"""The options of each kind of source, as `rere preprocess` takes them."""


class Fetched(Options):
    """A data set that can be fetched."""

    folder: str | None = Field(
        None, min_length=1, description="Folder with the raw files; without one they are fetched."
    )


class Given(Options):
    """A data set that its user has."""

    folder: str = Field(min_length=1, description="Folder with the files.")


class MovieLensDataset(Fetched, MovieLens):
    """MovieLens in a study."""


class Amazon2018Dataset(Fetched, Amazon2018):
    """A category of Amazon's 2018 release in a study."""


class Amazon2023Dataset(Fetched, Amazon2023):
    """A category of Amazon's 2023 release in a study."""


class YelpDataset(Fetched, Yelp):
    """The Yelp Open Dataset in a study."""


class OwnTablesDataset(Given, OwnTables):
    """Tables of your own in a study."""


class SplitsDataset(Given, Splits):
    """Ready-made splits in a study."""


Dataset = Annotated[
    MovieLensDataset
    | Amazon2018Dataset
    | Amazon2023Dataset
    | YelpDataset
    | OwnTablesDataset
    | SplitsDataset,
    Field(discriminator="source"),
]
