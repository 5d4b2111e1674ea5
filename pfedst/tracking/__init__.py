"""Tracking: progress, cost, and loggers."""

from pfedst.tracking.cost import parameters_sent, parameters_trained, peak_memory_bytes
from pfedst.tracking.flops import counted_flops
from pfedst.tracking.loggers import RunLoggers, save_dir_may_be_left_out
from pfedst.tracking.progress import RunProgress

__all__ = [
    "RunLoggers",
    "RunProgress",
    "counted_flops",
    "parameters_sent",
    "parameters_trained",
    "peak_memory_bytes",
    "save_dir_may_be_left_out",
]
