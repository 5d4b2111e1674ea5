"""The parser of the command line for programs: it returns results in place of printing them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.cli.federated import PFedSTCLI
from pfedst.cli.start import run_interface
from pfedst.data import FederatedDataModule
from pfedst.data.sites import Split
from pfedst.errors import ConfigurationError


def check_data(name: str, given: object) -> None:
    """Check that an argument of a function is a data module.

    Raises:
        ConfigurationError: with what to give.
    """
    if not isinstance(given, FederatedDataModule):
        raise ConfigurationError(
            f"{name}: give a data module, such as pfedst.DatasetSites({{site: ...}}), not a {type(given).__name__}"
        )


class PythonCLI(PFedSTCLI):
    """The commands for a program: results are returned, and what a user must know is logged.

    Args:
        arguments: of the command.
        data: a data module in place of that of the configuration; None to keep that one.
    """

    def __init__(self, arguments: Sequence[str], data: FederatedDataModule | None = None) -> None:
        if data is not None:
            check_data("data", data)
        self.given_data = data
        super().__init__(arguments)

    def instantiate_classes(self) -> None:
        """Build the classes of the configuration; a data module that was given takes the place of its data."""
        super().instantiate_classes()
        if self.given_data is not None:
            self.datamodule = self.given_data

    def say(self, text: str) -> None:
        """Log a line."""
        logging.getLogger("pfedst").info("%s", text)

    def show(self, summary: Mapping[str, Any]) -> None:
        """Show nothing: the summary is returned."""


def evaluate_run(
    folder: Path, split: Split, data: FederatedDataModule | None, round: str, site: str | None
) -> dict[str, Any]:
    """Evaluate a saved round of a run; see `Run.evaluate`."""
    arguments = ["test" if split == "test" else "validate", str(folder), f"--round={round}"]
    arguments += [] if site is None else [f"--site={site}"]
    return run_interface(arguments, lambda arguments: PythonCLI(arguments, data)).summary
