"""Faults in long runs: kills, damaged state, clients that fail or attack, and memory. RANDOM WEIGHTS, SYNTHETIC images.

    OMP_NUM_THREADS=1 python benchmarks/faults.py run kills       # processes that are killed and started again
    OMP_NUM_THREADS=1 python benchmarks/faults.py run mutations   # what is saved, changed in every way
    OMP_NUM_THREADS=1 python benchmarks/faults.py run drops       # clients that fail at random
    OMP_NUM_THREADS=1 python benchmarks/faults.py run attackers   # one hostile site of six, merge rules
    OMP_NUM_THREADS=1 python benchmarks/faults.py run memory      # a thousand rounds
    python benchmarks/faults.py table kills

Each writes benchmarks/results/faults/NAME.json with its protocol; `--results FOLDER` names another folder. All runs are
of the nano encoder in one thread; they show what the software does under faults, and nothing about medicine. The short
forms are in tests/faults/.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from environment import environment

RESULTS = Path(__file__).resolve().parent / "results" / "faults"
STUDIES = {
    "kills": "faults_kills",
    "mutations": "faults_mutations",
    "drops": "faults_drops",
    "attackers": "faults_attackers",
    "memory": "faults_memory",
}
"""Each a module with a function of the study's name, which gives protocol and result, and with `table`."""


def module_of(study: str) -> ModuleType:
    return importlib.import_module(STUDIES[study])


def run(study: str, results: Path, arguments: dict[str, Any]) -> None:
    """Measure one study; its file is replaced when it is done."""
    torch.set_num_threads(1)
    protocol, result = getattr(module_of(study), study)(**arguments)
    results.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "protocol": protocol, "result": result}
    (results / f"{study}.json").write_text(json.dumps(content, indent=2) + "\n")


def table(study: str, results: Path = RESULTS) -> None:
    """Print everything from the result's file."""
    content = json.loads((results / f"{study}.json").read_text())
    module_of(study).table(content["protocol"], content["result"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    commands = parser.add_subparsers(dest="command", required=True)
    studies = commands.add_parser("run").add_subparsers(dest="study", required=True)
    for study, option, default, what in (
        ("kills", "trials", 15, "runs of each setting; a third as many with processes"),
        ("mutations", "number", 1000, "of changed states"),
        ("drops", "rounds", 50, "of each run"),
        ("attackers", "rounds", 30, "of each run"),
        ("memory", "rounds", 1000, "of the run"),
    ):
        studies.add_parser(study).add_argument(f"--{option}", type=int, default=default, help=what)
    commands.add_parser("table").add_argument("study", choices=STUDIES)
    given = vars(parser.parse_args())
    command, study, results = given.pop("command"), given.pop("study"), given.pop("results")
    if command == "run":
        run(study, results, given)
    table(study, results)


if __name__ == "__main__":
    main()
