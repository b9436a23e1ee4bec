"""Clean titles for a model to read and write, and reject unusable ones."""

import html
from collections.abc import Callable

import polars as pl

MAX_TITLE_LENGTH = 1000
"""Characters; a prompt could not hold a longer title."""


def clean_titles(titles: pl.DataFrame, max_words: int | None) -> pl.DataFrame:
    """Return one row per item: item, title, and `fault`, why the title is rejected, or null.

    `titles` are a reader's: item, title or null, perhaps a suffix. Titles lose HTML escapes,
    control characters, line ends and tabs, double spaces, and a pair of quotes around the whole.
    As in the paper, a title is rejected if it is absent, contains `<span id`, or has at most one
    character or more than `max_words` words; here also with more than MAX_TITLE_LENGTH characters.
    The suffix is added after these checks. If an item is listed more than once, its first title by
    code point that is not rejected is kept.
    """
    title = pl.col("title")
    words = title.str.count_matches(" ", literal=True) + 1
    faults = {
        "without a title": title == "",
        "with markup for a title": title.str.contains("<span id", literal=True),
        "with a title of one character": title.str.len_chars() <= 1,
        f"with a title of more than {max_words} words": words > max_words
        if max_words is not None
        else pl.lit(False),
        f"with a title of more than {MAX_TITLE_LENGTH} characters": title.str.len_chars()
        > MAX_TITLE_LENGTH,
    }
    fault = pl.coalesce(pl.when(found).then(pl.lit(name)) for name, found in faults.items())
    titles = titles.with_columns(normalise_text(titles["title"])).with_columns(fault=fault)
    if "suffix" in titles.columns:
        suffix = (" " + normalise_text(titles["suffix"])).replace(" ", "")
        titles = titles.with_columns(title + suffix).drop("suffix")
    is_repeated = titles["item"].is_duplicated()
    repeated = titles.filter(is_repeated)
    repeated = repeated.sort("item", pl.col("fault").is_not_null(), "title", "fault")
    return pl.concat([titles.filter(~is_repeated), repeated.unique("item", keep="first")])


def normalise_text(texts: pl.Series) -> pl.Series:
    """Return texts without HTML escapes, control characters, extra white space and quotes."""
    # Quotes around a text are removed before `&quot;` can add another one.
    texts = strip_quotes(texts.fill_null(""))
    return apply_where(texts, texts.str.contains("&", literal=True), unescape_html)


def unescape_html(texts: pl.Series) -> pl.Series:
    return strip_quotes(pl.Series([html.unescape(text) for text in texts], dtype=pl.String))


def strip_quotes(texts: pl.Series) -> pl.Series:
    """Return texts on one line, without a pair of quotes around a text that has no other."""
    texts = apply_where(texts, texts.str.contains(r"[\p{Cc}\s&&[^ ]]|  "), collapse_whitespace)
    texts = texts.str.strip_chars(" ").str.replace(r'^"([^"]*)"$', "$1")
    return texts.str.strip_chars(" ")


def collapse_whitespace(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all(r"[\p{Cc}\s]+", " ")


def apply_where(
    texts: pl.Series, condition: pl.Series, function: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    """Return texts with `function` applied where the condition holds, which saves time."""
    return texts.scatter(condition.arg_true(), function(texts.filter(condition)))
