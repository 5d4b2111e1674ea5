"""Process many items in threads and show the progress."""

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
    """Yield results in the order of the items, with progress on a terminal.

    The function runs in threads: decoding holds no lock.

    Args:
        function: function of one item.
        items: items to process.
        description: text of the progress display.
        workers: number of threads; 0: the number of cores.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from track(pool.map(function, items), description, len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C finishes the items in progress and cancels the waiting ones


def track(items: Iterable[Found], description: str, total: int | None = None) -> Iterable[Found]:
    """Iterate over items with progress and an estimate of the time left, on standard error if it is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return progress.track(items, description, total=total, console=console, disable=hidden, transient=True)
