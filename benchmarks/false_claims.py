"""How often a comparison over folds claims a difference where there is none, and where there is one.

python benchmarks/false_claims.py run [STUDIES]; 1,000 studies of each setting take some minutes on one core.

A study draws fresh images (Gaussian features of classes at four sites), deals them over folds as `--data.folds` does,
trains four learners and makes three named comparisons, with Holm's correction. All learners are the same algorithm, and
each sees a block of features of its own. The blocks have one distribution, so that the expected scores are equal and
every claim is false.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from environment import environment
from numpy.typing import NDArray
from scipy.stats import beta, ttest_1samp

from pfedst.data.splitting import fold_sites
from pfedst.evaluation.resampled import resampled_test
from pfedst.evaluation.statistics import LEVEL, holm

RESULT = Path(__file__).parent / "results" / "false_claims.json"
SITES = {"a": 80, "b": 50, "c": 40, "d": 30}
CLASSES, FEATURES, LEARNERS = 3, 4, 4
DISTANCE = 0.8
"""Length of the mean of a class, in deviations of a feature."""
SHARES = (0.55, 0.3, 0.15)
CLAIMS = ((1, 0, "balanced accuracy"), (2, 0, "accuracy"), (3, 1, "balanced accuracy"))
"""Learner, the learner that it is compared with, measure."""
VALIDATION = 0.1
SETTINGS = [
    ("nearest centroid", 1, 5, 1.0),
    ("nearest centroid", 3, 5, 1.0),
    ("ridge", 3, 5, 1.0),
    ("nearest centroid", 3, 5, 2.0),
]
"""Learner, repetitions, folds, and the factor of the class means of learner 1, with which the claims on it are true."""
Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]
Learner = Callable[[Numbers, Labels, Numbers], Labels]
SITE_OF = np.repeat(np.arange(len(SITES)), list(SITES.values()))


def nearest_centroid(features: Numbers, labels: Labels, asked: Numbers) -> Labels:
    """Return the class of the nearest mean, (L, M).

    Args:
        features: of L learners, (L, N, F).
        labels: (N,).
        asked: features of other images, (L, M, F).
    """
    shown = np.eye(CLASSES)[labels]
    means = np.einsum("nk,lnf->lkf", shown / shown.sum(0), features)
    return np.argmax(asked @ means.transpose(0, 2, 1) - (means**2).sum(2)[:, None] / 2, 2)


def ridge(features: Numbers, labels: Labels, asked: Numbers) -> Labels:
    """Return the class with the highest ridge regression of its indicator; shapes as in `nearest_centroid`."""
    known, new = (np.concatenate([of, np.ones((*of.shape[:2], 1))], 2) for of in (features, asked))
    turned = known.transpose(0, 2, 1)
    weights = np.linalg.solve(turned @ known + np.eye(known.shape[2]), turned @ np.eye(CLASSES)[labels])
    return np.argmax(new @ weights, 2)


LEARNER: dict[str, Learner] = {"nearest centroid": nearest_centroid, "ridge": ridge}


def measures(labels: Labels, site_of: Labels) -> dict[str, Numbers]:
    """Return weights of images whose sum over right ones is the mean over sites of a measure."""
    cells = np.bincount(site_of * CLASSES + labels, minlength=len(SITES) * CLASSES).reshape(len(SITES), CLASSES)
    of_site, present = cells.sum(1), (cells > 0).sum(1)
    return {
        "accuracy": 1 / (len(SITES) * of_site[site_of]),
        "balanced accuracy": 1 / (len(SITES) * present[site_of] * cells[site_of, labels]),
    }


def study(
    rng: np.random.Generator, learner: str, repetitions: int, folds: int, factor: float
) -> tuple[bool, bool, bool]:
    """Run one study. Return whether the corrected test, the usual t-test, and the corrected one on claim 1 claim."""
    train, size = LEARNER[learner], len(SITE_OF)
    labels = rng.choice(CLASSES, size, p=SHARES)
    for site in range(len(SITES)):
        first = int(np.argmax(site == SITE_OF))
        labels[first : first + 2 * CLASSES] = np.repeat(np.arange(CLASSES), 2)
    means = np.eye(CLASSES, FEATURES) * DISTANCE
    features = rng.normal(size=(LEARNERS, size, FEATURES)) + means[labels] + 0.3 * SITE_OF[:, None]
    features[1] += (factor - 1) * means[labels]
    found: dict[tuple[int, int, str], list[float]] = {claim: [] for claim in CLAIMS}
    ratios = []
    tables = {site: (labels[n == SITE_OF].tolist(), [None] * of) for n, (site, of) in enumerate(SITES.items())}
    for _ in range(repetitions):
        seed = int(rng.integers(2**31))
        fold_of = np.concatenate([np.array(of) for of in fold_sites(tables, folds, seed).values()])
        for fold in range(folds):
            tested, rest = fold_of == fold, np.flatnonzero(fold_of != fold)
            kept = rng.permutation(rest)[: round((1 - VALIDATION) * len(rest))]
            ratios.append(tested.sum() / len(kept))
            right = train(features[:, kept], labels[kept], features[:, tested]) == labels[tested]
            scores = {name: right @ weights for name, weights in measures(labels[tested], SITE_OF[tested]).items()}
            for one, other, measure in CLAIMS:
                found[one, other, measure].append(float(scores[measure][one] - scores[measure][other]))
    ratio = float(np.mean(ratios))
    corrected = [resampled_test(values, ratio).p_value for values in found.values()]
    usual = [float(ttest_1samp(values, 0).pvalue) for values in found.values()]
    adjusted = holm([1.0 if p is None else p for p in corrected])
    return min(adjusted) < LEVEL, min(holm(np.nan_to_num(usual, nan=1.0).tolist())) < LEVEL, adjusted[0] < LEVEL


def rate(claims: int, studies: int) -> dict[str, object]:
    """Return a rate with its exact (Clopper-Pearson) 95 % interval."""
    low = 0.0 if not claims else float(beta.ppf(0.025, claims, studies - claims + 1))
    high = 1.0 if claims == studies else float(beta.ppf(0.975, claims + 1, studies - claims))
    return {"claims": claims, "rate": claims / studies, "interval": [low, high]}


def measure(studies: int, settings: list[tuple[str, int, int, float]]) -> list[dict[str, object]]:
    """Simulate all settings."""
    rows = []
    for number, (learner, repetitions, folds, factor) in enumerate(settings):
        started = time.perf_counter()
        rng = np.random.default_rng([20240601, number])
        claimed = np.array([study(rng, learner, repetitions, folds, factor) for _ in range(studies)]).sum(0)
        row: dict[str, object] = {"learner": learner, "repetitions": repetitions, "folds": folds, "factor": factor}
        row |= {
            "studies": studies,
            "corrected": rate(int(claimed[0]), studies),
            "usual": rate(int(claimed[1]), studies),
        }
        row |= {"first_claim": rate(int(claimed[2]), studies), "seconds": time.perf_counter() - started}
        rows.append(row)
        print(row, flush=True)
    return rows


def table() -> None:
    """Print the table of the result."""
    result = json.loads(RESULT.read_text())
    protocol, rows = result["protocol"], result["rows"]
    print("| learner | folds | difference | studies | corrected, Holm, % | usual t-test, Holm, % |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        texts = [
            f"{100 * row[test]['rate']:.1f} ({' to '.join(f'{100 * end:.1f}' for end in row[test]['interval'])})"
            for test in ("corrected", "usual")
        ]
        effect = "none" if row["factor"] == 1 else f"class means of one row x {row['factor']:g}"
        print(
            f"| {row['learner']} | {row['repetitions']} x {row['folds']} | {effect} | {row['studies']:,} | "
            f"{texts[0]} | {texts[1]} |"
        )
    sites = ", ".join(str(size) for size in protocol["sites"].values())
    print(
        f"\nShare of studies with any claim, with its exact 95 % interval, of {len(protocol['claims'])} named claims. "
        f"Fresh Gaussian data in each study: sites of {sites} images, {protocol['classes']} classes, "
        f"{protocol['features']} features; validation {protocol['validation_fraction']:g}. Without a difference every "
        f"claim is false, and the share may be {100 * protocol['level']:g} %."
    )


def main() -> None:
    """Print the result, or measure it."""
    if sys.argv[1:2] != ["run"]:
        table()
        return
    studies = int(sys.argv[2]) if sys.argv[2:] else 1000
    rows = measure(studies, SETTINGS)
    protocol = {
        "sites": SITES, "classes": CLASSES, "class_shares": SHARES, "features": FEATURES, "class_distance": DISTANCE,
        "validation_fraction": VALIDATION, "claims": [list(claim) for claim in CLAIMS], "level": LEVEL,
    }  # fmt: skip
    RESULT.write_text(json.dumps({"environment": environment(), "protocol": protocol, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
