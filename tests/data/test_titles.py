import html
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rere.data.titles import LONGEST_TITLE, clean, plain


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
def test_plain(raw, title):
    assert plain(pl.Series([raw, "another"], dtype=pl.String)).to_list() == [title, "another"]


def plainly(text: str | None) -> str:
    """A title's text by the rules as they are told, one text at a time."""
    return unquoted(html.unescape(unquoted(text or "")))


def unquoted(text: str) -> str:
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip(" ")
    whole = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip(" ") if whole else text


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
def test_each_text_is_mended_whatever_the_others_are(texts):
    raw = pl.Series(texts, dtype=pl.String)
    assert plain(raw).to_list() == [plainly(text) for text in texts]
    assert raw.to_list() == texts


def cleaned(*titles: tuple, max_words: int | None = 3) -> dict[str, tuple]:
    schema = ["item", "title", "suffix"][: len(titles[0])]
    frame = pl.DataFrame(titles, schema=dict.fromkeys(schema, pl.String), orient="row")
    return {item: rest for item, *rest in clean(frame, max_words).rows()}


def test_which_titles_will_not_do():
    titles = cleaned(
        *(("a", "one two three"), ("b", "one two three four"), ("c", None), ("d", '" "')),
        *(("e", "x"), ("f", "<span id=1>"), ("g", "x" * LONGEST_TITLE)),
        ("h", "x" * (LONGEST_TITLE + 1)),
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


def test_an_item_listed_twice_has_the_first_title_that_will_do():
    titles = cleaned(("a", "Z"), ("a", "Dog"), ("a", "Cat"), ("a", None), ("b", "?"), ("b", None))
    assert titles["a"] == ["Cat", None]
    assert titles["b"][1] is not None
    assert len(titles) == 2


def test_a_suffix_is_not_judged():
    assert cleaned(
        ("a", "One Two", " (3 Main  St, Reno)"), ("b", "Two", ""), ("c", "x", " (y)")
    ) == {
        "a": ["One Two (3 Main St, Reno)", None],
        "b": ["Two", None],
        "c": ["x (y)", "with a title of one character"],
    }
