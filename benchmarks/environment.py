"""The environment of a measurement, which every benchmark saves with its numbers."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from pfedst.version import __version__


def environment() -> dict[str, str | int | None]:
    """Return versions, the number of torch threads, and the machine."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pfedst": __version__,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> str:
    """Return the name of the processor if Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
