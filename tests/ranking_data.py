"""Titles and test rows that the tests of ranking share."""

from tiny_models import TITLES

ITEM_TITLES = [*TITLES, *(f"Item number {number}" for number in range(12)), "Heat"]
"""Titles of 25 items; three of them are called Heat."""

HEAT_ITEMS = [item for item, title in enumerate(ITEM_TITLES) if title == "Heat"]
TEST_ROWS = [
    ([item % 25, (3 * item + 1) % 25][: 1 + item % 2], (7 * item) % 25) for item in range(12)
]
"""(history, target) of each test row."""

SEED = 5
