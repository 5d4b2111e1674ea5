"""The peak memory of a run."""

from __future__ import annotations

import sys

import torch

from pfedst.child_processes import inherited_bytes


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory so far: allocated on the accelerator, or resident in this process on a CPU.

    A process that was forked does not count the pages that it shares with the process it is a copy of: its libraries.
    None if the platform does not report it (Windows).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024 - inherited_bytes()
