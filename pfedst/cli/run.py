"""A run, opened in Python: everything that the commands do with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedst.cli.report import report
from pfedst.data.sites import Split
from pfedst.inference.saved_run import SavedRun
from pfedst.reporting.report import FigureFormat, Report
from pfedst.reporting.run_card import RunCard, card
from pfedst.reporting.summary import SELECTION_METRIC

if TYPE_CHECKING:
    from pfedst.data.datamodule import FederatedDataModule


class Run(SavedRun):
    """A run that `pfedst fit` or `pfedst join` has written.

    Attributes:
        folder: of the run.
        config: its resolved configuration.
        pixel_range: grey values that become black and white; None if each file decides.

    Args:
        folder: of the run.

    Raises:
        ConfigurationError: there is no run in the folder.
        StateError: its files are damaged.
    """

    def evaluate(
        self,
        split: Split = "test",
        *,
        data: FederatedDataModule | None = None,
        round: str = "last",  # as the option of the command line is called
        site: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate a saved round on a split, as `pfedst test` does.

        Args:
            split: `validation` or `test`.
            data: images in place of those of the run; needed for a run of torch Datasets.
            round: `last`, `best` on validation, or the number of a round that is kept.
            site: evaluate this site alone; None for all.

        Returns:
            Protocol and metrics by model and site, as in `summary.json`. They are also written into the run's folder.

        Raises:
            ConfigurationError: that round or site is not there.
            StateError: the state is damaged, or the encoder is another one.
            DataError: the images cannot be read.
        """
        from pfedst.cli.python_interface import evaluate_run

        return evaluate_run(self.folder, split, data, round, site)

    def report(
        self,
        to: str | Path | None = None,
        *,
        metric: str = SELECTION_METRIC,
        figures: Sequence[FigureFormat] = (),
    ) -> Report:
        """Write tables and figures of the run, by default into its folder `report/`; see `pfedst.report`."""
        return report(self.folder, to=to, metric=metric, figures=figures)

    def card(self, data_card: str | Path | None = None) -> RunCard:
        """Return the card of the run (`markdown`, `to_json()`, `write(folder)`), as `pfedst card` writes it.

        Args:
            data_card: YAML of what people know of the images; default: `data_card.yaml` in the run, if it is there.

        Raises:
            StateError: the run is not finished.
            ConfigurationError: the data card cannot be read.
        """
        return card(self.folder, data_card)


def load(folder: str | Path) -> Run:
    """Open a run; its models, tables and report can be had from the object.

    Runs of older versions are read, too; their models cannot be used.

    Args:
        folder: of the run, such as `runs/first`.

    Raises:
        ConfigurationError: there is no run in the folder.
        StateError: its files are damaged.
    """
    return Run(folder)
