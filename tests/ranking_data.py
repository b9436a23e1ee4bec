"""Titles, test rows and a catalogue that the tests of ranking share."""

from collections.abc import Sequence

from tiny_models import TITLES, tokenizer

from rere.catalogue import Catalogue
from rere.tokenization import PromptEncoder

ITEM_TITLES = [*TITLES, *(f"Item number {number}" for number in range(12)), "Heat"]
"""Titles of 25 items; three of them are called Heat."""

HEAT_ITEMS = [item for item, title in enumerate(ITEM_TITLES) if title == "Heat"]
TEST_ROWS = [
    ([item % 25, (3 * item + 1) % 25][: 1 + item % 2], (7 * item) % 25) for item in range(12)
]
"""(history, target) of each test row."""

SEED = 5


def build_catalogue(titles: Sequence[str] = ITEM_TITLES) -> Catalogue:
    """The catalogue of these titles in the tokens of the fixed model."""
    encoder = PromptEncoder(tokenizer("qwen2"), titles)
    return Catalogue.build(encoder, encoder.encode_responses())
