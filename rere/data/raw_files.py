"""Find the raw files of a data set, by the rules of the readers that read them."""

from pathlib import Path

from rere.config.data import Amazon2018, Amazon2023, MovieLens, OwnTables, Splits, Yelp
from rere.config.options import Options
from rere.data.dataset import SPLITS
from rere.data.readers.amazon import find_amazon_files
from rere.data.readers.movielens import find_layout
from rere.data.readers.text_files import find_file
from rere.data.readers.yelp import find_yelp_files
from rere.errors import InputError


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
            return find_file(folder, options.events), find_file(folder, options.items)
        case Splits():
            files = tuple(folder / f"{name}.parquet" for name in ("items", *SPLITS))
            for file in files:
                if not file.is_file():
                    raise InputError(f"{file}: no such file; ready-made splits need it")
            return files
    raise TypeError(f"no reader for {type(options).__name__}")
