"""A hospital that was not in a run: it evaluates the generic model, and joins: it trains its own part of the model."""

from pfedst.joining.evaluate import evaluate_model
from pfedst.joining.join import ROUND, Join
from pfedst.joining.source import COMMAND, Source

__all__ = ["COMMAND", "ROUND", "Join", "Source", "evaluate_model"]
