"""Entry point of the command line. Commands without heavy imports are handled first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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
COMMANDS = tuple(line.split()[0] for line in USAGE.splitlines() if line.startswith("  "))


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
        if command not in COMMANDS:
            print(
                f'pfedst: error: there is no command "{command}".{nearest(command, COMMANDS)}',
                file=sys.stderr,
            )
            print(USAGE, end="", file=sys.stderr)
            return 2
        if command == "methods":
            from pfedst.cli.methods import run_methods

            return run_methods(given[1:])
        if command == "card":
            from pfedst.cli.card import run_card

            return run_card(given[1:])
        if command == "configs":
            from pfedst.cli.configs import run_configs

            return run_configs(given[1:])
        if command == "env":
            from pfedst.cli.environment import print_environment

            return print_environment(given[1:])
        if command == "compare":
            from pfedst.cli.compare import run_compare

            return run_compare(given[1:])
        if command == "calibrate":
            from pfedst.cli.calibrate import run_calibrate

            return run_calibrate(given[1:])
        if command == "report":
            from pfedst.cli.report import run_report

            return run_report(given[1:])
        if command == "predict":
            from pfedst.cli.predict import run_predict

            return run_predict(given[1:])
        if command in ("export", "push"):
            from pfedst.cli.export import run_export, run_push

            return (run_export if command == "export" else run_push)(given[1:])
        if command == "explain":
            from pfedst.cli.explain import run_explain

            return run_explain(given[1:])
        if command == "data":
            from pfedst.cli.data import run_data

            return run_data(given[1:])
        if command == "cache":
            from pfedst.cli.cache import run_cache

            return run_cache(given[1:])
        if command == "join":
            from pfedst.cli.join import run_join

            return run_join(given[1:])
        if command == "site":
            from pfedst.cli.site import run_site

            return run_site(given[1:])
        from pfedst.cli.start import run_command

        return run_command(given)
    except PfedstError as error:
        print(f"pfedst: error: {error}", file=sys.stderr)
        return error.exit_code
