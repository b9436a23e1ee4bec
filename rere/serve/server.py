"""Serve a model over HTTP, until a signal stops it."""

import socket
import sys
from pathlib import Path

from rere.config.evaluation import BeamSearch
from rere.errors import InputError


def serve(
    model: Path,
    options: BeamSearch | None,
    device: str,
    host: str,
    port: int,
    max_queue: int,
    max_batch: int,
    timeout: float,
) -> None:
    """Load the model, then answer requests; SIGTERM and SIGINT let running ones end first.

    Raises InputError if the packages of the extra `serve` are missing, or the port is taken.
    """
    try:
        import uvicorn

        from rere.serve.app import make_app
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run `pip install -e '.[serve]' -c constraints.txt` in "
            "the checkout"
        ) from None
    from rere.recommender import Recommender

    listener = listen(host, port)
    app = make_app(Recommender(model, options, device), max_queue, max_batch, timeout)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=round(timeout)
    )
    where = f"http://{host}:{listener.getsockname()[1]}"
    print(f"rere serve: {model} answers at {where}, its interface is described at {where}/docs")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; raises InputError if it is taken or not of this machine."""
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host} port {port}: {reason}; choose another --port or --host") from None
    # Inherited by connections: headers and body are two packets, and the second would wait 40 ms
    # for the client to acknowledge the first. asyncio sets it only on sockets that it makes.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
