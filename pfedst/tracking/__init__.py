"""Tracking: progress and cost."""

from pfedst.tracking.cost import parameters_sent, parameters_trained, peak_memory_bytes
from pfedst.tracking.progress import RunProgress

__all__ = ["RunProgress", "parameters_sent", "parameters_trained", "peak_memory_bytes"]
