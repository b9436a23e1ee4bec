"""A server on a free port of this machine."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from rere import Recommender
from rere.serve.app import make_app
from rere.serve.server import listen


@pytest.fixture(scope="session")
def port(recommender: Recommender) -> Iterator[int]:
    """The port of a server of the fixture `recommender`."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(recommender), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
