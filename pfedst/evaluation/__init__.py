"""Evaluation: metrics over the classes present, counts of predictions, and summaries over clients."""

from pfedst.evaluation.counts import Counts, prediction_counts
from pfedst.evaluation.evaluate import Evaluated, evaluate
from pfedst.evaluation.metrics import CALIBRATION, METRICS, Metrics, classification_metrics, over_clients

__all__ = [
    "CALIBRATION",
    "METRICS",
    "Counts",
    "Evaluated",
    "Metrics",
    "classification_metrics",
    "evaluate",
    "over_clients",
    "prediction_counts",
]
