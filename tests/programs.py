"""Programs that tests run in a process of their own, to end them from outside."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from pfedst.child_processes import start_child, start_fork_server
from pfedst.cli import main
from pfedst.testing.small import fit
from tests.server.runs import go_on


def start(program, *arguments):
    """Start one of the programs below; its output goes into OUTPUT, its first argument."""
    return start_child(program, *map(str, arguments))


def _begin(output) -> None:
    """Start like a new process: its own output, and a fork server for its own children."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    start_fork_server()
    torch.set_num_threads(1)


def finished(program, *arguments) -> int:
    """Run one of the programs below to its end; its exit code."""
    child = start(program, *arguments)
    child.process.join(600)
    return child.process.exitcode


def command(parent, output, *arguments) -> None:
    """`pfedst` with arguments."""
    _begin(output)
    sys.exit(main(list(arguments)))


def run_or_go_on(parent, output, folder, rounds) -> None:
    """A small run of pFedST; the rest of it if it is there."""
    from pfedst.methods.pfedst import PFedST

    _begin(output)
    folder = Path(folder)
    if (folder / "run").exists():
        go_on(folder, PFedST(), rounds=int(rounds))
    else:
        fit(folder, PFedST(), rounds=int(rounds))


def run_that_hangs(parent, output, folder) -> None:
    """A run whose two workers never end their fits."""
    from tests.faults.test_sites_on_disk import Hangs

    _begin(output)
    fit(Path(folder), Hangs(), transport="processes", workers=2, threads=1, rounds=1)


def commands_in(parent, output, folder, *commands) -> None:
    """`pfedst` with arguments, several times within a folder whose `site` holds packages; their exit codes, in turn."""
    _begin(output)
    os.chdir(folder)
    sys.path.insert(0, str(Path(folder) / "site"))
    for arguments in commands:
        print("exit code", main(arguments.split("\n")), flush=True)


def tests_in(parent, output, folder, *arguments) -> None:
    """`pytest` with arguments, within a folder whose `site` holds packages."""
    _begin(output)
    os.chdir(folder)
    sys.path[:0] = [str(Path(folder) / "site"), folder]
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *arguments]))


def script(parent, output, file, *arguments) -> None:
    """A script with arguments."""
    _begin(output)
    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent))
    runpy.run_path(file, run_name="__main__")
