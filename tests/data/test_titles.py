"""Titles are cleaned and rejected by the documented rules."""

import html
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rere.data.titles import MAX_TITLE_LENGTH, clean_titles, normalise_text


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        (" two\n\tlines\r\n", "two lines"),
        ("bell\x07 and \x00null\x7f", "bell and null"),
        ("no\u00a0break\u2003space\u2028line", "no break space line"),
        ("R&amp;B &#39;n&#x27; &eacute;", "R&B 'n' é"),
        ("AT&T &unknown; &", "AT&T &unknown; &"),
        ("&amp;quot;", "&quot;"),  # escaped once, unescaped once
        ('"all of it"', "all of it"),
        ("&quot;all of it&quot;", "all of it"),
        ('"&quot;all&quot; of it"', '"all" of it'),
        ('"Great" and "Good"', '"Great" and "Good"'),
        ('Ruler, 12"', 'Ruler, 12"'),
        ('"', '"'),
        ('""', ""),
        ('" "', ""),
        ("&nbsp;", ""),
        ("日本 🎲\u200d", "日本 🎲\u200d"),
        ("!!! 1984 ???", "!!! 1984 ???"),
        (None, ""),
    ],
)
def test_normalised_text(raw, title):
    assert normalise_text(pl.Series([raw, "another"], dtype=pl.String)).to_list() == [
        title,
        "another",
    ]


def normalise_one(text: str | None) -> str:
    """The same rules for one text, in plain Python."""
    return strip_quotes(html.unescape(strip_quotes(text or "")))


def strip_quotes(text: str) -> str:
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip(" ")
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip(" ") if is_quoted else text


PIECES = [
    "a",
    "B",
    " ",
    "  ",
    '"',
    "&quot;",
    "&amp;",
    "&nbsp;",
    "\t",
    "\x00",
    "\u2003",
    "\x85",
    "é",
]


@given(st.lists(st.none() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
def test_each_text_is_normalised_independently(texts):
    raw = pl.Series(texts, dtype=pl.String)
    assert normalise_text(raw).to_list() == [normalise_one(text) for text in texts]
    assert raw.to_list() == texts


def cleaned(*titles: tuple, max_words: int | None = 3) -> dict[str, tuple]:
    """The title and fault of each item."""
    schema = ["item", "title", "suffix"][: len(titles[0])]
    frame = pl.DataFrame(titles, schema=dict.fromkeys(schema, pl.String), orient="row")
    return {item: rest for item, *rest in clean_titles(frame, max_words).rows()}


def test_unusable_titles_are_rejected_with_the_reason():
    titles = cleaned(
        *(("a", "one two three"), ("b", "one two three four"), ("c", None), ("d", '" "')),
        *(("e", "x"), ("f", "<span id=1>"), ("g", "x" * MAX_TITLE_LENGTH)),
        ("h", "x" * (MAX_TITLE_LENGTH + 1)),
    )
    assert {item: fault for item, (_, fault) in titles.items()} == {
        "a": None,
        "b": "with a title of more than 3 words",
        "c": "without a title",
        "d": "without a title",
        "e": "with a title of one character",
        "f": "with markup for a title",
        "g": None,
        "h": "with a title of more than 1000 characters",
    }
    assert cleaned(("b", "one two three four"), max_words=None) == {
        "b": ["one two three four", None]
    }


def test_an_item_listed_twice_has_its_first_usable_title():
    titles = cleaned(("a", "Z"), ("a", "Dog"), ("a", "Cat"), ("a", None), ("b", "?"), ("b", None))
    assert titles["a"] == ["Cat", None]
    assert titles["b"][1] is not None
    assert len(titles) == 2


def test_a_suffix_is_added_after_the_checks():
    assert cleaned(
        ("a", "One Two", " (3 Main  St, Reno)"), ("b", "Two", ""), ("c", "x", " (y)")
    ) == {
        "a": ["One Two (3 Main St, Reno)", None],
        "b": ["Two", None],
        "c": ["x (y)", "with a title of one character"],
    }
