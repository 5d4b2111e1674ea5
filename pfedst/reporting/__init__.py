"""Reporting: the folder of a run, its summary, and tables from the JSON files of runs."""

from pfedst.reporting.report_table import percent
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.summary import RunSummary, chosen_round, describe, of_model
from pfedst.reporting.tables import bytes_text, console_of, print_summary

__all__ = [
    "RunFolder",
    "RunSummary",
    "bytes_text",
    "chosen_round",
    "console_of",
    "describe",
    "of_model",
    "percent",
    "print_summary",
]
