"""Recommend with the model of a run, which is held in memory and asked many times.

    from rere import Recommender

    recommender = Recommender("results/runs/ml-100k/tiny/rere/seed0/model")
    recommender.recommend(["Toy Story (1995)", "Heat (1995)"], top=10, exclude_seen=True)

A history has ids or titles of items, oldest first. `exclude_seen` and `within` are exact: a
language model searches the prefix tree of the allowed items, as if the catalogue had no others. A
baseline ranks the allowed items.
"""

import copy
import difflib
import heapq
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

import polars as pl

from rere.baselines.model_folder import is_baseline
from rere.baselines.ranker import BaselineRanker
from rere.config.evaluation import BeamSearch
from rere.devices import choose_device
from rere.errors import InputError
from rere.evaluation.ranking import Ranker
from rere.evaluation.title_ranker import TitleRanker

log = logging.getLogger(__name__)

Within = Collection[str] | pl.Expr | Callable[[pl.DataFrame], Any]
"""Which items may be recommended: their ids, or a condition on `Recommender.items`."""


class Recommendation(NamedTuple):
    """An item and its score: a baseline's own, of others the log-probability of the title."""

    id: str
    title: str
    score: float


class Recommender:
    """A model and its catalogue. Threads may share it; one waits for the other.

    `model` is the folder model/ of a run. `options` set the search of a language model. `device` is
    one of torch's, or `auto`: a GPU if there is one. `items` is a data frame of polars or pandas
    with a column `id` and others, to which `within` may refer. Raises InputError for a folder
    without a model or its catalogue, and for `options` with a baseline.
    """

    ranker: Ranker

    def __init__(
        self,
        model: str | Path,
        options: BeamSearch | None = None,
        device: str = "auto",
        items: Any = None,
    ) -> None:
        self.folder = Path(model)
        if is_baseline(self.folder):
            if options is not None:
                given = ", ".join(sorted(options.model_fields_set)) or "options"
                raise InputError(
                    f"{given}: for the search of a language model; {self.folder} has a baseline, "
                    "so leave it out"
                )
            self.ranker, fitted = BaselineRanker.load(self.folder, choose_device(device))
            self.ids, self.titles = (fitted.items[name].to_list() for name in ("raw_id", "title"))
            self.max_history = fitted.model.max_history
        else:
            options = options or BeamSearch()
            self.ranker, catalogue = TitleRanker.load(self.folder, options, choose_device(device))
            self.ids, self.titles = list(catalogue.ids), list(catalogue.titles)
            self.max_history = catalogue.max_history
        self.num_items = len(self.ids)  # that may be recommended; others only occur in histories
        self.columns = items
        self.said: set[str] = set()  # warnings, which recommenders of fewer or new items share
        self.lock = Lock()  # a model is used by one thread at a time

    @cached_property
    def items(self) -> pl.DataFrame:
        """The catalogue: id, title, and the columns that were given."""
        ids, titles = self.ids[: self.num_items], self.titles[: self.num_items]
        frame = pl.DataFrame(
            {"id": ids, "title": titles}, schema={"id": pl.String, "title": pl.String}
        )
        if self.columns is None:
            return frame
        columns = as_frame(self.columns)
        if "id" not in columns.columns:
            raise InputError(f"items: has no column id; it has {', '.join(columns.columns)}")
        columns = columns.with_columns(pl.col("id").cast(pl.String)).drop("title", strict=False)
        if twice := columns["id"].filter(columns["id"].is_duplicated()).to_list():
            raise InputError(f"items: id {twice[0]} comes twice; keep one row")
        return frame.join(columns, on="id", how="left", maintain_order="left")

    @cached_property
    def by_id(self) -> dict[str, int]:
        return {name: item for item, name in reversed([*enumerate(self.ids)])}

    @cached_property
    def by_title(self) -> dict[str, list[int]]:
        items: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles):
            items.setdefault(title, []).append(item)
        return items

    def recommend(
        self,
        history: Sequence[str],
        top: int = 10,
        exclude_seen: bool = False,
        within: Within | None = None,
    ) -> list[Recommendation]:
        """The `top` items after a history, best first; fewer only if fewer are allowed.

        Without `exclude_seen`, items of the history may come again. Raises InputError for an empty
        history, an item that is not in the catalogue, and a `within` that allows no item.
        """
        (ranked,) = self.recommend_many([history], top, exclude_seen, within)
        return ranked

    def recommend_many(
        self,
        histories: Any,
        top: int = 10,
        exclude_seen: bool = False,
        within: Within | None = None,
        batch_size: int | None = None,
    ) -> list[list[Recommendation]]:
        """The lists of `recommend` for many histories, in their order.

        `histories` is an iterable, or a data frame with a column `history`. `batch_size` is the
        number of histories per pass; None takes as many as fit in memory, of baselines 512. Another
        batch size may move scores by rounding, about 1e-6.
        """
        if not isinstance(top, int) or top < 1:
            raise InputError(f"top: must be a whole number of at least 1, not {top!r}")
        if within is not None:
            limited = self.within(within)
            return limited.recommend_many(histories, top, exclude_seen, batch_size=batch_size)
        found = [self.find_items(history) for history in read_histories(histories)]
        longest = self.max_history or max(map(len, found), default=0)
        latest = [[items[0] for items in history][-longest:] for history in found]
        excluded = [
            {i for items in history for i in items} if exclude_seen else () for history in found
        ]
        if any(len(history) > longest for history in found):
            self.warn_once("histories are cut to their latest %d items, as in training", longest)
        ranked: list[list[Recommendation]] = [[] for _ in found]
        with self.lock:
            for row, (items, scores) in self.ranker.rank(latest, excluded, top, batch_size):
                ranked[row] = [
                    Recommendation(self.ids[item], self.titles[item], score)
                    for item, score in zip(items, scores, strict=True)
                ]
        return ranked

    def within(self, allowed: Within) -> Self:
        """A recommender of the allowed items only, with the same model; keep it for many calls.

        Histories may still name the others. Ids that are not in the catalogue are left out, which
        the log says once. Raises InputError if none of the items is allowed.
        """
        limited = copy.copy(self)
        limited.ranker = self.ranker.only(self.select(allowed))
        return limited

    def select(self, allowed: Within) -> list[int]:
        """The items that are allowed, and may be recommended here, in ascending order."""
        unknown: list[str] = []
        if isinstance(allowed, pl.Expr):
            allowed = lambda items, condition=allowed: items.select(condition).to_series()  # noqa: E731
        if callable(allowed):
            mask = pl.Series(allowed(self.items))
            if mask.dtype != pl.Boolean or len(mask) != self.num_items:
                raise InputError(
                    f"within: gives {len(mask)} values of {mask.dtype}; "
                    f"it needs a boolean for each of {self.num_items} items"
                )
            chosen = mask.fill_null(False).arg_true().to_list()
        elif isinstance(allowed, str):
            raise InputError(f"within: takes a list of ids, not the text {allowed!r}")
        else:
            numbers = {str(each): self.by_id.get(str(each), self.num_items) for each in allowed}
            unknown = [name for name, item in numbers.items() if item >= self.num_items]
            chosen = sorted({item for item in numbers.values() if item < self.num_items})
        is_allowed = self.ranker.numbers_of(chosen) >= 0
        chosen = list(itertools.compress(chosen, is_allowed))
        if not chosen:
            raise InputError(
                f"within: allows no item of the catalogue, whose ids are such as {self.ids[0]!r}"
            )
        if unknown:
            self.warn_once(
                "within: ids that are not in the catalogue are left out: %d, such as %r",
                len(unknown),
                unknown[0],
            )
        return chosen

    def warn_once(self, message: str, *values: Any) -> None:
        """Log a warning, unless this recommender or a copy of it has."""
        if message not in self.said:
            self.said.add(message)
            log.warning(message, *values)

    def with_items(self, titles: Any) -> Self:
        """A recommender of new items, which the model need not have seen in training.

        `titles` is a list, whose titles serve as ids, or a data frame with columns `id` and
        `title`. Histories may name the new items and those known before. Raises InputError for a
        baseline.
        """
        frame = titles if not isinstance(titles, list) else {"id": titles, "title": titles}
        new = as_frame(frame)
        ids, names = (new[name].cast(pl.String).to_list() for name in ("id", "title"))
        other = copy.copy(self)
        for name in ("items", "by_id", "by_title"):
            other.__dict__.pop(name, None)
        other.ranker = self.ranker.with_titles(names)
        other.ids, other.titles = [*ids, *self.ids], [*names, *self.titles]
        other.num_items, other.columns = len(ids), new
        return other

    def find_items(self, history: Sequence[str]) -> list[list[int]]:
        """The items that each entry of a history may be: one for an id, all with a title."""
        if isinstance(history, str) or not len(history):
            raise InputError(
                f"history: takes a list of ids or titles, at least one, not {history!r}"
            )
        return [self.find_item(entry) for entry in history]

    def find_item(self, entry: str) -> list[int]:
        """The item with an id, or all with a title; raises InputError for what is neither."""
        if isinstance(entry, int) and not isinstance(entry, bool):
            entry = str(entry)
        if not isinstance(entry, str):
            raise InputError(f"history: takes ids and titles, not {entry!r}")
        item, titled = self.by_id.get(entry), self.by_title.get(entry)
        if item is None and titled is None:
            closest = ", ".join(map(repr, closest_titles(entry, self.by_title)))
            raise InputError(
                f"history: there is no id or title {entry!r}; the closest are {closest}"
            )
        if item is not None and titled is not None and item not in titled:
            raise InputError(
                f"history: {entry!r} is the id of {self.titles[item]!r} and the title of "
                f"{self.ids[titled[0]]!r}; give the id of the one you mean"
            )
        return [item] if item is not None else titled or []


