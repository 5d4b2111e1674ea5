"""A hospital that was not there: each of the four FedISIC centres is left out of a run, and joins it afterwards.

    python benchmarks/joining.py run --root FOLDER --weights IMAGE_TOWER.safetensors [--sites rosendahl] [--seeds 0 1]
    python benchmarks/joining.py table
    python benchmarks/joining.py figure FILE.png

For each centre and seed, pFedST and FedAvg are trained on the other three centres with `configs/fed_isic_ham4.yaml`.
The centre then has 0, 10, 30, 100 or all of its training images: nested draws, stratified by class, the same for all
rows. Validation images are cut from them, as `pfedst` does. Its test images choose nothing.

`run` writes one file a centre and seed into benchmarks/results/joining/ after each cell, and goes on with what is
there, also after it was killed. Several processes may share the work.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from command_line import run_and_table
from environment import environment

from pfedst.cli import main as pfedst

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/joining"
SITES = {"vidir_molemax": 1, "vidir_modern": 2, "rosendahl": 3, "vienna_dias": 5}
LABELS = ("0", "10", "30", "100", "all")
SEEDS = range(5)
COMMON = ["--trainer.accelerator=cpu", "--coordinator.threads=1", "--data.audit=off"]
RUN = ["--coordinator.share_class_counts=true", "--coordinator.evaluate_every=40", "--coordinator.keep_states=1"]
ALONE = ["--method=Local", "--coordinator.rounds=40", "--coordinator.evaluate_every=40", "--coordinator.keep_states=1"]
JOINS: dict[str, tuple[str, Sequence[str]]] = {
    "pFedST": ("PFedST", []),
    "pFedST, rate 1e-3": ("PFedST", ["--model.optimizer.lr=0.001"]),
    "fresh LoRA on FedAvg's model": ("FedAvg", ["--method=PFedST"]),
    "fresh LoRA on FedAvg's model, rate 1e-3": ("FedAvg", ["--method=PFedST", "--model.optimizer.lr=0.001"]),
    "FedAvg's model fine-tuned whole": ("FedAvg", []),
}
"""Joins as shipped, with their guard: the run that is joined, and options."""
FITS: dict[str, Sequence[str]] = {"linear probe": ["--model.adapter=LinearHead"], "from scratch": []}
"""Runs of the centre alone."""
METRICS = ("balanced_accuracy", "accuracy", "auroc")
Cell = dict[str, Any]


# -- the images of a centre --------------------------------------------------------------------------------------------


def nested_order(targets: Sequence[int], seed: int) -> list[int]:
    """Return all indices in an order of which each beginning is stratified by class, up to one image a class."""
    draws = np.random.default_rng(seed)
    keys = np.empty(len(targets))
    for target in sorted(set(targets)):
        members = draws.permutation(np.flatnonzero(np.asarray(targets) == target))
        keys[members] = (np.arange(len(members)) + draws.random()) / len(members)
    return [int(index) for index in np.argsort(keys, kind="stable")]


def write_split(split_file: Path, center: int, labels: str, seed: int, file: Path) -> Path:
    """Write a split file with the test images of a centre and some of its training images."""
    table = pd.read_csv(split_file)
    of_center = table[table.center == center]
    train = of_center[of_center.fold == "train"]
    kept = train if labels == "all" else train.iloc[nested_order(train.target.tolist(), seed)[: int(labels)]]
    pd.concat([kept, of_center[of_center.fold == "test"]]).to_csv(file, index=False)
    return file


# -- run -----------------------------------------------------------------------------------------------------------


def run(
    root: Path, weights: Path, sites: Sequence[str], seeds: Sequence[int], labels: Sequence[str], more: Sequence[str]
) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for site in sites:
            file = RESULTS / f"{site} seed {seed}.json"
            with file.with_suffix(".busy").open("w") as busy, contextlib.suppress(BlockingIOError):
                fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system unlocks it where a process is killed
                Study(file, root, weights, site, seed, labels, more).run()
                Path(busy.name).unlink()


class Study:
    """All cells of one centre and seed."""

    def __init__(
        self,
        file: Path,
        root: Path,
        weights: Path,
        site: str,
        seed: int,
        labels: Sequence[str],
        more: Sequence[str],
    ) -> None:
        self.file, self.root, self.site, self.seed = file, root, site, seed
        self.labels, self.more = [of for of in LABELS if of in labels], list(more)
        self.images = [f"--data.root={root}", f"--model.encoder.weights={weights}", *COMMON]
        self.found: dict[str, Any] = {"environment": environment(), "site": site, "seed": seed, "cells": {}}
        if file.exists():
            self.found = json.loads(file.read_text())

    def run(self) -> None:
        """Fill the missing cells; the runs of the other centres are trained again only if a cell needs them."""
        with tempfile.TemporaryDirectory() as folder:
            self.runs = Path(folder)
            for labels in self.labels:
                split = self.runs / f"split-{labels}"
                write_split(self.root / "train_test_split", SITES[self.site], labels, self.seed, split)
                self.images_of_site = [f"--data.centers=[{SITES[self.site]}]", f"--data.split_file={split}"]
                if labels == "0":
                    for method in ("PFedST", "FedAvg"):
                        self._cell(f"{method}, generic", labels, lambda method=method: self._tested(method))
                    continue
                for row in JOINS:
                    self._cell(row, labels, lambda row=row, labels=labels: self._joined(row, labels))
                for row in FITS:
                    self._cell(row, labels, lambda row=row, labels=labels: self._trained(row, labels))

    def _cell(self, row: str, labels: str, measure: Callable[[], Cell]) -> None:
        name = f"{row}, {labels}"
        if name in self.found["cells"]:
            return
        started = time.perf_counter()
        self.found["cells"][name] = measure() | {"seconds": time.perf_counter() - started}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n")
        part.replace(self.file)
        print(f"{self.site}, seed {self.seed}, {name}: {time.perf_counter() - started:.0f} s", flush=True)

    def _call(self, *arguments: str) -> None:
        log = io.StringIO()
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = pfedst(list(arguments))
        if code:
            raise SystemExit(f"{' '.join(arguments)} failed: {log.getvalue()[-2000:]}")

    def _fit(self, name: str, *options: str) -> Path:
        config = f"--config={ROOT / 'configs/fed_isic_ham4.yaml'}"
        place = [f"--runs_dir={self.runs}", f"--name={name}", f"--seed_everything={self.seed}"]
        self._call("fit", config, *self.images, *options, *self.more, *place)
        return self.runs / name

    def _source(self, method: str) -> Path:
        """Return the run of the other three centres; trained when it is first needed."""
        if not (self.runs / method / "summary.json").is_file():
            others = [center for site, center in SITES.items() if site != self.site]
            self._fit(method, f"--method={method}", f"--data.centers={others}", *RUN)
        return self.runs / method

    def _tested(self, method: str) -> Cell:
        folder = self._source(method)
        self._call("test", str(folder), *self.images, *self.images_of_site)
        tested = json.loads((folder / "test.json").read_text())
        balanced = tested["at_priors"]["last"]["test"]["generic"]["balanced"]["clients"][self.site]
        metrics = tested["generic"]["clients"][self.site]
        return {"generic": {key: metrics[key] for key in METRICS} | balanced}

    def _joined(self, row: str, labels: str) -> Cell:
        source, options = JOINS[row]
        name = f"{row}-{labels}".replace(" ", "-").replace(",", "").replace("'", "")
        place = [f"--runs_dir={self.runs}", f"--name={name}", f"--site={self.site}"]
        self._call("join", str(self._source(source)), *self.images, *self.images_of_site, *options, *place)
        joined = json.loads((self.runs / name / "summary.json").read_text())["joined"]
        rows = joined.pop("rows")["test"]
        return {"joined": joined, **rows}

    def _trained(self, row: str, labels: str) -> Cell:
        folder = self._fit(f"{row}-{labels}".replace(" ", "-"), *self.images_of_site, *ALONE, *FITS[row])
        summary = json.loads((folder / "summary.json").read_text())
        stated = summary["at_priors"]["last"]["test"]["personal"]
        of_site = {prior: stated[prior]["clients"][self.site] for prior in ("balanced", "site")}
        auroc = summary["personal"]["clients"][self.site]["auroc"]
        return {"trained": {**of_site["site"], **of_site["balanced"], "auroc": auroc}}


# -- table ---------------------------------------------------------------------------------------------------------


AT_SITE, TRAINED = "generic + prior of the site", "trained at the site"
ROWS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = {
    "pFedST, generic": ("PFedST, generic", lambda cell: cell["generic"]),
    "FedAvg, generic": ("FedAvg, generic", lambda cell: cell["generic"]),
    "pFedST, generic + prior of the site": ("pFedST", lambda cell: cell[AT_SITE]),
    "FedAvg, generic + prior of the site": ("FedAvg's model fine-tuned whole", lambda cell: cell[AT_SITE]),
    "pFedST joined, as shipped": ("pFedST", lambda cell: kept_by(cell)),
    "pFedST joined, without guard": ("pFedST", lambda cell: cell[TRAINED]),
    "pFedST joined, rate 1e-3": ("pFedST, rate 1e-3", lambda cell: kept_by(cell)),
    "fresh LoRA on FedAvg's model": ("fresh LoRA on FedAvg's model", lambda cell: kept_by(cell)),
    "fresh LoRA on FedAvg's model, rate 1e-3": (
        "fresh LoRA on FedAvg's model, rate 1e-3",
        lambda cell: kept_by(cell),
    ),
    "FedAvg's model fine-tuned whole": ("FedAvg's model fine-tuned whole", lambda cell: kept_by(cell)),
    "linear probe": ("linear probe", lambda cell: cell["trained"]),
    "from scratch": ("from scratch", lambda cell: cell["trained"]),
}


def kept_by(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the model that the guard keeps."""
    kept = cell[TRAINED if cell["joined"]["joined"] else AT_SITE]
    return dict(kept) if cell["joined"]["joined"] else {**kept, "auroc": cell["generic"]["auroc"]}


