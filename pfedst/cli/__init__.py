"""The command line: `pfedst fit | validate | test | cache | methods`."""

from pfedst.cli.main import main

__all__ = ["main"]
