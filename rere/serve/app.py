"""The HTTP interface of a recommender."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from rere.errors import InputError
from rere.recommender import Recommender
from rere.serve.batching import Batcher, Busy, Request

MAX_BODY = 4_000_000
"""Bytes of a request's body: an allow-list of some 200,000 ids."""

TOO_LARGE = f"the body is larger than {MAX_BODY} bytes; send fewer ids"

MAX_TOP = 1000
COMPLETIONS = 20
PAGE = Path(__file__).with_name("page.html")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
"""The page may load nothing from elsewhere."""

Entry = Annotated[str, Field(max_length=10_000)]


class History(BaseModel):
    """A request for a list."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[Entry] = Field(
        min_length=1, max_length=100_000, description="Ids or titles of items, oldest first."
    )
    top: int = Field(10, ge=1, le=MAX_TOP, description="Items of the list.")
    exclude_seen: bool = Field(False, description="Leave out the items of the history.")
    within: list[Entry] | None = Field(
        None, description="Ids of the items that may be recommended. null: all."
    )


class Item(BaseModel):
    """An item of the catalogue."""

    id: str
    title: str


class RankedItem(Item):
    """An item of a list."""

    score: float = Field(description="Log-probability of the title; of a baseline its own score.")


class RankedList(BaseModel):
    """The answer to a request: items, best first."""

    items: list[RankedItem]


class Health(BaseModel):
    """What is served, and how many requests wait."""

    model: str
    items: int
    waiting: int


def make_app(
    recommender: Recommender, max_queue: int = 256, max_batch: int = 64, timeout: float = 30
) -> FastAPI:
    """The app of one recommender, which answers a request within `timeout` seconds or with 504."""
    batcher = Batcher(recommender, max_queue, max_batch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="rere", description="Recommendations of one model.", lifespan=lifespan)
    app.add_middleware(BodyLimit)
    known = recommender.items["title"].to_list()
    titles = [(title.casefold(), item) for item, title in enumerate(known)]

    @app.exception_handler(InputError)
    async def refuse(_: HttpRequest, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.post("/recommend")
    async def recommend(wanted: History) -> RankedList:
        """Recommend items after a history."""
        recommender.find_items(wanted.history)  # refuses unknown ones before they wait
        within = None if wanted.within is None else tuple(sorted({*wanted.within}))
        request = Request(wanted.history, wanted.top, wanted.exclude_seen, within)
        try:
            ranked = await asyncio.wait_for(batcher.recommend(request), timeout)
        except Busy:
            headers = {"Retry-After": "1"}
            raise HTTPException(503, "too many requests wait; try again", headers) from None
        except TimeoutError:
            raise HTTPException(504, f"no answer within {timeout:g} seconds; try again") from None
        return RankedList(items=[RankedItem(**each._asdict()) for each in ranked])

    @app.get("/items")
    def complete(q: Annotated[str, Query(max_length=1000)] = "") -> list[Item]:
        """Items whose title contains a text; those that begin with it come first."""
        text = q.casefold()
        found = [(not title.startswith(text), item) for title, item in titles if text in title]
        return [
            Item(id=recommender.ids[item], title=recommender.titles[item])
            for _, item in sorted(found)[:COMPLETIONS]
        ]

    @app.get("/health")
    def health() -> Health:
        """Say that the server answers."""
        return Health(
            model=str(recommender.folder),
            items=recommender.num_items,
            waiting=batcher.waiting.qsize(),
        )

    page = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    return app


class BodyLimit:
    """Refuses bodies above MAX_BODY with 413, without keeping them."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > MAX_BODY:
            # A client that is still sending would not read the answer.
            size, has_more = 0, True
            while has_more and size < 16 * MAX_BODY:
                message = await receive()
                size, has_more = size + len(message.get("body", b"")), message.get("more_body")
            response = JSONResponse({"detail": TOO_LARGE}, 413, {"Connection": "close"})
            await response(scope, receive, send)
            return
        size = 0

        async def limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self.app(scope, limited, send)
