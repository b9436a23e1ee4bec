"""Titles as a model is to read and write them, and which items have none."""

import html
from collections.abc import Callable

import polars as pl

LONGEST_TITLE = 1000
"""Characters; no title is longer, and a prompt could not hold it."""


def clean(titles: pl.DataFrame, max_words: int | None) -> pl.DataFrame:
    """One row an item: item, title, and `fault`, why its title will not do, null where it does.

    `titles` are what a reader found: item, title or null, perhaps a suffix. Titles lose HTML's
    escapes, control characters, line ends and tabs, spaces that double, and a pair of quotes
    around the whole. As in the paper, one that is absent, holds `<span id`, has one character or
    fewer, or more than `max_words` words, will not do; nor will one over LONGEST_TITLE. The
    suffix comes after what is so judged. Where an item is listed more than once, the title that
    will do and comes first by code point counts.
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
        f"with a title of more than {LONGEST_TITLE} characters": title.str.len_chars()
        > LONGEST_TITLE,
    }
    fault = pl.coalesce(pl.when(found).then(pl.lit(name)) for name, found in faults.items())
    titles = titles.with_columns(plain(titles["title"])).with_columns(fault=fault)
    if "suffix" in titles.columns:
        suffix = (" " + plain(titles["suffix"])).replace(" ", "")
        titles = titles.with_columns(title + suffix).drop("suffix")
    again = titles["item"].is_duplicated()
    first = titles.filter(again).sort("item", pl.col("fault").is_not_null(), "title", "fault")
    return pl.concat([titles.filter(~again), first.unique("item", keep="first")])


def plain(texts: pl.Series) -> pl.Series:
    """Texts without escapes, control characters, runs of white space and quotes around them."""
    texts = unquoted(texts.fill_null(""))  # before `&quot;` becomes one more quote
    return mended(texts, texts.str.contains("&", literal=True), unescaped)


def unescaped(texts: pl.Series) -> pl.Series:
    return unquoted(pl.Series([html.unescape(text) for text in texts], dtype=pl.String))


def unquoted(texts: pl.Series) -> pl.Series:
    """Texts on one line, without a pair of quotes around what has no quote in it."""
    texts = mended(texts, texts.str.contains(r"[\p{Cc}\s&&[^ ]]|  "), on_one_line)
    texts = texts.str.strip_chars(" ").str.replace(r'^"([^"]*)"$', "$1")
    return texts.str.strip_chars(" ")


def on_one_line(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all(r"[\p{Cc}\s]+", " ")


def mended(texts: pl.Series, some: pl.Series, mend: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Texts with those mended that `some` says, which is cheaper to tell than to mend all."""
    return texts.scatter(some.arg_true(), mend(texts.filter(some)))
