"""Work on many items in threads, and how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich import progress
from rich.console import Console

Given = TypeVar("Given")
Found = TypeVar("Found")


def for_each(
    function: Callable[[Given], Found], items: Sequence[Given], description: str, workers: int = 0
) -> Iterator[Found]:
    """Results in the order of the items, from threads (decoding holds no lock), with progress on a terminal.

    Args:
        function: of one item.
        items: what there is to do.
        description: for the progress.
        workers: number of threads; 0: as many as cores.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from track(pool.map(function, items), description, len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends the items at hand, not all that wait


def track(items: Iterable[Found], description: str, total: int | None = None) -> Iterable[Found]:
    """The items, with progress and an estimate of what is left on standard error, where that is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return progress.track(items, description, total=total, console=console, disable=hidden, transient=True)