def results() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def by_seed(found: Sequence[Mapping[str, Any]], row: str, labels: str, metric: str) -> dict[int, float]:
    """Return for each seed the mean over centres, in %; of seeds for which all centres are there."""
    cell, numbers = ROWS[row]
    values: dict[int, list[float]] = {}
    for one in found:
        if (of_row := one["cells"].get(f"{cell}, {labels}")) and (value := numbers(of_row).get(metric)) is not None:
            values.setdefault(one["seed"], []).append(100 * value)
    sites = len({one["site"] for one in found})
    return {seed: statistics.fmean(of_seed) for seed, of_seed in values.items() if len(of_seed) == sites}


def table() -> None:
    """Print balanced accuracy, accuracy and AUROC on test by the number of labels, and what pFedST's training adds."""
    found = results()
    print(f"| {' | '.join(['labels at the new centre', *LABELS])} |\n|---|{'---|' * len(LABELS)}")
    for row in ROWS:
        cells = []
        for labels in LABELS:
            means = [by_seed(found, row, labels, metric) for metric in METRICS]
            text = " / ".join(f"{statistics.fmean(of.values()):.1f}" if of else "-" for of in means)
            cells.append("" if text == "- / - / -" else text)
        print(f"| {' | '.join([row, *cells])} |")
    for rate in ("", ", rate 1e-3"):
        pairs = f"pFedST joined{rate or ', as shipped'}", f"fresh LoRA on FedAvg's model{rate}"
        print(f"\n{pairs[0]} minus {pairs[1]}, balanced accuracy, mean and range over seeds:", end="")
        for labels in LABELS[1:]:
            one, other = (by_seed(found, row, labels, "balanced_accuracy") for row in pairs)
            if gaps := [one[seed] - other[seed] for seed in one.keys() & other.keys()]:
                print(f" {labels}: {statistics.fmean(gaps):+.1f} ({min(gaps):+.1f} to {max(gaps):+.1f});", end="")
        print()
    joined = [cell["joined"]["joined"] for one in found for name, cell in one["cells"].items() if name[:7] == "pFedST,"]
    sites, seeds = sorted({one["site"] for one in found}), sorted({one["seed"] for one in found})
    print(
        f"\nTest; balanced accuracy at the balanced prior / accuracy at the prior of the site (0 labels: as trained) / "
        f"AUROC, %, means over centres ({', '.join(sites)}) and seeds ({', '.join(map(str, seeds))}). pFedST joined in "
        f"{sum(joined)} of {len(joined)} cells."
    )


