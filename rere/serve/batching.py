"""Answer requests of a moment with one search.

One thread owns the recommender. It takes the requests that have come while it was busy, and those
of the next milliseconds, and ranks them together: a search of many histories takes little longer
than one of a few.
"""

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

from rere.recommender import Recommendation, Recommender

WINDOW_SECONDS = 0.003
"""How long a request waits for others."""

KEPT_FILTERS = 32
"""Allow-lists whose pruned trees are kept."""


class Busy(Exception):
    """The queue is full."""


@dataclass
class Request:
    """A history and what its list may hold."""

    history: list[str]
    top: int
    exclude_seen: bool
    within: tuple[str, ...] | None  # sorted ids; None: all
    result: Future[list[Recommendation]] = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, bool, tuple[str, ...]]:
        """Requests with the same key can share a search."""
        return self.top, self.exclude_seen, self.within or ()


class Batcher:
    """Ranks requests in a thread of its own, up to `max_batch` at once.

    At most `max_queue` requests wait.
    """

    def __init__(self, recommender: Recommender, max_queue: int, max_batch: int) -> None:
        self.recommender, self.max_batch = recommender, max_batch
        self.waiting: queue.Queue[Request | None] = queue.Queue(max_queue)
        self.filters: OrderedDict[tuple[str, ...], Recommender] = OrderedDict()
        self.thread = threading.Thread(target=self.run, name="recommender", daemon=True)
        self.thread.start()

    async def recommend(self, request: Request) -> list[Recommendation]:
        """The list of a request. Raises Busy, and InputError for a wrong request."""
        try:
            self.waiting.put_nowait(request)
        except queue.Full:
            raise Busy from None
        return await asyncio.wrap_future(request.result)

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self.waiting.put(None)
        self.thread.join()

    def run(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch, is_last = self.gather(first)
            for _, requests in groupby(sorted(batch, key=key_of), key_of):
                wanted = [each for each in requests if each.result.set_running_or_notify_cancel()]
                self.answer(wanted)
            if is_last:
                return

    def gather(self, first: Request) -> tuple[list[Request], bool]:
        """The requests of one search, and whether the server closes."""
        batch, end = [first], time.monotonic() + WINDOW_SECONDS
        while len(batch) < self.max_batch:
            try:
                following = self.waiting.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def answer(self, requests: list[Request]) -> None:
        """Rank the histories of requests with the same key."""
        if not requests:
            return
        first = requests[0]
        try:
            recommender = self.recommender
            if first.within is not None:
                recommender = self.limited(first.within)
            histories = [each.history for each in requests]
            lists = recommender.recommend_many(histories, first.top, first.exclude_seen)
        except BaseException as error:  # of one request or of all: each gets it
            for each in requests:
                each.result.set_exception(error)
            return
        for each, ranked in zip(requests, lists, strict=True):
            each.result.set_result(ranked)

    def limited(self, within: tuple[str, ...]) -> Recommender:
        """The recommender of an allow-list; those used last are kept."""
        if within not in self.filters:
            self.filters[within] = self.recommender.within(within)
            if len(self.filters) > KEPT_FILTERS:
                self.filters.popitem(last=False)
        self.filters.move_to_end(within)
        return self.filters[within]


def key_of(request: Request) -> tuple[int, bool, tuple[str, ...]]:
    return request.key
