"""How many requests `rere serve` answers, and how long one waits.

`python tests/serve/load.py results/runs/ml-100k/tiny/sft/seed0/model` starts the server of a
trained model and asks it for lists without seen items, first one request at a time, then as 64
clients. Each client sends its next request when it has the answer to the last one. Every list must
be that of a request alone. Run it on an idle machine.
"""

import http.client
import json
import random
import subprocess
import sys
import threading
import time

import numpy as np

from rere import Recommender

HISTORIES = 200
TOLERANCE = 1e-5
"""Of the scores."""


def ask(connection: http.client.HTTPConnection, history: list[str]) -> list[dict]:
    """The list of the server after a history of ids."""
    body = json.dumps({"history": history, "exclude_seen": True})
    connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer["items"]


def check(items: list[dict], expected: list) -> None:
    """Stop if a list is not that of a request alone; items with equal scores may change places."""
    scores = np.array([each["score"] for each in items])
    assert np.abs(scores - [each.score for each in expected]).max() < TOLERANCE
    for each, one in zip(items, expected, strict=True):
        near = [other.id for other in expected if abs(other.score - one.score) < TOLERANCE]
        assert each["id"] in near or one is expected[-1], (items, expected)


def measure(port: int, lists: list[tuple[list[str], list]], clients: int, seconds: float) -> str:
    """A row of the table: requests per second, median and 95th percentile."""
    waits: list[float] = []
    failures: list[BaseException] = []
    end = time.monotonic() + seconds

    def run(seed: int) -> None:
        connection, chosen = http.client.HTTPConnection("127.0.0.1", port), random.Random(seed)
        try:
            while time.monotonic() < end:
                history, expected = chosen.choice(lists)
                start = time.monotonic()
                items = ask(connection, history)
                waits.append(time.monotonic() - start)
                check(items, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]
    median, high = np.quantile(waits, [0.5, 0.95]) * 1000
    return (
        f"| {clients} | {seconds} | {len(waits) / seconds:.0f} | {median:.0f} ms | {high:.0f} ms |"
    )


def main(model: str) -> None:
    recommender = Recommender(model)
    chosen = random.Random(0)
    histories = [chosen.sample(recommender.ids, chosen.randint(1, 10)) for _ in range(HISTORIES)]
    lists = [(each, recommender.recommend(each, exclude_seen=True)) for each in histories]
    start = time.monotonic()
    for history in histories:
        recommender.recommend(history, exclude_seen=True)
    held = (time.monotonic() - start) / HISTORIES * 1000
    command = [sys.executable, "-m", "rere", "serve", "--model", model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rpartition("/docs")[0].rpartition(":")[2])
        print("| clients | seconds | requests per second | median | 95th percentile |")
        print("|---:|---:|---:|---:|---:|")
        for clients, seconds in ((1, 20), (64, 60)):
            print(measure(port, lists, clients, seconds), flush=True)
    finally:
        server.terminate()
        server.wait()
    print(f"A loaded Recommender answers in {held:.0f} ms.")


if __name__ == "__main__":
    main(sys.argv[1])
