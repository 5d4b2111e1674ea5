"""Evaluation: metrics over present classes, and their summary over clients."""

from pfedst.evaluation.evaluate import evaluate
from pfedst.evaluation.metrics import METRICS, Metrics, classification_metrics, over_clients

__all__ = ["METRICS", "Metrics", "classification_metrics", "evaluate", "over_clients"]
