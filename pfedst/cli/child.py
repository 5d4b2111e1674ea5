"""`pfedst fit` in a child process of a comparison."""

from __future__ import annotations

import atexit
import os
import runpy
import sys

from pfedst.child_processes import ParentProcess


def run_fit(parent: ParentProcess, arguments: list[str], log: str) -> None:
    """Run `python -m pfedst fit`, with all its output in a file, and end with its exit code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.argv = ["pfedst", "fit", *arguments]
    try:
        runpy.run_module("pfedst", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a child process ends without them; loggers end their work there
