"""Which defaults, and whether they hold: studies on the four FedISIC centres of `configs/fed_isic_ham4.yaml`.

    python benchmarks/recipe.py run inner --root FOLDER --weights IMAGE_TOWER.safetensors [--only "base PFedST" ...]
    python benchmarks/recipe.py run defaults --root FOLDER --weights IMAGE_TOWER.safetensors
    python benchmarks/recipe.py table inner|defaults

* `inner`: one change of the recipe a row, on three folds INSIDE the training part of FLamby's split. Its test part is
  not read. Defaults are chosen by this study alone.
* `defaults`: every method that trains and needs no text tower, with the shipped configuration as it is: balanced
  accuracy at the balanced prior before the first round and after the last one. On FLamby's split, and on a second
  partition of the same images.

`run` writes one file a run into benchmarks/results/recipe/STUDY/. Existing files are kept, so that several processes
may share the work, and a study that was ended goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from environment import environment

from pfedst.cli import main as pfedst

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/recipe"
FOLDS = 3
COMMON = ["--trainer.accelerator=cpu", "--coordinator.threads=1", "--coordinator.share_class_counts=true"]
"""Of every run; class counts are shared, so that every loss can be read at the balanced prior."""


@dataclass(frozen=True)
class Run:
    """A run of a study: its row, what it is repeated over, and its options of `pfedst fit`."""

    row: str
    part: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.row} {self.part}"


# -- inner folds: the choice of the defaults ---------------------------------------------------------------------------

RECIPE = {
    "model.encoder.token_grid": 2,
    "trainer.limit_train_batches": 8,
    "coordinator.rounds": 40,
    "coordinator.evaluate_every": 40,
    "coordinator.optimizer_state": "keep",
    "coordinator.lr_schedule": "constant",
    "coordinator.keep_states": 1,
    "model.optimizer": "AdamW",
    "model.optimizer.lr": 3e-4,
    "model.loss": "BalancedSoftmax",
    "method.weighting": "uniform",
}
"""The recipe that the variants change in one thing each."""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "CrossEntropy": {"model.loss": "CrossEntropy"},
    "tau 0.7": {"model.loss.tau": 0.7},
    "weights by samples": {"method.weighting": "samples"},
    "optimiser reset": {"coordinator.optimizer_state": "reset"},
    "rate 1e-3": {"model.optimizer.lr": 1e-3},
    "cosine": {"coordinator.lr_schedule": "cosine"},
    "cosine, rate 1e-3": {"coordinator.lr_schedule": "cosine", "model.optimizer.lr": 1e-3},
    "LoRA of rank 2": {"method.rank": 2, "method.alpha": 2},
    "LoRA at a tenth of the rate": {"method.lora_learning_rate_scale": 0.1},
    "LoRA at half strength": {"method.strength": 0.5},
    "LoRA at a quarter of its strength": {"method.strength": 0.25},
}


def inner_runs(root: Path, folder: Path) -> Iterator[Run]:
    split_files = write_inner_splits(root / "train_test_split", folder)
    for fold, file in enumerate(split_files):
        for variant, changes in VARIANTS.items():
            for method in ("PFedST", "FedAvg"):
                options = RECIPE | changes
                if method == "FedAvg" and variant.startswith("LoRA"):
                    continue
                in_order = sorted(options, key=lambda key: key.count("."))  # a class before its options
                given = [f"--{key}={options[key]}" for key in in_order]
                more = (f"--method={method}", *given, f"--data.split_file={file}", "--seed_everything=0")
                yield Run(f"{variant} {method}", f"fold {fold}", more)


def write_inner_splits(split_file: Path, folder: Path) -> list[Path]:
    """Write a split file for each of three folds over the training images alone, stratified by centre and class."""
    table = pd.read_csv(split_file)
    table = table[table.fold == "train"].copy()
    draws = np.random.default_rng(0)
    numbers = pd.Series(-1, index=table.index)
    for _, rows in table.groupby(["center", "target"]):
        order, start = draws.permutation(len(rows)), draws.integers(FOLDS)
        numbers.loc[rows.index[order]] = (np.arange(len(rows)) + start) % FOLDS
    files = [folder / f"fold{fold}" for fold in range(FOLDS)]
    for fold, file in enumerate(files):
        table.assign(fold=np.where(numbers == fold, "test", "train")).to_csv(file, index=False)
    return files


# -- the shipped defaults ----------------------------------------------------------------------------------------------

NAMED = ("PFedST", "FedAvg", "Local", "FedProx", "Ditto")
OTHERS = "Pooled FedBN SCAFFOLD FedDyn FedPer FedRep APFL FedCLIP FACMIC FedSALoRA"
PARTITIONS = {
    "FLamby's split": [],
    "second partition": ["--data.folds=5", "--data.fold=0", "--data.split_seed=1"],
}


def default_runs(root: Path, folder: Path) -> Iterator[Run]:
    for seed in range(3):
        for partition, options in PARTITIONS.items():
            for method in NAMED if seed else (*NAMED, *OTHERS.split()):
                more = (f"--method={method}", *options, f"--seed_everything={seed}")
                yield Run(f"{method}, {partition}", f"seed {seed}", more)


STUDIES = {"inner": inner_runs, "defaults": default_runs}


def run(study: str, root: Path, weights: Path, only: Sequence[str]) -> None:
    folder = RESULTS / study
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for one in STUDIES[study](root, Path(scratch)):
            file = folder / f"{one.name}.json"
            if (not only or one.row in only) and claim(file):
                try:
                    file.write_text(json.dumps(one_run(one, root, weights), indent=1) + "\n")
                finally:
                    file.with_suffix(".busy").unlink()


def claim(file: Path) -> bool:
    """Return True if a run is neither there nor taken by another process."""
    if file.exists():
        return False
    with contextlib.suppress(FileExistsError):
        file.with_suffix(".busy").touch(exist_ok=False)
        return True
    return False


def one_run(one: Run, root: Path, weights: Path) -> dict[str, Any]:
    started, log = time.perf_counter(), io.StringIO()
    with tempfile.TemporaryDirectory() as runs:
        arguments = ["fit", "--config", str(ROOT / "configs/fed_isic_ham4.yaml"), f"--data.root={root}"]
        arguments += [f"--model.encoder.weights={weights}", *COMMON, *one.options, f"--runs_dir={runs}", "--name=run"]
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = pfedst(arguments)
        if code:
            raise SystemExit(f"{one.name} failed: {log.getvalue()[-2000:]}")
        summary = json.loads((Path(runs) / "run" / "summary.json").read_text())
    seconds = time.perf_counter() - started
    print(f"{one.name}: {seconds:.0f} s", flush=True)
    kept = ("study", "content", "at_priors", "warnings")
    return {"environment": environment(), "seconds": seconds} | {key: summary[key] for key in kept}


# -- tables ------------------------------------------------------------------------------------------------------------


def kept(study: str) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs of a study by row."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in STUDIES[study](ROOT, Path()) if study != "inner" else _inner_names():
        file = RESULTS / study / f"{one.name}.json"
        if file.exists():
            rows.setdefault(one.row, []).append(json.loads(file.read_text()))
    return rows


def _inner_names() -> Iterator[Run]:
    for variant in VARIANTS:
        for method in ("PFedST", "FedAvg"):
            for fold in range(FOLDS):
                yield Run(f"{variant} {method}", f"fold {fold}", ())


def score(of_run: Mapping[str, Any], when: str, split: str, model: str, prior: str, metric: str) -> float | None:
    """Return a mean over sites, as a share."""
    value: float | None = of_run["at_priors"][when][split][model][prior]["mean"][metric]
    return value


def worst(of_run: Mapping[str, Any], split: str, model: str) -> float:
    sites = of_run["at_priors"]["last"][split][model]["balanced"]["clients"].values()
    return float(min(site["balanced_accuracy"] for site in sites))


def inner_table() -> None:
    """Print means over folds of the held-out fold."""
    heads = ("balanced accuracy", "worst site", "accuracy at the site's prior", "generic", "validation", "folds")
    print(f"| recipe and method | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row, runs in kept("inner").items():
        balanced = [score(r, "last", "test", "personal", "balanced", "balanced_accuracy") for r in runs]
        cells = [percent(balanced), percent([worst(r, "test", "personal") for r in runs])]
        cells += [percent([score(r, "last", "test", "personal", "site", "accuracy") for r in runs])]
        cells += [percent([score(r, "last", "test", "generic", "balanced", "balanced_accuracy") for r in runs])]
        cells += [percent([score(r, "last", "validation", "personal", "balanced", "balanced_accuracy") for r in runs])]
        print(f"| {row} | {' | '.join(cells)} | {len(runs)} |")


def defaults_table() -> None:
    """Print validation before and after, test beside it, and the seeds in which validation rose."""
    heads = ("validation, round 0", "last round", "rose in seeds", "test, round 0", "last round", "warnings")
    print(f"| method and partition | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row, runs in kept("defaults").items():
        values = {
            (split, when): [score(r, when, split, "personal", "balanced", "balanced_accuracy") for r in runs]
            for split in ("validation", "test")
            for when in ("first", "last")
        }
        before, after = values["validation", "first"], values["validation", "last"]
        rose = sum(b is not None and a is not None and a > b for b, a in zip(before, after, strict=True))
        cells = [percent(before), percent(after), f"{rose} of {len(runs)}"]
        cells += [percent(values["test", "first"]), percent(values["test", "last"])]
        print(f"| {row} | {' | '.join(cells)} | {sum(len(r['warnings']) for r in runs)} |")


def percent(values: Sequence[float | None]) -> str:
    found = [100 * value for value in values if value is not None]
    return " ± ".join(f"{of(found):.1f}" for of in (statistics.fmean, statistics.pstdev)) if found else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, tables = commands.add_parser("run"), commands.add_parser("table")
    for command in (runs, tables):
        command.add_argument("study", choices=list(STUDIES))
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--only", nargs="*", default=[], help="rows; default: all")
    given = parser.parse_args()
    if given.command == "run":
        run(given.study, given.root, given.weights, given.only)
    elif given.study == "inner":
        inner_table()
    else:
        defaults_table()


if __name__ == "__main__":
    main()
