"""The command line: `pfedst fit | validate | test | methods`."""

from pfedst.cli.main import main

__all__ = ["main"]
