"""Tracking: progress and cost."""

from pfedst.tracking.cost import parameters_sent, parameters_trained, peak_memory_bytes
from pfedst.tracking.flops import counted_flops
from pfedst.tracking.progress import RunProgress

__all__ = ["RunProgress", "counted_flops", "parameters_sent", "parameters_trained", "peak_memory_bytes"]
