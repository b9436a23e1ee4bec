"""Raw files of the paper's data sets in small, whose right splits can be counted by hand.

Each user takes eight steps, one on each day of the log. They lead from item to item of a chain,
round and round; every fifth user jumps to the next chain once. So the last item tells the next one,
but for few. Each log also has events that must not reach the splits.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from raw_files import Events, Places, Titles, write, write_yelp_tar

LENGTH = 8
"""Items of a chain, and steps of a user."""
EARLY_REPEATS, LATE_REPEATS = 5, 10
"""Users who review their first item twice, and users who review their last item twice."""


class Group(NamedTuple):
    """Users who walk along the same chains on the same days."""

    users: int
    chains: range
    days: Sequence[str]


class Log(NamedTuple):
    """Events, the titles of their items, and addresses of some."""

    events: Events
    titles: Titles
    places: Places


AMAZON_DAYS = (
    *("2017-01-05", "2017-03-10", "2017-06-01", "2017-09-20"),
    *("2018-01-15", "2018-04-02", "2018-08-08", "2018-10-30"),
)
YELP_DAYS = (
    *("2021-01-01", "2021-02-10", "2021-04-20", "2021-06-01"),
    *("2021-07-15", "2021-09-02", "2021-11-08", "2021-12-30"),
)
MOVIE_DAYS = [f"2000-0{month}-01" for month in range(1, 9)]
# Most steps of these users are before 2016-10-01, the start of the paper's window.
YEAR_BEFORE = ("2015-10-01", "2015-12-01", "2016-03-01", "2016-06-01", "2016-09-30")
TWO_YEARS_BEFORE = ("2014-10-01", "2014-12-01", "2015-03-01", "2015-06-01", "2015-09-30")

TOYS = ("Wooden Train", "Puzzle Farm", "Kite Dragon", "Marble Run", "Doll House", "Card Game")
INDUSTRIAL = ("Brass Hinge", "Steel Washer", "Nylon Rope", "Glass Tube", "Copper Wire", "Drill Bit")
OFFICE = ("Ink Roller", "Desk Lamp", "Paper Tray", "Gel Pen")
MOVIES = ("Night Harbour", "Lost Planet", "Silent Clown", "Iron Queen")
STREETS = ("Oak St", "Main St", "Bay Rd", "Pine Ave", "Lake Dr", "Hill Ln", "Elm Ct", "River Way")
PLACES = ("Harbour Bakery", "Corner Diner", "Lotus Spa", "Union Gym", "Rex Garage", "Blue Cinema")


def planted_log(name: str) -> Log:
    """The log of a data set of the paper, by its name in config/paper.yaml."""
    match name:
        case "toys":
            # Chains that only users of earlier years walk along: 24 items, then 40, then 48.
            groups = [
                Group(60, range(3), AMAZON_DAYS),
                Group(36, range(3, 5), (*YEAR_BEFORE, *AMAZON_DAYS[5:])),
                Group(24, range(5, 6), (*TWO_YEARS_BEFORE, *AMAZON_DAYS[5:])),
            ]
            return amazon(groups, TOYS, "2014-10-01", "2018-11-01")
        case "industrial":
            groups = [Group(150, range(6), AMAZON_DAYS)]
            return amazon(groups, INDUSTRIAL, "1996-10-01", "2018-11-01")
        case "office":
            groups = [Group(60, range(4), AMAZON_DAYS)]
            return amazon(groups, OFFICE, "2016-10-01", "2018-11-01")
        case "yelp":
            return yelp()
        case "ml-1m":
            events, items = walk([Group(60, range(4), MOVIE_DAYS)], "", "")
            titles = number(items, MOVIES, "{} {} (1995)")
            events += small_core(items, "", "", second("2000-05-05"))
            return Log(events, titles | spare_titles(""), {})
    raise ValueError(name)


DATASETS = ("toys", "industrial", "office", "yelp", "ml-1m")
"""Of config/paper.yaml."""


def write_planted(folder: Path) -> None:
    """Write the raw files of all of the paper's data sets, each in a folder of its name."""
    for name in DATASETS:
        log = planted_log(name)
        match name:
            case "yelp":
                write_yelp_tar(folder / name, log.events, log.titles, False, log.places)
            case "ml-1m":
                write(name, folder / name, log.events, log.titles)
            case _:
                category = CATEGORIES[name]
                write("amazon-2018", folder / name, log.events, log.titles, category=category)


CATEGORIES = {
    "toys": "Toys_and_Games",
    "industrial": "Industrial_and_Scientific",
    "office": "Office_Products",
}


def amazon(groups: Sequence[Group], names: Sequence[str], start: str, end: str) -> Log:
    """A log with all that a category of Amazon's may have: see `outside` and `untitled`."""
    events, items = walk(groups, "A", "B")
    titles = number(items, names, "{} No. {}") | spare_titles("B")
    # Two items share a title, which is written in two ways.
    titles[items[7]], titles[items[15]] = "Nuts &amp; Bolts", ' "Nuts & Bolts" '
    events += repeats(groups, events)
    events += small_core(items, "A", "B", second("2018-02-02"))
    events += outside(items, "A", second(start), second(end))
    more, unusable = untitled("A", "B", second("2018-03-03"))
    return Log(events + more, titles | unusable, {})


