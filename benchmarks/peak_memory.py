"""Peak memory of a piece of code above what was there before it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


class PeakMemory:
    """What a `watched` block took at its peak above what was taken before it.

    On a GPU: what torch allocated. On a CPU: what the process had resident, which Linux alone tells for a part of a
    process's life; free memory that the allocator holds back is given to the system before, so that the block cannot
    take it unseen.

    Attributes:
        bytes: of the last block; None where it could not be measured.
        missing: why not.
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
            (PROCESS / "clear_refs").write_text("5")  # the highest resident size starts anew
            before = _resident_bytes("VmRSS")
            yield
            self.bytes = _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    """`VmRSS`, what is resident now, or `VmHWM`, the most that was."""
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
