"""Loaders that read images in processes of their own."""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data import DataLoader, Dataset


def image_loader(dataset: Dataset[Any], num_workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader whose processes are forked, on Linux.

    A spawned process imports torch again, and each round makes several loaders for each site. Spawning is the default
    of some versions of Python, and in every process that was spawned itself, as a client's worker process can be.

    Args:
        dataset: the images.
        num_workers: number of processes; 0: the images are loaded in this process.
        options: further options of torch's `DataLoader`.
    """
    forked = "fork" if num_workers and sys.platform == "linux" else None
    return DataLoader(dataset, num_workers=num_workers, multiprocessing_context=forked, **options)
