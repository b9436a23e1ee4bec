"""The server answers what a recommender does, alone and under load, and survives bad requests."""

import asyncio
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from browser import CHROMIUM

from rere.errors import InputError
from rere.serve.app import MAX_BODY
from rere.serve.batching import Batcher, Busy, Request
from rere.serve.server import listen, serve

JSON = {"Content-Type": "application/json"}
HISTORIES = [["Heat"], ["raw3"], ["raw20", "raw21", "Heat"], ["raw1", "raw2"], ["Toy Story (1995)"]]


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the answer, as an object if it is JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, JSON)
    response = connection.getresponse()
    text = response.read().decode()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, json.loads(text) if is_json else text


def recommend(port: int, **wanted: Any) -> list[tuple[str, str, float]]:
    status, answer = ask(port, "POST", "/recommend", wanted)
    assert status == 200, answer
    return [(each["id"], each["title"], each["score"]) for each in answer["items"]]


def assert_same(actual, expected):
    assert [each[:2] for each in actual] == [tuple(each[:2]) for each in expected]
    assert [each[2] for each in actual] == pytest.approx([each[2] for each in expected], abs=1e-5)


def test_lists_are_those_of_the_recommender(port, recommender):
    for history in HISTORIES:
        assert_same(recommend(port, history=history), recommender.recommend(history))
    within = ["raw5", "raw6", "raw20"]
    actual = recommend(port, history=["raw20"], top=99, exclude_seen=True, within=within)
    expected = recommender.recommend(["raw20"], 99, exclude_seen=True, within=within)
    assert_same(actual, expected)
    assert {each[0] for each in actual} == {"raw5", "raw6"}


def test_many_clients_get_the_lists_that_each_would_get_alone(port, recommender):
    alone = [recommender.recommend(history, exclude_seen=True) for history in HISTORIES]
    wrong: list[Any] = []

    def run(seed: int) -> None:
        for _ in range(8):
            number = random.Random(seed).randrange(len(HISTORIES))
            try:
                ranked = recommend(port, history=HISTORIES[number], exclude_seen=True)
                assert_same(ranked, alone[number])
            except Exception as error:
                wrong.append(error)

    clients = [threading.Thread(target=run, args=(seed,)) for seed in range(16)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert wrong == []


def test_titles_are_completed(port):
    status, found = ask(port, "GET", "/items?q=toy")
    assert (status, [each["title"] for each in found]) == (
        200,
        ["Toy Story (1995)", "Toy Story 2 (1999)"],
    )
    assert ask(port, "GET", "/items?q=story%202")[1][0]["title"] == "Toy Story 2 (1999)"
    assert ask(port, "GET", "/items?q=%00")[1] == []


def test_health_and_the_description_of_the_interface(port, recommender):
    status, health = ask(port, "GET", "/health")
    assert (status, health) == (200, {"model": str(recommender.folder), "items": 25, "waiting": 0})
    status, described = ask(port, "GET", "/openapi.json")
    assert status == 200 and set(described["paths"]) == {"/recommend", "/items", "/health"}
    assert ask(port, "GET", "/docs")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"history": ["Heet"]}, 400, "no id or title 'Heet'; the closest are 'Heat'"),
        ({"history": ["Heat"], "within": []}, 400, "within: allows no item"),
        ({"history": ["Heat"], "within": ["raw99"]}, 400, "within: allows no item"),
        ({"history": []}, 422, "at least 1 item"),
        ({"history": "Heat"}, 422, "valid list"),
        ({"history": [3]}, 422, "valid string"),
        ({"history": ["Heat"], "top": 0}, 422, "greater than or equal to 1"),
        ({"history": ["Heat"], "topp": 3}, 422, "Extra inputs"),
        (b"{", 422, "JSON decode error"),
        (b"[" * 100_000, 400, ""),
        (b"\xff", 400, ""),
        (b" " * (MAX_BODY + 1), 413, "the body is larger"),
    ],
)
def test_a_bad_request_is_refused_and_the_server_stays(port, body, status, message):
    found, answer = ask(port, "POST", "/recommend", body)
    assert found == status or (message == "" and found in (400, 422)), answer
    assert message in json.dumps(answer, ensure_ascii=False)
    assert ask(port, "GET", "/health")[0] == 200


def test_a_history_of_10_000_is_cut(port, recommender):
    long = ["raw5"] * 10_000 + ["raw3", "Heat", "raw20"]
    assert_same(recommend(port, history=long), recommender.recommend(long[-3:]))


def test_a_body_without_a_length_is_bounded(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    chunks = (b" " * 100_000 for _ in range(MAX_BODY // 100_000 + 1))
    connection.request("POST", "/recommend", chunks, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413


# ---------------------------------------------------------------------------------- the queue


class SlowRecommender:
    """Holds each search until it is told to go on."""

    def __init__(self, recommender):
        self.recommender, self.go, self.batches = recommender, threading.Event(), []

    def recommend_many(self, histories, *options):
        self.go.wait(30)
        self.batches.append(len(histories))
        return self.recommender.recommend_many(histories, *options)


def request(*history: str, top: int = 3) -> Request:
    return Request([*history], top, exclude_seen=False, within=None)


def test_requests_of_a_moment_share_a_search_and_more_than_the_queue_holds_are_refused(recommender):
    slow = SlowRecommender(recommender)
    batcher = Batcher(slow, max_queue=3, max_batch=3)

    async def run() -> None:
        first = asyncio.ensure_future(batcher.recommend(request("Heat")))
        await asyncio.sleep(0.2)  # it is being searched
        others = [asyncio.ensure_future(batcher.recommend(request("raw3"))) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await batcher.recommend(request("raw4"))
        others[0].cancel()  # by a client that gave up
        slow.go.set()
        assert await first == recommender.recommend(["Heat"], 3)
        assert await others[1] == await others[2]

    asyncio.run(run())
    batcher.close()
    assert slow.batches == [1, 2]


def test_an_error_reaches_its_request_only(recommender):
    batcher = Batcher(recommender, max_queue=9, max_batch=9)

    async def run() -> list[Any]:
        wanted = [request("Heat"), request("no such title", top=4), request("raw3", top=5)]
        return await asyncio.gather(*map(batcher.recommend, wanted), return_exceptions=True)

    first, second, third = asyncio.run(run())
    batcher.close()
    assert isinstance(second, InputError) and (len(first), len(third)) == (3, 5)


# --------------------------------------------------------------------------------- the command


def test_a_taken_port_is_named(port):
    with pytest.raises(InputError, match=rf"127\.0\.0\.1 port {port}: .*in use.*; choose another"):
        listen("127.0.0.1", port)


def test_answers_are_sent_without_delay():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_missing_packages_are_named(model_with_catalogue, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = r"uvicorn is not installed; run `pip install -e '\.\[serve\]' -c constraints.txt` in "
    with pytest.raises(InputError, match=message):
        serve(model_with_catalogue, None, "cpu", "127.0.0.1", 0, 1, 1, 1)


def test_the_command_answers_until_it_is_stopped(model_with_catalogue):
    command = [sys.executable, "-m", "rere", "serve", "--model", str(model_with_catalogue)]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+),", line).group(1))
    assert len(recommend(port, history=["Heat"], top=4)) == 4
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) in (0, 128 + signal.SIGTERM)


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
def test_the_page_shows_a_list_in_a_browser(port, recommender, tmp_path):
    page = f"http://127.0.0.1:{port}/#{json.dumps(['Heat'])}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", page]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    for item in recommender.recommend(["Heat"], exclude_seen=True):
        assert f"<td>{item.id}</td>" in dom
