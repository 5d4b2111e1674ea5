"""Entry point of the command line. Commands without heavy imports are handled first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from pfedst.errors import PfedstError, nearest
from pfedst.version import __version__

USAGE = """\
usage: pfedst COMMAND [OPTIONS]

  fit        train a method across sites        pfedst fit --config demo [--name NAME] [--resume]
  validate   evaluate a run on validation       pfedst validate runs/NAME
  test       evaluate a run on test             pfedst test runs/NAME
  join       train a run's model at a new site  pfedst join runs/NAME --data ... --site SITE
  site       take part in a run on Flower       pfedst site --config FILE --data ... --site NAME --superlink HOST:PORT
  compare    run methods x seeds, and report    pfedst compare --config demo [--jobs 2]
  calibrate  refit temperature and threshold    pfedst calibrate runs/NAME --site SITE [--coverage 0.8]
  report     tables and figures of runs         pfedst report runs/A runs/B ... [--reference ROW]
  card       write the facts of a run           pfedst card runs/NAME [--data_card FILE]
  predict    predict the class of images        pfedst predict runs/NAME IMAGES --site NAME --out predictions.csv
  export     write a model into a folder        pfedst export runs/NAME FOLDER --site NAME | --generic
  push       upload an exported model           pfedst push FOLDER USER/NAME [--private]
  explain    draw occlusion maps                pfedst explain runs/NAME IMAGES --site NAME --out FOLDER
  data       prepare, check and audit images    pfedst data init | audit | prepare | preprocess | partition
  cache      manage cached activations          pfedst cache build --config FILE | info | clear
  methods    list the installed methods         pfedst methods [NAME]
  configs    list the shipped configurations    pfedst configs list | show NAME | copy NAME
  env        print versions and hardware        pfedst env

Options of a command: pfedst COMMAND --help; of a class: pfedst fit --method.help PFedST.
Exit codes: 0 success, 1 other failure, 2 options, 3 data, 4 encoder weights, 5 saved state or messages,
6 too few clients, 130 interrupted.
"""
OF_LIGHTNING = ("fit", "validate", "test")
"""Commands of one interface, which reads the command itself, too."""
RUNNERS = {
    "join": "join.run_join",
    "site": "site.run_site",
    "compare": "compare.run_compare",
    "calibrate": "calibrate.run_calibrate",
    "report": "report.run_report",
    "card": "card.run_card",
    "predict": "predict.run_predict",
    "export": "export.run_export",
    "push": "export.run_push",
    "explain": "explain.run_explain",
    "data": "data.run_data",
    "cache": "cache.run_cache",
    "methods": "methods.run_methods",
    "configs": "configs.run_configs",
    "env": "environment.print_environment",
} | dict.fromkeys(OF_LIGHTNING, "start.run_command")
"""Command -> module of `pfedst.cli` and function."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: arguments after the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0, or that of the PfedstError that ended the command, whose message is printed to standard error.
            Any other exception is a defect and keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else "--help"
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if command in ("--version", "version"):
        print(f"pfedst {__version__}")
        return 0
    try:
        if command not in RUNNERS:
            print(f'pfedst: error: there is no command "{command}".{nearest(command, RUNNERS)}', file=sys.stderr)
            print(USAGE, end="", file=sys.stderr)
            return 2
        return _runner(command)(given if command in OF_LIGHTNING else given[1:])
    except SystemExit as end:  # --help and --print_config end this way
        return int(end.code or 0)
    except PfedstError as error:
        print(f"pfedst: error: {error}", file=sys.stderr)
        return error.exit_code


def _runner(command: str) -> Callable[[Sequence[str]], int]:
    """Import the function of a command: no command loads what another one needs."""
    module, function = RUNNERS[command].split(".")
    found: Callable[[Sequence[str]], int] = getattr(import_module(f"pfedst.cli.{module}"), function)
    return found
