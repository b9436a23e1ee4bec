"""MovieLens-100K from either of the two layouts it is found in.

    RecBole     ml-100k.inter, ml-100k.item   tab-separated, a typed header names the columns
    GroupLens   u.data, u.item                tab- and pipe-separated, columns by position

Neither is CSV: a quote is a character like any other.
"""

from pathlib import Path

import polars as pl

from rere.errors import InputError

RECBOLE = ("ml-100k.inter", "ml-100k.item")
GROUPLENS = ("u.data", "u.item")
U_DATA = ["user_id", "item_id", "rating", "timestamp"]
U_ITEM = ["item_id", "movie_title", "released", "video", "url", *(f"genre{i}" for i in range(19))]

LAST_SECOND = 253_402_300_799
"""The end of the year 9999; a larger timestamp counts milliseconds."""


def read_movielens(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events and titles in `folder`, in the order of its files.

    Returns interactions (user str, item str, timestamp i64 in UTC seconds) and titles (item str,
    title str, with its year as in `Usual Suspects, The (1995)`). Ratings are ignored. Both
    layouts of the data set give the same two tables; RecBole's is read where both are present.

    Raises InputError naming the file and line of a row that is malformed.
    """
    events_path, titles_path = raw_files(folder)
    recbole = events_path.name == RECBOLE[0]

    events = read_rows(events_path, "\t", None if recbole else U_DATA)
    needed(events, events_path, "user_id", "item_id", "timestamp")
    seconds = pl.col("timestamp").cast(pl.Int64, strict=False)
    in_range = seconds.is_between(0, LAST_SECOND).fill_null(False)
    problem = "timestamp {timestamp!r} is not a number of UTC seconds, 0 or more"
    refuse(events_path, events.filter(~in_range), problem)

    titles = read_rows(titles_path, "\t" if recbole else "|", None if recbole else U_ITEM)
    needed(titles, titles_path, "item_id", "movie_title", *(["release_year"] if recbole else []))
    again = titles.filter(~pl.col("item_id").is_first_distinct())
    refuse(titles_path, again, "item {item_id!r} is listed a second time")
    untitled = events.join(titles, on="item_id", how="anti", maintain_order="left")
    refuse(events_path, untitled, f"item {{item_id!r}} has no row in {titles_path.name}")

    title = full_title() if recbole else pl.col("movie_title")
    title = title.str.replace_all(r"\s+", " ").str.strip_chars()
    return (
        events.select(user="user_id", item="item_id", timestamp=seconds),
        titles.select(item="item_id", title=title),
    )


def raw_files(folder: Path) -> tuple[Path, Path]:
    """The files of events and of titles in `folder`; raises InputError if either is missing."""
    for names in (RECBOLE, GROUPLENS):
        paths = (folder / names[0], folder / names[1])
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) == 1:
            raise InputError(f"{missing[0]}: no such file, the other half is there; fetch it again")
    raise InputError(
        f"{folder}: holds neither {' and '.join(RECBOLE)} nor {' and '.join(GROUPLENS)}; "
        "`rere fetch` downloads them"
    )


def read_rows(path: Path, separator: str, names: list[str] | None) -> pl.DataFrame:
    """The rows of a text file: their 1-based `line`, then one column of str for each name.

    Without `names` the first line holds them as RecBole writes them, `user_id:token`. Blank lines
    are skipped. Raises InputError for an empty file or a row with more or fewer columns.
    """
    lines = pl.DataFrame({"text": decode(path).replace("\r\n", "\n").split("\n")})
    lines = lines.with_row_index("line", offset=1)
    if names is None:
        names = [field.partition(":")[0] for field in lines["text"][0].split(separator)]
        lines = lines[1:]
    lines = lines.filter(pl.col("text").str.strip_chars() != "")
    if lines.is_empty():
        raise InputError(f"{path}: holds no rows; fetch it again")
    lines = lines.with_columns(
        columns=pl.col("text").str.count_matches(separator, literal=True) + 1
    )
    ragged = lines.filter(pl.col("columns") != len(names))
    refuse(path, ragged, f"{{columns}} columns, not {len(names)}")
    fields = pl.col("text").str.split_exact(separator, len(names) - 1)
    return lines.select("line", fields.struct.rename_fields(names)).unnest("text")


def decode(path: Path) -> str:
    """A file's text; raises InputError if it is not UTF-8, or Latin-1 for GroupLens's titles."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Latin-1 is how GroupLens publishes the file, UTF-8 how an editor may have saved it.
        if path.name == GROUPLENS[1]:
            return content.decode("latin-1")
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line}: not UTF-8 text; fetch it again") from None


def needed(rows: pl.DataFrame, path: Path, *names: str) -> None:
    """Raise InputError unless `rows` has all columns `names` and a value in each of them."""
    for name in names:
        if name not in rows.columns:
            raise InputError(f"{path} line 1: the header has no column {name}; fetch it again")
        refuse(path, rows.filter(pl.col(name).str.strip_chars() == ""), f"empty {name}")


def refuse(path: Path, wrong: pl.DataFrame, problem: str) -> None:
    """Raise InputError for the first of the `wrong` rows; `problem` names columns in braces."""
    if not wrong.is_empty():
        row = wrong.row(0, named=True)
        message = problem.format_map(row)
        raise InputError(f"{path} line {row['line']}: {message}; correct it or fetch it again")


def full_title() -> pl.Expr:
    """GroupLens's title from RecBole's two columns.

    RecBole cuts the last parenthesis off as the year, be it `(1995)` or the `(V)` of a video, and
    writes `unkonwn` for the title `unknown` and for a year that is not there.
    """
    title = pl.col("movie_title").replace("unkonwn", "unknown")
    year = pl.col("release_year")
    return pl.when(year == "unkonwn").then(title).otherwise(title + " (" + year + ")")
