"""The ReRe study as a program, and `Recommender` to use what it trains."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rere.recommender import Recommender

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, which `rere --help` need not wait for.
    if name == "Recommender":
        from rere.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'rere' has no attribute {name!r}")
