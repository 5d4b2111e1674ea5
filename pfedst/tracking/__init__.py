"""Tracking: progress, cost, and what callbacks and loggers see."""

from pfedst.tracking.cost import peak_memory_bytes
from pfedst.tracking.flops import counted_flops
from pfedst.tracking.loggers import RunLoggers, save_dir_may_be_left_out
from pfedst.tracking.progress import RunProgress
from pfedst.tracking.round_hooks import RoundHooks

__all__ = [
    "RoundHooks",
    "RunLoggers",
    "RunProgress",
    "counted_flops",
    "peak_memory_bytes",
    "save_dir_may_be_left_out",
]
