"""A headless Chromium to test pages in, driven over its pipe."""

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A page; `messages` are what its console and the browser's log said."""

    def __init__(self, process: subprocess.Popen, send: Any, receive: Any) -> None:
        self.process, self.send, self.receive = process, send, receive
        self.numbers, self.session, self.messages = itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while (answer := self.read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        message = json.loads(text)
        if message.get("method") in ("Runtime.consoleAPICalled", "Log.entryAdded"):
            self.messages.append(message["params"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.messages.append(message["params"])
        return message

    def open(self, url: str) -> None:
        """Load a page, and wait until its scripts have run."""
        self.call("Page.navigate", url=url)
        while (
            self.evaluate("document.readyState") != "complete"
            or self.evaluate("location.href") == "about:blank"
        ):
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression once it is not false."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within {seconds} seconds: {expression}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> list[str]:
        """The text of each element that a selector finds."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.evaluate(f"{found}.map(each => each.textContent)")

    def set(self, selector: str, value: str) -> None:
        """Type or choose a value, as the user would."""
        self.evaluate(
            f"{{ const element = document.querySelector({json.dumps(selector)});"
            f"element.value = {json.dumps(value)};"
            "for (const type of ['input', 'change'])"
            "element.dispatchEvent(new Event(type, {bubbles: true})); }"
        )

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press a key, on the element that has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a Chromium that keeps its files in the folder `profile`."""
    assert CHROMIUM is not None
    to_read, to_send = os.pipe()
    to_receive, to_write = os.pipe()
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write} 2> /dev/null'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *flags, f"--user-data-dir={profile}"],
        pass_fds=(to_read, to_write),
    )
    os.close(to_read)
    os.close(to_write)
    with open(to_send, "wb") as send, open(to_receive, "rb") as receive:
        try:
            yield Page(process, send, receive)
        finally:
            process.terminate()
            process.wait(30)