def yelp() -> Log:
    """The same for Yelp; addresses tell businesses of a chain apart."""
    groups = [Group(140, range(6), YELP_DAYS)]
    events, items = walk(groups, "u-", "b_")
    titles = number(items, PLACES, "{}") | spare_titles("b_")
    places = {
        item: (f"5 {STREETS[n % LENGTH]}", "Tampa", "FL")
        for n, item in enumerate(items)
        if n != 40  # a business without an address
    }
    titles[items[15]], places[items[15]] = titles[items[7]], places[items[7]]
    events += repeats(groups, events)
    events += small_core(items, "u-", "b_", second("2021-05-05"))
    events += outside(items, "u-", second("2021-01-01"), second("2022-01-01"))
    more, unusable = untitled("u-", "b_", second("2021-06-06"))
    return Log(events + more, titles | unusable, places)


def walk(groups: Sequence[Group], user: str, item: str) -> tuple[Events, list[str]]:
    """The steps of all users, and the items of all chains in their order; ids begin as given.

    The first half of a group's chains has twice the users.
    """
    events, everyone, before = [], sum(group.users for group in groups), 0
    for group in groups:
        chains = len(group.chains)
        cycle = chains + chains // 2
        for number in range(group.users):
            name, order = f"{user}{before + number}", 37 * (before + number) % everyone
            chain, start, jump = number % cycle % chains, number // cycle, 1 + number // 5 % 7
            for step, day in enumerate(group.days):
                jumps = number % 5 == 0 and step >= jump
                at = group.chains[(chain + jumps) % chains]
                # In another order within a day, so that each split has some of each group.
                events.append((name, item_id(item, at, start + step), second(day) + 60 * order))
        before += group.users
    items = [item_id(item, chain, n) for g in groups for chain in g.chains for n in range(LENGTH)]
    return events, items


def item_id(prefix: str, chain: int, position: int) -> str:
    return f"{prefix}{100 * (chain + 1) + position % LENGTH}"


def number(items: Sequence[str], names: Sequence[str], form: str) -> Titles:
    """Titles of the items: of each chain its name and a number from 1."""
    return {item: form.format(names[n // LENGTH], 1 + n % LENGTH) for n, item in enumerate(items)}


def spare_titles(item: str) -> Titles:
    """Titles of three items without an event, and of the two that `small_core` has in mind."""
    return {f"{item}{n}": f"Hardly sold {n}" for n in (8001, 8002, 9001, 9002, 9003)}


def repeats(groups: Sequence[Group], events: Events) -> Events:
    """The same review twice: the first item of the first users, the last of those who end last."""
    everyone = sum(group.users for group in groups)
    by_user = [events[LENGTH * n : LENGTH * (n + 1)] for n in range(everyone)]
    latest = sorted(by_user, key=lambda steps: steps[-1][2])[-LATE_REPEATS:]
    return [steps[0] for steps in by_user[:EARLY_REPEATS]] + [steps[-1] for steps in latest]


def small_core(items: Sequence[str], user: str, item: str, time: int) -> Events:
    """32 events that a core of five drops, some only because it dropped others before.

    Five users have four events each. An item has four events, by users with enough. Another item
    has five, but one of them is by one of the five users. Without it a user with five events, of
    which one is with that item, has four.
    """
    few, fewer = f"{item}8001", f"{item}8002"
    events = [(f"{user}7{n:03}", items[n + k], time + k) for n in range(4) for k in range(4)]
    events += [(f"{user}7004", each, time) for each in (*items[:3], fewer)]
    events += [(f"{user}7005", each, time) for each in (*items[:4], fewer)]
    events += [(f"{user}{n}", fewer, time) for n in range(3)]
    return events + [(f"{user}{n}", few, time) for n in range(4)]


def outside(items: Sequence[str], user: str, start: int, end: int) -> Events:
    """Seven events just before a window [start, end) and six at its end."""
    before = [(f"{user}{n}", items[n], start - 1) for n in range(7)]
    return before + [(f"{user}{n}", items[n], end) for n in range(6)]


def untitled(user: str, item: str, time: int) -> tuple[Events, Titles]:
    """Events of items whose titles no model could be asked for, and these titles.

    Six of an item without a title, five of one with 21 words, four of one with markup, three of one
    that is not listed.
    """
    counts = {f"{item}6001": 6, f"{item}6002": 5, f"{item}6003": 4, f"{item}6004": 3}
    events = [(f"{user}{n}", each, time) for each, count in counts.items() for n in range(count)]
    texts = (None, " ".join(["word"] * 21), '<span id="productTitle">Hinge</span>')
    return events, dict(zip(counts, texts, strict=False))


def second(day: str) -> int:
    """The first second of a day (UTC)."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
