"""`pfedst compare`: a table of methods from one command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pfedst.child_processes import start_fork_server
from pfedst.cli.child import run_fit
from pfedst.cli.command_parser import CommandParser
from pfedst.cli.report import print_report, report
from pfedst.cli.resume import resumable
from pfedst.comparison import Comparison, Grid, Plan
from pfedst.comparison.arguments import check_overrides
from pfedst.comparison.plan import as_arguments, make_plan
from pfedst.comparison.printed import PrintedGrid, RunsPrintedError
from pfedst.comparison.run import Resolve
from pfedst.configuration.command_line import GivenOption, options_of
from pfedst.configuration.shipped import COMPARE, configuration_file
from pfedst.configuration.yaml_text import read_yaml
from pfedst.errors import ConfigurationError, PfedstError, counted, listed
from pfedst.reporting.best_round import ROUND_CHOICES, RoundChoice


class FailedRunsError(PfedstError):
    """Some runs of a comparison failed. The other runs are finished and reported."""


def run_compare(arguments: Sequence[str]) -> int:
    """Run a comparison, or the runs that are not finished, and write its report. Return the exit code."""
    given, overrides = _parser().parse_known_args(arguments)
    if given.jobs < 1:
        raise ConfigurationError(f"--jobs {given.jobs}: must be 1 or more")
    if given.print_runs and given.jobs > 1:
        raise ConfigurationError(f"--jobs {given.jobs}: has no effect with --print_runs; leave it out")
    asked = _Asked.of(given.config, given.seeds, given.only, given.runs_dir, given.name, overrides)
    if given.print_runs:
        return _print_runs(asked.comparison(PrintedGrid, given.round))
    # at once: torch is not imported yet, which takes seconds
    print(
        f"{asked.plan.description}\n{asked.folder}: runs and report; {given.jobs} at a time; finished runs are kept",
        flush=True,
    )
    comparison = asked.comparison(_processes(given.jobs), given.round)
    if asked.plan.folds is not None:
        print(comparison.detectable(), flush=True)
    _run(comparison, print_report)
    return 0


def compare(
    config: str | Path,
    *,
    jobs: int = 1,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    round: RoundChoice = "last",  # as the option of the command line is called
) -> Path:
    """Run a comparison, or the runs of it that are not finished, and write its report, as `pfedst compare` does.

    Args:
        config: file of rows, seeds and a base, or the name of a shipped one.
        jobs: runs at a time, >= 1.
        seeds: in place of those of the file.
        only: run these rows and the reference alone.
        overrides: options of `pfedst fit` for every run, by dotted key.
        name: of the folder; default: `compare-` and the name of the file.
        runs_dir: where the folder is made.
        round: of each run that is reported and that tuning compares: `last`, or `best` on validation.

    Returns:
        The folder of the comparison; `report/` in it holds the report, and `pfedst.report` reads it.

    Raises:
        ConfigurationError: an option is wrong.
        FailedRunsError: some runs failed; the others are finished and reported.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs {jobs}: must be 1 or more")
    asked = _Asked.of(config, seeds, only, Path(runs_dir), name, as_arguments(overrides or {}))
    _run(asked.comparison(_processes(jobs), round), report)
    return asked.folder


@dataclass(frozen=True)
class _Asked:
    """A comparison that was asked for: its plan, its folder, and options for every run. Nothing has run yet."""

    plan: Plan
    folder: Path
    overrides: list[GivenOption]

    @classmethod
    def of(
        cls,
        config: str | Path,
        seeds: Sequence[int] | None,
        only: Sequence[str] | None,
        runs_dir: Path,
        name: str | None,
        overrides: Sequence[str],
    ) -> _Asked:
        file = configuration_file(config, COMPARE)
        plan, given = _plan(file, seeds, only), options_of(overrides)
        check_overrides(given, plan)
        return cls(plan, runs_dir / (name or f"compare-{file.stem}"), given)

    def comparison(self, grid: Callable[[Path], Grid], choice: RoundChoice) -> Comparison:
        return Comparison(self.plan, self.folder, self.overrides, resolver(), grid, choice)


def _processes(jobs: int) -> Callable[[Path], Grid]:
    return partial(Grid, jobs=jobs, target=run_fit)


def _run(comparison: Comparison, write: Callable[[Sequence[Path]], object]) -> None:
    """Run a comparison and write its report.

    Raises:
        FailedRunsError: some runs failed.
    """
    start_fork_server()
    with resumable("finished runs are kept; run the same command to continue"):
        failed = comparison.run()
    if comparison.has_finished:
        write([comparison.folder])
    if failed:
        failures = listed([f"{name}: {words}" for name, words in sorted(failed.items())], "\n  ")
        raise FailedRunsError(
            f"{counted(len(failed), 'run')} failed; finished runs are kept and reported. Run the same command to try "
            f"again:\n  {failures}"
        )


def _print_runs(comparison: Comparison) -> int:
    """Print the commands of the next runs to standard output, and what follows to standard error."""
    if comparison.plan.folds is not None:
        print(comparison.detectable(), file=sys.stderr)
    try:
        comparison.run()
    except RunsPrintedError as printed:
        print(f"{printed}, in this folder; then give this command again", file=sys.stderr)
        return 0
    print("all runs are finished: give this command without --print_runs for the report", file=sys.stderr)
    return 0


def resolver() -> Resolve:
    """Return a function from arguments of `pfedst fit` to the configuration on which results depend, as text."""
    # torch and Lightning, so only after the options and the plan are checked
    from pfedst.cli.parser import Parser
    from pfedst.cli.start import parse_only

    parse = parse_only()
    own = [action.dest for action in _parser()._actions]

    def resolve(arguments: Sequence[str]) -> str:
        Parser.reads(arguments, own)
        return parse(arguments)

    return resolve


def _parser() -> CommandParser:
    """Return the parser of the options of a comparison; all others are those of its runs."""
    parser = CommandParser(
        prog="pfedst compare",
        description="Run methods x seeds on one data set. The same command continues a comparison and skips finished "
        "runs.",
        epilog="All other options are those of pfedst fit, for every run: --data.root FOLDER, --coordinator.rounds 5",
    )
    parser.add_argument(
        "--config",
        required=True,
        help="file with rows, seeds and a base, or the name of a shipped one: pfedst configs list",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time; default: %(default)s")
    parser.add_argument(
        "--runs_dir",
        type=Path,
        default=Path("runs"),
        help="folder in which the comparison is created; default: %(default)s",
    )
    parser.add_argument("--name", help="name of the folder; default: compare-FILE")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to use instead of those in the file")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="run only these rows and the reference")
    parser.add_argument(
        "--round",
        choices=ROUND_CHOICES,
        default="last",
        help="round of each run that the table reports and that tuning compares: its last, or its best on validation; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--print_runs",
        action="store_true",
        help="print a command for each run that is not finished, and run none: for sbatch --array or GNU parallel; "
        "with tuning, print its runs first",
    )
    return parser


def _plan(file: Path, seeds: Sequence[int] | None, only: Sequence[str] | None) -> Plan:
    try:
        content = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {file}: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and seeds:
        content = content | {"seeds": list(seeds)}
    plan = make_plan(content, file)
    return plan if only is None else plan.only(only)
