"""Clean titles for a model to read and write, and reject unusable ones.

The paper's rules come first and decide what is kept, so that numbers of rows are comparable. Then
titles that look alike become equal.
"""

import html
from collections.abc import Callable

import polars as pl

MAX_TITLE_LENGTH = 1000
"""Characters; a prompt could not hold a longer title."""

INVISIBLE_PATTERN = r"[\p{Cf}\p{Default_Ignorable_Code_Point}]"
"""Characters without a width: joiners, marks of direction, variation selectors."""

INLINE = (
    "abbr|acronym|a|big|b|cite|code|del|em|font|img|ins|i|mark|nobr|small|span|strike|strong|sub|"
    "sup|s|tt|u|wbr"
)
BLOCK = (
    "blockquote|body|br|center|dd|div|dl|dt|h[1-6]|head|hr|html|iframe|li|meta|ol|pre|p|script|"
    "style|table|tbody|td|th|thead|tr|ul"
)
TAG = r"(?i)</?(?:{})(?:\s*/?>|\s[^<>]*>|\s[^<>]*=[^<>]*$)"
MARKUP = {
    r"(?is)<!--.*?(?:-->|$)": "",
    r"(?is)<(?:script|style)\b[^<>]*>.*?(?:</(?:script|style)\s*>|$)": " ",
    # Statements of JavaScript up to the end, as in titles of Amazon's 2018 release.
    r"(?:\bvar (?:aPageStart\b|\w+ ?=)|\(?\bfunction ?\w* ?\([^)]*\) ?\{|\(new Date\(\)\)).*": "",
    TAG.format(INLINE): "",
    TAG.format(BLOCK): " ",
}
"""Remnants of web pages, and what takes their place. Other text in `<>` is kept."""

SUSPECT_PATTERN = r"[^\x20-\x7e]|[&<]|\bvar |\bfunction\b|\bnew Date\b"
"""Only titles with these characters or words can change when they are unified."""

VISIBLE_PATTERN = r"[^\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}]"
"""A character that a reader sees. A title needs one."""

TITLE = pl.col("title").cast(pl.String)
"""Titles as text; those of ready-made splits may be of a categorical type."""

TITLE_FAULTS = {
    "has a line end, a tab or a control character in its title": TITLE.str.contains(
        r"[\p{Cc}\x{2028}\x{2029}]"
    ),
    f"has a title of more than {MAX_TITLE_LENGTH} characters": TITLE.str.len_chars()
    > MAX_TITLE_LENGTH,
}
"""What can be wrong with a title of ready-made splits, which are not cleaned."""


def clean_titles(titles: pl.DataFrame, max_words: int | None) -> pl.DataFrame:
    """Return one row per item: item, title, and `fault`, why the title is rejected, or null.

    `titles` are a reader's: item, title or null, perhaps a suffix. Titles lose HTML escapes,
    control characters, line ends and tabs, double spaces, and a pair of quotes around the whole.
    As in the paper, a title is rejected if it is absent, contains `<span id`, or has at most one
    character or more than `max_words` words; here also with more than MAX_TITLE_LENGTH characters.
    After these checks `unify_titles` makes titles that look alike equal, and rejects those with
    nothing left; then the suffix is added. If an item is listed more than once, its first title by
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
    titles = titles.with_columns(unify_titles(titles["title"]))
    is_empty = pl.when(title == "").then(pl.lit("with nothing but markup for a title"))
    titles = titles.with_columns(fault=pl.coalesce("fault", is_empty))
    if "suffix" in titles.columns:
        suffix = (" " + unify_titles(normalise_text(titles["suffix"]))).replace(" ", "")
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


def unify_titles(titles: pl.Series) -> pl.Series:
    """Return normalised titles in one form, equal where they look alike.

    HTML escapes are resolved, also of escapes; markup, scripts and invisible characters are
    removed; accents are composed (NFC). A family of emoji becomes its members, and Persian and
    Indic words lose their joiners.
    """
    return apply_where(titles, titles.str.contains(SUSPECT_PATTERN), unify_suspects)


def unify_suspects(titles: pl.Series) -> pl.Series:
    before = None
    while before is None or not titles.equals(before):  # each round makes some shorter
        before = titles
        titles = apply_where(titles, titles.str.contains("&", literal=True), unescape_html)
        for remnant, substitute in MARKUP.items():
            titles = titles.str.replace_all(remnant, substitute)
        titles = strip_quotes(titles.str.replace_all(INVISIBLE_PATTERN, "").str.normalize("NFC"))
    return titles


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
    return texts.clone().scatter(condition.arg_true(), function(texts.filter(condition)))
