"""Reporting: the run folder, the summary of a run, and tables from its JSON."""

from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.summary import RunSummary, describe, of_model
from pfedst.reporting.tables import bytes_text, console_of, percent, print_summary

__all__ = [
    "RunFolder",
    "RunSummary",
    "bytes_text",
    "console_of",
    "describe",
    "of_model",
    "percent",
    "print_summary",
]
