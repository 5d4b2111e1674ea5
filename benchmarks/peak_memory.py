"""Peak memory of a piece of code above the memory in use before it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


class PeakMemory:
    """Measure the peak memory of a `watched` block above the memory in use before it.

    On a GPU this is the memory allocated by torch. On a CPU it is the resident memory of the process, which only Linux
    reports for a part of a process's life. Free memory held by the allocator is returned to the system before the
    block, so that its use is counted.

    Attributes:
        bytes: peak of the last block; None if it could not be measured.
        missing: reason why it was not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self.missing = "" if device.type == "cuda" or PROCESS.exists() else "needs Linux: no peak of a single step"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure a block."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield
            self.bytes = torch.cuda.max_memory_allocated(self.device) - before
        elif self.missing:
            yield
        else:
            _give_back_free_memory()
            (PROCESS / "clear_refs").write_text("5")  # reset the highest resident size
            before = _resident_bytes("VmRSS")
            yield
            self.bytes = _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    """Return `VmRSS`, the current resident memory, or `VmHWM`, its maximum."""
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