DRAWN = {
    "pFedST, generic + prior of the site": "pFedST's generic model, prior of the site",
    "FedAvg, generic + prior of the site": "FedAvg's model, prior of the site",
    "pFedST joined, as shipped": "pFedST joined",
    "fresh LoRA on FedAvg's model": "a fresh LoRA on FedAvg's model",
    "FedAvg's model fine-tuned whole": "FedAvg's model, all of it trained",
    "linear probe": "linear probe",
    "from scratch": "trained from scratch",
}
"""Rows of the figure, with their names in it."""
WITHOUT_LABELS = {
    "pFedST, generic": "pFedST, generic + prior of the site",
    "FedAvg, generic": "FedAvg, generic + prior of the site",
}


def figure(file: Path) -> None:
    """Draw the three metrics by the number of labels; a line is a mean over centres and seeds, a dot is a seed."""
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure

    from pfedst.reporting.figures.saving import PNG
    from pfedst.reporting.figures.style import WIDTH, figure_style, panel_title, styles_of

    found = results()
    styles = styles_of(list(DRAWN), "pFedST joined, as shipped")
    titles = ("balanced accuracy, balanced prior, %", "accuracy, prior of the site, %", "AUROC, %")
    with figure_style():
        drawn = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = drawn.subplots(1, 3)
        for axes, metric, title in zip(panels, METRICS, titles, strict=True):
            for row, name in DRAWN.items():
                style = styles[row]
                points = [(place, by_seed(found, row, labels, metric)) for place, labels in enumerate(LABELS)]
                if means := [(place, statistics.fmean(of.values())) for place, of in points if of]:
                    line = style.mark | {"markersize": style.size - 1} | style.stroke
                    axes.plot(*zip(*means, strict=True), label=name, zorder=style.zorder, **line)
                if seeds := [(place, value) for place, of in points for value in of.values()]:
                    axes.scatter(*zip(*seeds, strict=True), s=4, color=style.color, alpha=0.35)
            for generic, row in WITHOUT_LABELS.items():
                of = by_seed(found, generic, "0", metric)
                if of and metric != "accuracy":  # without labels there is no prior of the site
                    axes.plot([0], [statistics.fmean(of.values())], **styles[row].mark)
            panel_title(axes, title)
            axes.set_xticks(range(len(LABELS)), LABELS)
        panels[1].set_xlabel("labelled images of the new hospital")
        drawn.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        FigureCanvasBase(drawn).print_figure(file, format="png", **PNG)


def main() -> None:
    parser, commands, runs = run_and_table(__doc__)
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--sites", nargs="+", choices=list(SITES), default=list(SITES))
    runs.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    runs.add_argument("--labels", nargs="+", choices=LABELS, default=list(LABELS))
    runs.add_argument("--more", nargs="*", default=[], help="options of all fits, such as --coordinator.rounds=1")
    commands.add_parser("figure").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.root, given.weights, given.sites, given.seeds, given.labels, given.more)
    elif given.command == "table":
        table()
    else:
        figure(given.file)


if __name__ == "__main__":
    main()
