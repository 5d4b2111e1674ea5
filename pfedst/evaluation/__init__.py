"""Evaluation: metrics over the classes present, counts of predictions, averages over clients, statistical tests.

The modules `evaluate`, `metrics` and `counts` import torch. They are not imported here: reports need no torch.
"""

from pfedst.evaluation.averages import CALIBRATION, METRICS, Metrics, over_clients

__all__ = ["CALIBRATION", "METRICS", "Metrics", "over_clients"]
