"""`pfedst card`: the facts of a run on one page, and what people must add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.cli.command_parser import CommandParser
from pfedst.reporting.run_card import card


def run_card(arguments: Sequence[str]) -> int:
    """Write the card of a run. Return the exit code."""
    parser = CommandParser(
        prog="pfedst card",
        description="Write card.md and card.json of a finished run: data, training, results by hospital and class, "
        "software, and the items of CLAIM 2024.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--output", type=Path, help="folder to write; default: that of the run")
    parser.add_argument(
        "--data_card", type=Path, help="YAML file with facts that people know; default: data_card.yaml in the run"
    )
    given = parser.parse_args(arguments)
    made = card(given.run, given.data_card)
    print(made.write(given.output or given.run))
    open_items = [str(item.number) for item in made.items if item.status == "to be stated"]
    print(f"TO BE STATED by people, of CLAIM 2024: items {', '.join(open_items)}")
    return 0
