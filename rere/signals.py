"""SIGTERM and SIGHUP: schedulers send them some time before they kill a job."""

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGTERM, signal.SIGHUP)

REPEAT = 0.5
"""Seconds in which a repeated signal counts once: a scheduler sends it to all processes of a job,
among them Snakemake, which passes it on."""


class Stopped(BaseException):
    """A signal ends the stage. The message is one line, `number` is the signal's.

    `raised` is the last one that `stop` has raised: libraries may make another error of it.
    """

    raised: "Stopped | None" = None

    def __init__(self, number: int, remedy: str = "") -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; {remedy}" if remedy else f"stopped by {name}")
        self.number = number


class Handler:
    """Calls `act` with the number of each signal that does not repeat the one before."""

    last = -math.inf  # seconds, of all handlers

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act

    def __call__(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if now - Handler.last > REPEAT:
            Handler.last = now
            self.act(number)


def handle(act: Callable[[int], None]) -> dict[int, Any]:
    """Let `act` receive SIGNALS; return the handlers before.

    Signals that are ignored, as under nohup, stay ignored. Only the main thread can set handlers;
    another changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    received = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    return {number: signal.signal(number, Handler(act)) for number in received}


def stop(number: int) -> NoReturn:
    """Raise Stopped, so that scratch files are removed and one line is printed."""
    Stopped.raised = Stopped(number)
    raise Stopped.raised


def ignore() -> None:
    """Ignore SIGNALS from now on, since the process is about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class DeferredSignals:
    """Notes the first signal, so that the step can end; a second one acts at once.

    For the body of a `with` statement. `received` is the number of the first one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.handlers = handle(self.receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def receive(self, number: int) -> None:
        """Note a signal's number; leave the next one to the handlers before."""
        self.received = number
        self.restore()

    def restore(self) -> None:
        """Set the handlers before again."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self.handlers = {}
