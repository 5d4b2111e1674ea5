"""Does a temperature fitted on few validation images help or harm? Redraws on the four FedISIC centres.

    python benchmarks/calibration.py run --root FOLDER --weights IMAGE_TOWER.safetensors --runs RUNS
    python benchmarks/calibration.py table

`run` trains the methods with the shipped recipe of `configs/fed_isic_ham4.yaml`, one run a method and seed, in the
folder RUNS; finished runs there are kept. From their kept predictions it draws n validation images 300 times out of
validation and test of each site, fits a temperature on them, and measures it on the rest, at the prior of the site:

* none: T = 1
* grid: the temperature with the smallest loss
* prior: the same with the normal prior on log T
* prior and floor: the same with T >= 1

The last one is measured in two forms, also at the balanced prior, where T was not fitted: T divides the logits (the
form of the package), or T divides the logits at the prior of the site, of which other priors are then made:
p proportional to exp((f - log pi_effective + log pi_site) / T - log pi_site + log pi_target).

The result is benchmarks/results/calibration.json. The constants `DEVIATION` and `FLOOR` of
`pfedst/evaluation/calibration.py` are chosen by it. Validation and test of a site come from one pool, so that no shift
over time is in it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import run_and_table
from environment import environment
from torch import Tensor

from pfedst.cli import main as pfedst
from pfedst.client.predictions import Predictions
from pfedst.client.state import SiteState
from pfedst.evaluation.calibration import DEVIATION, FLOOR, best_temperature, calibrated, image_losses, temperatures
from pfedst.evaluation.counts import calibration_error
from pfedst.seeds import derive_seed, generator

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/calibration.json"
METHODS = ("PFedST", "FedAvg", "Local")
SEEDS = (0, 1, 2)
DRAWS = 300
SIZES = (16, 30, 60)
NONE, GRID, PRIOR, BOTH = "none", "grid", "prior", "prior and floor"
VARIANTS: dict[str, tuple[float, bool]] = {
    GRID: (math.inf, False),
    PRIOR: (DEVIATION, False),
    BOTH: (DEVIATION, True),
}
"""Standard deviation of the prior on log T, and whether T is at least 1."""
LOGITS, AT_SITE = "T divides the logits", "T divides at the prior of the site"
FORMS = (NONE, LOGITS, AT_SITE)
"""Forms of the temperature, as fitted with prior and floor."""


def make_runs(root: Path, weights: Path, folder: Path) -> None:
    """Train what is not there yet."""
    for seed in SEEDS:
        for method in METHODS:
            if (folder / f"{method}-{seed}" / "summary.json").exists():
                continue
            arguments = ["fit", "--config", str(ROOT / "configs/fed_isic_ham4.yaml"), f"--data.root={root}"]
            arguments += [f"--model.encoder.weights={weights}", f"--method={method}", f"--seed_everything={seed}"]
            arguments += ["--coordinator.threads=1", "--coordinator.share_class_counts=true"]
            if code := pfedst([*arguments, f"--runs_dir={folder}", f"--name={method}-{seed}", "--resume"]):
                raise SystemExit(code)


def study(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each finished run, site and number of drawn images."""
    for method in METHODS:
        for seed in SEEDS:
            run = folder / f"{method}-{seed}"
            if not (run / "summary.json").exists():
                continue
            summary = json.loads((run / "summary.json").read_text())
            for site in summary["protocol"]["samples"]:
                place, at = SiteState(run / "sites", site).folder, summary["evaluated"]["round"]
                pool = Pool([Predictions.load(place, split, at) for split in ("validation", "test")])
                for size in SIZES:
                    if size <= pool.images // 2:
                        about = {"method": method, "seed": seed, "site": site, "images": pool.images}
                        found = pool.redraw(size, derive_seed(0, "redraw", site, size), DRAWS)
                        forms = pool.forms(size, derive_seed(0, "redraw", site, size), DRAWS)
                        yield about | {"errors": pool.errors, "drawn": size, "variants": found, "forms": forms}


