"""Show progress: a bar on a terminal, a line every few seconds in a log."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class LineStream:
    """A stream for tqdm that prints each update on a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    total: int | None, label: str, unit: str = "row", initial: int = 0, disable: bool = False
) -> tqdm:
    """Return a tqdm bar on standard error that starts at `initial`, or none to see."""
    options: dict[str, Any] = {"total": total, "desc": label, "unit": unit, "initial": initial}
    options["disable"] = disable
    options["dynamic_ncols"] = True
    if not sys.stderr.isatty():
        options |= {
            "file": LineStream(),
            "mininterval": SECONDS_BETWEEN_LINES,
            "maxinterval": SECONDS_BETWEEN_LINES,
            "dynamic_ncols": False,
            "bar_format": LINE,
        }
    return tqdm(**options)
