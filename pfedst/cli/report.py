"""`pfedst report`: tables and figures from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(paths: Sequence[Path]) -> None:
    """Later."""


def run_report(arguments: Sequence[str]) -> int:
    """Later."""
    return 0
