"""The environment of a run or a report: versions, date, command and hardware. This module does not import torch."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pfedst.errors import listed
from pfedst.version import __version__

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "open_clip_torch", "timm", "numpy", "matplotlib")
"""Packages on whose version numbers or pictures depend."""
MOST_CHARACTERS = 300
"""Of a command in a report, which may name hundreds of folders."""


def environment() -> dict[str, Any]:
    """Return what a bug report or a table of seconds needs to know, as JSON can hold it."""
    return {
        "pfedst": __version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(sys.argv),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
    }


def environment_lines(found: Mapping[str, Any]) -> list[str]:
    """Return an environment in words, one line a topic, as `pfedst env` prints it."""
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return [
        f"pfedst {found['pfedst']}, {found['date']}",
        f"command: {found['command']}",
        f"Python {found['python']}, {packages}",
        f"hardware: {hardware_text(found)}; {found['system']}",
    ]


def hardware_text(found: Mapping[str, Any]) -> str:
    """Describe processor, memory and GPUs."""
    memory = found["memory_bytes"]
    parts = [found["processor"] or "unknown processor", f"{found['cores']} cores"]
    parts += [f"{memory / 2**30:.0f} GiB of memory"] if memory else []
    return ", ".join([*parts, f"GPU: {listed(found['gpus'])}" if found["gpus"] else "no NVIDIA GPU"])


def runs_text(environments: Sequence[Mapping[str, Any] | None]) -> str:
    """Describe with which versions and on which hardware runs were made; None is a run that did not record it."""
    known = [found for found in environments if found is not None]
    kinds: dict[str, int] = {}
    for found in known:
        torch = found["packages"].get("torch", "unknown")
        kind = f"pfedst {found['pfedst']}, torch {torch}, {hardware_text(found)}"
        kinds[kind] = kinds.get(kind, 0) + 1
    parts = [f"{count} with {kind}" for kind, count in kinds.items()]
    if len(known) < len(environments):
        parts.append(f"{len(environments) - len(known)} that did not record versions and hardware")
    dates = sorted(found["date"] for found in known)
    when = f", finished {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "") if dates else ""
    return f"runs: {listed(parts, '; ', 5)}{when}"


def _command(arguments: Sequence[str]) -> str:
    program, *rest = arguments or [""]
    name = Path(program).name
    text = shlex.join(["pfedst" if name == "__main__.py" else name, *rest])
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor if Linux reports it, and else what Python knows."""
    return _value(Path("/proc/cpuinfo"), "model name") or platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _gpus() -> list[str]:
    """Return the names of NVIDIA GPUs as their driver reports them on Linux."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [name for file in files if (name := _value(file, "Model"))]


def _value(file: Path, key: str) -> str:
    """Return the value of the first line `key : value`, or an empty text."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
