"""`pfedst report`: tables and figures from the JSON files of finished runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pfedst.cli.command_parser import CommandParser
from pfedst.reporting import console_of
from pfedst.reporting.best_round import ROUND_CHOICES, RoundChoice
from pfedst.reporting.formats import rich_report
from pfedst.reporting.loading import load_compared
from pfedst.reporting.report import FIGURE_FORMATS, FigureFormat, Report
from pfedst.reporting.summary import SELECTION_METRIC
from pfedst.reporting.write import write_files

WIDTH = 150
PathLike = str | Path


def run_report(arguments: Sequence[str]) -> int:
    """Report on the given runs. Return the exit code."""
    parser = CommandParser(prog="pfedst report", description="Write tables and figures of finished runs.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or of comparisons")
    parser.add_argument(
        "--reference", help="row with which the others are compared; default: that of the comparison, or PFedST"
    )
    parser.add_argument(
        "--metric", default=SELECTION_METRIC, help="metric by which rows are compared; default: %(default)s"
    )
    parser.add_argument(
        "--round",
        choices=ROUND_CHOICES,
        help="round of each run whose numbers are reported: its last, or its best on validation; default: that of the "
        "comparison, or last",
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write; default: report/ in the run, or report/ if there are several"
    )
    parser.add_argument(
        "--figures",
        nargs="+",
        choices=FIGURE_FORMATS,
        default=(),
        help="also write each figure as a file in these formats; report.html always holds all figures",
    )
    given = parser.parse_args(arguments)
    print_report(given.runs, given.output, given.reference, given.metric, given.figures, given.round)
    return 0


@contextmanager
def _no_collection() -> Iterator[None]:
    """Run a block without the garbage collector, which takes a tenth of a report's time and finds little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def report(
    runs: PathLike | Sequence[PathLike],
    *,
    to: PathLike | None = None,
    reference: str | None = None,
    metric: str = SELECTION_METRIC,
    figures: Sequence[FigureFormat] = (),
    round: RoundChoice | None = None,  # as the option of the command line is called
) -> Report:
    """Write tables and figures of finished runs, as `pfedst report` does.

    Args:
        runs: folder of a run or of a comparison, or several.
        to: folder to write; default: `report/` in the only folder, or `report`.
        reference: row against which the others are tested; default: that of the comparison, or PFedST.
        metric: by which rows are compared.
        figures: formats of files with one figure each, `png` or `pdf`; report.html holds all figures.
        round: of each run, `last` or `best` on validation; default: that of the comparison, or `last`.

    Returns:
        The tables and the protocol of their numbers.

    Raises:
        ConfigurationError: there is no finished run, or no such row or metric.
        StateError: a file is damaged, or the folder cannot be written.
    """
    paths = [Path(path) for path in ([runs] if isinstance(runs, str | Path) else runs)]
    with _no_collection():
        compared = load_compared(paths, reference, round)
        return write_files(compared, report_folder(paths, to), metric, figures)


def report_folder(paths: Sequence[Path], to: PathLike | None) -> Path:
    """Return the folder of a report."""
    if to is not None:
        return Path(to)
    return paths[0] / "report" if len(paths) == 1 else Path("report")


def print_report(
    paths: Sequence[Path],
    output: Path | None = None,
    reference: str | None = None,
    metric: str = SELECTION_METRIC,
    figures: Sequence[FigureFormat] = (),
    round_choice: RoundChoice | None = None,
) -> None:
    """Write a report and print its tables."""
    made = report(paths, to=output, reference=reference, metric=metric, figures=figures, round=round_choice)
    console = console_of(WIDTH)
    console.print(rich_report(made, console.width), highlight=False)
    page = report_folder(paths, output) / "report.html"
    print(f"{page}: all of it, with figures; beside it Markdown, LaTeX, CSV and JSON")
    if not figures:
        print("each figure as a file: pfedst report with --figures png pdf")
