"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Lines:
    """A stream for tqdm that turns its carriage returns into lines, as a log needs them."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int | None, label: str, unit: str = "row", initial: int = 0) -> tqdm:
    """A tqdm bar with rate and remaining time, on standard error; `initial` were done before."""
    options: dict[str, Any] = {"total": total, "desc": label, "unit": unit, "initial": initial}
    options["dynamic_ncols"] = True
    if not sys.stderr.isatty():
        options |= {
            "file": Lines(),
            "mininterval": SECONDS_BETWEEN_LINES,
            "maxinterval": SECONDS_BETWEEN_LINES,
            "dynamic_ncols": False,
            "bar_format": LINE,
        }
    return tqdm(**options)
