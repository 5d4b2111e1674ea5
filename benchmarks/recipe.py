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

import contextlib
import functools
import io
import itertools
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
from command_line import run_study
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
OF_PFEDST = {"method.rank": 8, "method.alpha": 8}
"""Of its base: the default before this study."""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "CrossEntropy": {"model.loss": "CrossEntropy"},
    "tau 0.7": {"model.loss.tau": 0.7},
    "weights by samples": {"method.weighting": "samples"},
    "optimiser reset": {"coordinator.optimizer_state": "reset"},
    "rate 1e-3": {"model.optimizer.lr": 1e-3},
    "cosine": {"coordinator.lr_schedule": "cosine"},
    "cosine, rate 1e-3": {"coordinator.lr_schedule": "cosine", "model.optimizer.lr": 1e-3},
    "LoRA of rank 4": {"method.rank": 4, "method.alpha": 4},
    "LoRA of rank 2": {"method.rank": 2, "method.alpha": 2},
    "LoRA of rank 2, optimiser reset": {"method.rank": 2, "method.alpha": 2, "coordinator.optimizer_state": "reset"},
    "LoRA of rank 1": {"method.rank": 1, "method.alpha": 1},
    "LoRA at a tenth of the rate": {"method.lora_learning_rate_scale": 0.1},
    "LoRA at half strength": {"method.strength": 0.5},
    "LoRA at a quarter of its strength": {"method.strength": 0.25},
}


def inner_runs(root: Path, folder: Path) -> Iterator[Run]:
    split_files = write_inner_splits(root / "train_test_split", folder)
    for fold, file in enumerate(split_files):
        for variant, changes in VARIANTS.items():
            for method in ("PFedST", "FedAvg"):
                options = RECIPE | (OF_PFEDST if method == "PFedST" else {}) | changes
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
OTHERS = "Pooled FedBN SCAFFOLD FedDyn FedPer FedRep APFL FedCLIP FACMIC"
WITHIN_THE_TOWER = "FedLoRA FFALoRA FedDPA FedSALoRA"
"""Their steps cross the whole tower: 3 rounds on 377 of the images."""
IN_TURNS = {"FedRep": ("--trainer.max_epochs=2", "--trainer.limit_train_batches=4")}
"""What a method needs that trains its parts in turns: as many steps."""
PARTITIONS = {
    "FLamby's split": [],
    "second partition": ["--data.folds=5", "--data.fold=0", "--data.split_seed=1"],
}


def default_runs(root: Path, folder: Path) -> Iterator[Run]:
    for seed in range(3):
        for partition, options in PARTITIONS.items():
            for method in NAMED if seed else (*NAMED, *OTHERS.split()):
                own = IN_TURNS.get(method, ())
                more = (f"--method={method}", *own, *options, f"--seed_everything={seed}")
                yield Run(f"{method}, {partition}", f"seed {seed}", more)
    small = [f"--data.split_file={root / 'train_test_split_tiny'}", "--model.encoder.token_grid=null"]
    small += ["--coordinator.rounds=3", "--coordinator.evaluate_every=3", "--seed_everything=0"]
    for method in WITHIN_THE_TOWER.split():
        yield Run(f"{method}, small split", "seed 0", (f"--method={method}", *small))


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


def table(study: str) -> None:
    """Print the table of a study."""
    {"inner": inner_table, "defaults": defaults_table}[study](kept(study))


