"""Compute each image of a batch alone, so that its bits cannot depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from pfedst.torch_threads import torch_threads

Found = TypeVar("Found")


def one_by_one(function: Callable[[Tensor], Found], images: Tensor) -> list[Found]:
    """Return the result of a function for each image (1, ...) of a batch (B, ...) on a CPU, in their order.

    The last bits of a matrix product can depend on the number of rows, on the place of a row among them, on its address
    and order in memory, and on the number of threads; on which of these, the library and the processor decide. Here
    every image has memory of its own and is computed in one thread. Images are distributed over as many threads as one
    operation of torch may use, so this takes no longer than batches do.
    """
    alone = [image.clone(memory_format=torch.contiguous_format) for image in torch.split(images, 1)]
    threads = min(torch.get_num_threads(), len(images))
    with torch_threads(1):
        if threads == 1:
            return [function(image) for image in alone]
        # autocast belongs to a thread
        kind, enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

        def in_thread(image: Tensor) -> Found:
            with torch.autocast("cpu", kind, enabled):
                return function(image)

        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(in_thread, alone))
