"""Find the raw files of a data set, by the rules of the readers that read them."""

from pathlib import Path

from rere.config.data import Amazon2018, Amazon2023, MovieLens, OwnTables, Splits, Yelp
from rere.config.options import Options
from rere.data.readers.amazon import find_amazon_files
from rere.data.readers.movielens import find_layout
from rere.data.readers.own_tables import find_own_tables
from rere.data.readers.ready_made_splits import find_split_files
from rere.data.readers.yelp import find_yelp_files


def find_raw_files(options: Options, folder: Path) -> tuple[Path, ...]:
    """Return the files in a folder that `rere preprocess` reads.

    `options` are of one of `rere.config.data.SOURCES`. Raises InputError if a file is missing.
    """
    match options:
        case MovieLens():
            return find_layout(folder)[1]
        case Amazon2018() | Amazon2023():
            return find_amazon_files(options, folder)
        case Yelp():
            return tuple(dict.fromkeys(find_yelp_files(folder)))
        case OwnTables():
            return find_own_tables(options, folder)
        case Splits():
            return tuple(find_split_files(folder).values())
    raise TypeError(f"no reader for {type(options).__name__}")