def kept(study: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the finished runs of a study: row -> part -> run."""
    runs = _inner_names() if study == "inner" else default_runs(ROOT, ROOT)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for one in runs:
        file = RESULTS / study / f"{one.name}.json"
        if file.exists():
            rows.setdefault(one.row, {})[one.part] = json.loads(file.read_text())
    return rows


def _inner_names() -> Iterator[Run]:
    for variant, method, fold in itertools.product(VARIANTS, ("PFedST", "FedAvg"), range(FOLDS)):
        yield Run(f"{variant} {method}", f"fold {fold}", ())


def score(of_run: Mapping[str, Any], when: str, split: str, model: str, prior: str, metric: str) -> float:
    """Return a mean over sites, in %."""
    return 100 * float(of_run["at_priors"][when][split][model][prior]["mean"][metric])


def worst(of_run: Mapping[str, Any]) -> float:
    sites = of_run["at_priors"]["last"]["test"]["personal"]["balanced"]["clients"].values()
    return 100 * min(site["balanced_accuracy"] for site in sites)


def balanced(of_run: Mapping[str, Any], when: str = "last", split: str = "test", model: str = "personal") -> float:
    return score(of_run, when, split, model, "balanced", "balanced_accuracy")


def accuracy(of_run: Mapping[str, Any]) -> float:
    return score(of_run, "last", "test", "personal", "site", "accuracy")


def inner_table(rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print means over the held-out part of each fold, and differences to the plain recipe on the same folds."""
    measures = {
        "balanced accuracy": balanced,
        "worst site": worst,
        "accuracy": accuracy,
        "generic": functools.partial(balanced, model="generic"),
    }
    print(f"| recipe and method | folds | {' | '.join(f'{name} | to base' for name in measures)} |")
    print("|---|---|" + "---|---|" * len(measures))
    for row, runs in rows.items():
        base = rows[f"base {row.rpartition(' ')[2]}"]
        shared = [part for part in runs if part in base]
        cells = []
        for measure in measures.values():
            cells.append(f"{statistics.fmean(map(measure, runs.values())):.1f}")
            differences = [measure(runs[part]) - measure(base[part]) for part in shared]
            cells.append("" if runs is base else f"{statistics.fmean(differences):+.1f}")
        print(f"| {row} | {', '.join(part.removeprefix('fold ') for part in runs)} | {' | '.join(cells)} |")
    print(
        "\nThree folds within the training part of FLamby's split on four centres, seed 0, means over sites, %: "
        "balanced accuracy at the balanced prior, accuracy at the site's prior. Base: balanced softmax, all clients "
        "count alike, AdamW (3e-4) kept over 40 rounds of at most 8 batches of 32, LoRA of rank 8. Not all folds of "
        "all rows are there: differences are to base on the same folds, and of a few points they say nothing. LoRA at "
        "a share of its strength is evaluated from the adapters of base."
    )


def defaults_table(rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print validation before and after, test beside it, and the seeds in which validation rose."""
    heads = ("validation, round 0", "last", "rose in seeds", "test, round 0", "last", "accuracy, test", "warnings")
    print(f"| method, partition | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row, runs in rows.items():
        found = {
            (split, when): [balanced(run, when, split) for run in runs.values()]
            for split, when in itertools.product(("validation", "test"), ("first", "last"))
        }
        means = {key: f"{statistics.fmean(values):.1f}" for key, values in found.items()}
        before, after = found["validation", "first"], found["validation", "last"]
        rose = sum(now > then for then, now in zip(before, after, strict=True))
        cells = [means["validation", "first"], means["validation", "last"], f"{rose} of {len(runs)}"]
        cells += [means["test", "first"], means["test", "last"]]
        cells += [f"{statistics.fmean(map(accuracy, runs.values())):.1f}"]
        print(f"| {row} | {' | '.join(cells)} | {sum(len(run['warnings']) for run in runs.values())} |")
    print(
        "\nconfigs/fed_isic_ham4.yaml as it is; mean over sites (and seeds) of balanced accuracy at the balanced "
        "prior, and of accuracy at the site's prior, %, of the personal model, after the last round. Test chose "
        "nothing."
    )


def page_rows() -> list[str]:
    """Return the rows of docs/results.md: the five named methods, means over seeds, both partitions."""
    found, rows = kept("defaults"), []
    for method in ("Local", "FedAvg", "FedProx", "Ditto", "PFedST"):
        cells = []
        for partition in PARTITIONS:
            runs = found[f"{method}, {partition}"].values()
            for split in ("validation", "test"):
                ends = (statistics.fmean(balanced(run, when, split) for run in runs) for when in ("first", "last"))
                cells.append(" → ".join(f"{value:.1f}" for value in ends))
        accuracies = map(accuracy, found[f"{method}, FLamby's split"].values())
        cells.insert(2, f"{statistics.fmean(accuracies):.1f}")
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    run_study(__doc__, STUDIES, run, table)