class Pool:
    """The predictions of a site on validation and test together, at each temperature of the grid.

    Args:
        parts: predictions on validation and on test.
    """

    def __init__(self, parts: Sequence[Predictions]) -> None:
        logits = torch.cat([part.logits("personal") for part in parts])
        labels = torch.cat([part.tensors["label"] for part in parts])
        effective, site = parts[0].effective("personal"), parts[0].site_prior
        assert effective is not None
        assert site is not None
        self.images = len(labels)
        self.labels = labels
        self.grid = temperatures(floor=False)
        self.losses = image_losses(logits, labels, effective, site, floor=False)
        self.right = calibrated(logits, 1.0, effective, site).argmax(1) == labels
        self.errors = int((~self.right).sum())
        self.confidence = torch.stack(
            [calibrated(logits, t, effective, site).exp().max(1).values for t in self.grid.tolist()]
        )
        even = torch.full_like(effective, 1 / len(effective))
        at_site = logits.double() - effective.log() + site.log()
        self.at = {
            LOGITS: [[calibrated(logits, t, effective, prior) for t in self.grid.tolist()] for prior in (site, even)],
            AT_SITE: [
                [(at_site / t - site.log() + prior.log()).log_softmax(1) for t in self.grid.tolist()]
                for prior in (site, even)
            ],
        }
        """Log-probabilities of each form: at the prior of the site and at the balanced one, by temperature."""

    def forms(self, size: int, seed: int, draws: int) -> dict[str, dict[str, float]]:
        """Return for each form means over draws: NLL at the prior of the site, and at the balanced prior."""
        source, found = generator(seed), {form: list[tuple[float, float, float]]() for form in FORMS}
        losses = {
            form: torch.stack([-one.gather(1, self.labels[:, None])[:, 0] for one in of[0]])
            for form, of in self.at.items()
        }
        for _ in range(draws):
            order = torch.randperm(self.images, generator=source)
            drawn, rest = order[:size], order[size:]
            for form in FORMS:
                of, t = (LOGITS, 1.0) if form == NONE else (form, self.best(losses[form], drawn))
                at = int((self.grid - t).abs().argmin())
                site, even = (self.at[of][prior][at][rest] for prior in (0, 1))
                labels = self.labels[rest]
                nll = float(-site.gather(1, labels[:, None]).mean())
                found[form].append((nll, *balanced(even, labels)))
        names = ("nll", "balanced_nll", "balanced_accuracy")
        return {
            form: {
                name: round(statistics.fmean(column), 5)
                for name, column in zip(names, zip(*values, strict=True), strict=True)
            }
            for form, values in found.items()
        }

    def best(self, losses: Tensor, drawn: Tensor) -> float:
        """Return the temperature that is fitted on some images with prior and floor, of losses (G, N)."""
        return best_temperature(losses[-len(temperatures(True)) :, drawn].sum(1), DEVIATION, True)

    def redraw(self, size: int, seed: int, draws: int) -> dict[str, dict[str, float]]:
        """Return for each variant means over draws, the share of draws with more loss than T = 1, and the worst harm.

        `harm` is the 95th percentile of the loss minus that of T = 1.
        """
        source, found = generator(seed), {name: list[tuple[float, float, float]]() for name in (NONE, *VARIANTS)}
        for _ in range(draws):
            order = torch.randperm(self.images, generator=source)
            drawn, rest = order[:size], order[size:]
            for name in found:
                t = 1.0 if name == NONE else self.fitted(drawn, *VARIANTS[name])
                found[name].append((t, *self.measured(t, rest)))
        base = [loss for _, loss, _ in found[NONE]]
        rows = {}
        for name, values in found.items():
            harm = sorted(loss - before for (_, loss, _), before in zip(values, base, strict=True))
            rows[name] = {
                "temperature": statistics.fmean(t for t, _, _ in values),
                "nll": statistics.fmean(loss for _, loss, _ in values),
                "ece": statistics.fmean(ece for _, _, ece in values),
                "worse": sum(value > 1e-9 for value in harm) / draws,
                "harm": harm[math.ceil(0.95 * draws) - 1],
            }
        return {name: {key: round(value, 5) for key, value in row.items()} for name, row in rows.items()}

    def fitted(self, drawn: Tensor, deviation: float, floor: bool) -> float:
        """Return the temperature that is fitted on some images."""
        losses = self.losses[:, drawn].sum(1)
        return best_temperature(losses[-len(temperatures(floor)) :], deviation, floor)

    def measured(self, temperature: float, rest: Tensor) -> tuple[float, float]:
        """Return NLL and ECE on some images."""
        at = int((self.grid - temperature).abs().argmin())
        return float(self.losses[at, rest].mean()), calibration_error(self.confidence[at, rest], self.right[rest])


