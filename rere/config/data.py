"""Data sets: their raw files, and the rules that make samples and splits from them."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rere.config.options import Name, Options

Day = Annotated[date, Field(strict=False)]  # a YAML date, or text
Source = Literal[
    "ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m", "amazon-2018", "amazon-2023", "yelp"
]

START = "First day (UTC) of the events. None: that of the first event."
END = "Day (UTC) after the last event. None: no limit."
MIN_ITEMS = "While fewer items are left, `start` moves back by a year. None: it does not move."
MAX_TITLE_WORDS = "Words of a title at most; items with longer titles are dropped. None: no limit."


class Fetch(Options):
    """Download a public data set, or print where it can be found. Files are checked by sha256."""

    source: Source = Field(description="The data set.")
    category: Name | None = Field(
        None,
        description="Amazon only: category as in the names of its files, such as Toys_and_Games.",
    )


class Rules(Options):
    """How events become samples and splits, for all sources of events."""

    tolerance: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="Largest fraction of unreadable lines in a file; more of them are an error.",
    )
    start: Day | None = Field(None, description=START)
    end: Day | None = Field(None, description=END)
    min_items: int | None = Field(None, ge=1, description=MIN_ITEMS)
    max_title_words: int | None = Field(None, ge=1, description=MAX_TITLE_WORDS)
    repeats: Literal["keep", "first"] = Field(
        "keep", description="Events of a user with the same item: keep all, or the first only."
    )
    core: int = Field(
        5, ge=1, description="Events of each user and of each item at least (k-core)."
    )
    max_history: int = Field(
        10, ge=1, description="Items of a history at most; the latest ones are kept."
    )
    split: Literal["chronological", "leave_one_out"] = Field(
        "chronological",
        description="chronological: all samples in time order, 8:1:1. leave_one_out: each user's "
        "last sample is test, the one before it valid.",
    )

    @model_validator(mode="after")
    def check_window(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"end must be after start, {self.start}")
        return self


class MovieLens(Rules):
    """Make items and splits from the raw files of MovieLens."""

    source: Literal["ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m"] = "ml-100k"


class Amazon2018(Rules):
    """Make items and splits from the 2018 release of Amazon reviews and metadata."""

    source: Literal["amazon-2018"] = "amazon-2018"
    category: Name = Field(
        description="Category as in the names of the files, such as Toys_and_Games."
    )
    start: Day | None = Field(date(2016, 10, 1), description=START)
    end: Day | None = Field(date(2018, 11, 1), description=END)
    min_items: int | None = Field(3000, ge=1, description=MIN_ITEMS)
    max_title_words: int | None = Field(20, ge=1, description=MAX_TITLE_WORDS)


class Amazon2023(Rules):
    """Make items and splits from the 2023 release of Amazon reviews and metadata."""

    source: Literal["amazon-2023"] = "amazon-2023"
    category: Name = Field(
        description="Category as in the names of the files, such as Toys_and_Games."
    )
    max_title_words: int | None = Field(20, ge=1, description=MAX_TITLE_WORDS)


class Yelp(Rules):
    """Make items and splits from the reviews and businesses of the Yelp Open Dataset."""

    source: Literal["yelp"] = "yelp"
    start: Day | None = Field(date(2021, 1, 1), description=START)
    end: Day | None = Field(date(2022, 1, 1), description=END)
    max_title_words: int | None = Field(
        20,
        ge=1,
        description="Words of a name at most; businesses with longer names are dropped. None: no "
        "limit.",
    )
    title: Literal["address", "name"] = Field(
        "address", description="Title of a business: `Name (Address, City, ST)`, or the name alone."
    )


class OwnTables(Rules):
    """Make items and splits from your own tables of events and items."""

    source: Literal["table"] = "table"
    events: str = Field(
        "events.csv",
        min_length=1,
        description="File of events in the folder: csv, tsv, jsonl or parquet, perhaps compressed.",
    )
    items: str = Field(
        "items.csv", min_length=1, description="File of items and titles, in the same formats."
    )
    user: str = Field("user", min_length=1, description="Column of the user in `events`.")
    item: str = Field("item", min_length=1, description="Column of the item in both files.")
    timestamp: str = Field("timestamp", min_length=1, description="Column of the time in `events`.")
    title: str = Field("title", min_length=1, description="Column of the title in `items`.")
    time_unit: Literal["s", "ms", "us", "ns", "text"] = Field(
        "s", description="Unit of times since 1970, or text such as 2021-03-04 05:06:07 (UTC)."
    )
    quote: Literal["double", "none"] = Field(
        "double",
        description="Quotes in csv and tsv. double: they may enclose a field. none: they are plain "
        "characters.",
    )
    encoding: str = Field(
        "utf-8", description="Encoding of csv, tsv and jsonl, such as latin-1, cp1252 or utf-16."
    )

    @field_validator("encoding")
    @classmethod
    def check_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"Python knows no encoding {encoding}; there are utf-8, latin-1, cp1252, utf-16"
            ) from None
        return encoding


class Splits(Options):
    """Check ready-made splits and store them."""

    source: Literal["splits"] = "splits"


SOURCES = (MovieLens, Amazon2018, Amazon2023, Yelp, OwnTables, Splits)
"""The options of `rere preprocess` for each kind of source."""


class PublicDataset(Options):
    """A data set that `rere fetch` downloads."""

    folder: str | None = Field(
        None, min_length=1, description="Folder with the raw files. None: they are downloaded."
    )


class OwnDataset(Options):
    """A data set in a folder of the user's."""

    folder: str = Field(min_length=1, description="Folder with the files.")


class MovieLensDataset(PublicDataset, MovieLens):
    """MovieLens in a study."""


class Amazon2018Dataset(PublicDataset, Amazon2018):
    """A category of Amazon's 2018 release in a study."""


class Amazon2023Dataset(PublicDataset, Amazon2023):
    """A category of Amazon's 2023 release in a study."""


class YelpDataset(PublicDataset, Yelp):
    """The Yelp Open Dataset in a study."""


class OwnTablesDataset(OwnDataset, OwnTables):
    """Your own tables in a study."""


class SplitsDataset(OwnDataset, Splits):
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
