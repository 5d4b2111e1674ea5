"""What a result was measured with; every benchmark writes it beside its numbers."""

from __future__ import annotations

import os
import platform

import torch

from pfedst.version import __version__


def environment() -> dict[str, str | int | None]:
    """Versions, threads of torch, and the machine."""
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
    """The processor's name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