def balanced(logarithms: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return NLL and accuracy, each a mean over the classes that are present, of log-probabilities (N, K)."""
    of_images = -logarithms.gather(1, labels[:, None])[:, 0], (logarithms.argmax(1) == labels).double()
    nll, right = (statistics.fmean(float(of[labels == c].mean()) for c in labels.unique()) for of in of_images)
    return nll, right


# -- the table ---------------------------------------------------------------------------------------------------------


def table() -> None:
    """Print means over sites and seeds by method and number of drawn images, and the worst site of each."""
    result = json.loads(RESULT.read_text())
    rows = result["rows"]
    heads = ("method", "images drawn", "fit", "T", "NLL", "ECE, %", "worse, % of draws", "harm", "worst harm of a site")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for method in METHODS:
        for size in SIZES:
            found = [row for row in rows if (row["method"], row["drawn"]) == (method, size)]
            for variant in (NONE, *VARIANTS) if found else ():
                of = [row["variants"][variant] for row in found]
                mean = {key: statistics.fmean(one[key] for one in of) for key in of[0]}
                worst = max(found, key=lambda row: row["variants"][variant]["harm"])
                at = "-" if variant == NONE else f"{worst['variants'][variant]['harm']:+.3f} ({worst['site']})"
                harm = "-" if variant == NONE else f"{mean['harm']:+.3f}"
                worse = "-" if variant == NONE else f"{100 * mean['worse']:.0f}"
                print(
                    f"| {method} | {size} | {variant} | {mean['temperature']:.2f} | {mean['nll']:.3f} | "
                    f"{100 * mean['ece']:.1f} | {worse} | {harm} | {at} |"
                )
    print(f"\n{_text(result)}\n")
    heads = ("form of T", "NLL, prior of the site", "NLL, balanced prior", "balanced accuracy, %, balanced prior")
    print(f"| {' | '.join(('images drawn', *heads))} |\n|{'---|' * (len(heads) + 1)}")
    for size in SIZES:
        for form in FORMS:
            of = [row["forms"][form] for row in rows if row["drawn"] == size]
            nll, even, right = (statistics.fmean(one[key] for one in of) for key in of[0])
            print(f"| {size} | {form} | {nll:.3f} | {even:.3f} | {100 * right:.1f} |")
    print(
        "\nThe same draws, means over methods, sites and runs; NLL and accuracy at the balanced prior are means over "
        "the classes that are present. A temperature that divides at the prior of the site moves predictions at the "
        "balanced prior towards classes that are rare at the site; one that divides the logits leaves them."
    )


def _text(result: dict[str, Any]) -> str:
    rows = result["rows"]
    runs = sorted({(row["method"], row["seed"]) for row in rows})
    counts = ", ".join(f"{method} {sum(name == method for name, _ in runs)}" for method in METHODS)
    pairs = sorted({(row["method"], row["drawn"]) for row in rows})
    lowest = sum(_lowest([row for row in rows if (row["method"], row["drawn"]) == pair]) == BOTH for pair in pairs)
    floor = "with" if FLOOR else "without"
    return (
        f"Runs (seeds) of each method: {counts}. Each row: means over the sites and runs of {DRAWS} draws of so many "
        f"images out of validation and test of a site, at sites with twice as many; the temperature is measured on the "
        f"rest, at the class frequencies of the site. Worse: NLL above that of T = 1. Harm: 95th percentile of NLL "
        f"minus NLL of T = 1. Of the fits, prior and floor has the lowest mean NLL in {lowest} of {len(pairs)} pairs "
        f"of method and number of images. The package fits with the prior (standard deviation {DEVIATION:g} of log T), "
        f"{floor} the floor. Few runs of one data set: no shift between validation and test is in it."
    )


def _lowest(rows: Sequence[dict[str, Any]]) -> str:
    """Return the fit with the lowest mean NLL."""
    return min(VARIANTS, key=lambda name: statistics.fmean(row["variants"][name]["nll"] for row in rows))


def main() -> None:
    """Measure, or print the result."""
    parser, _, runs = run_and_table(__doc__)
    for name in ("root", "weights", "runs"):
        runs.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "run":
        make_runs(given.root, given.weights, given.runs)
        rows = list(study(given.runs))
        RESULT.write_text(json.dumps({"environment": environment(), "rows": rows}) + "\n")
    table()


if __name__ == "__main__":
    main()