def as_frame(columns: Any) -> pl.DataFrame:
    """Columns as a frame of polars, from one of polars or pandas, or a mapping of lists."""
    if isinstance(columns, pl.DataFrame):
        return columns
    names = list(columns)
    return pl.DataFrame({str(name): list(columns[name]) for name in names}, strict=False)


def read_histories(histories: Any) -> Any:
    """The histories in a data frame with a column `history`, or in an iterable."""
    if isinstance(histories, str):
        raise InputError("histories: takes lists of ids or titles, not one text")
    columns = getattr(histories, "columns", None)
    if columns is None:
        return histories
    if "history" not in columns:
        raise InputError(f"histories: has no column history; it has {', '.join(map(str, columns))}")
    return histories["history"].to_list()


def closest_titles(name: str, titles: Iterable[str]) -> list[str]:
    """The at most three titles most similar to `name`, ignoring case.

    Edit distance is slow on a large catalogue, so shared trigrams preselect 200 titles.
    """
    name = name.casefold()
    trigrams = {name[i : i + 3] for i in range(max(1, len(name) - 2))}

    def similarity(title: str) -> tuple[int, int]:
        folded = title.casefold()
        return sum(trigram in folded for trigram in trigrams), -abs(len(folded) - len(name))

    shortlist = {t.casefold(): t for t in heapq.nlargest(200, titles, key=similarity)}
    return [shortlist[t] for t in difflib.get_close_matches(name, shortlist, n=3, cutoff=0)]
