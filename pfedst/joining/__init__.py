"""A hospital joins a finished run: what it begins with, and the folder that it gets, which is like that of a run."""

from pfedst.joining.join import ROUND, Join
from pfedst.joining.source import COMMAND, Source

__all__ = ["COMMAND", "ROUND", "Join", "Source"]
