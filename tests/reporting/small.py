"""A comparison of finished runs without a run: every number of it follows from one value for each site."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.evaluation import CALIBRATION, METRICS, over_clients
from pfedst.evaluation.counts import BINS
from pfedst.reporting.comparison import Compared, FinishedRun, RunsOfARow
from pfedst.reporting.summary import CALIBRATION_BINS

IMAGES_OF_A_CLASS = 10
"""On test, at a site."""


def compared(
    rows: Mapping[str, Mapping[int, Mapping[str, float | None]]],
    *,
    reference: str | None = None,
    untrained: Collection[str] = ("ZeroShot",),
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    validation: bool = True,
    name: str = "small",
    notes: tuple[str, ...] = (),
    tuned: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    **protocol: Any,
) -> Compared:
    """A comparison of which the personal model has the given values on test.

    Args:
        rows: label -> seed -> site -> value of every metric on test; of calibration errors 1 - value. The generic
            model has 0.1 less, validation 0.05 less. None: not defined.
        reference: a label; by default PFedST, or else the first row.
        untrained: labels of rows that train nothing.
        costs: label -> what its `cost` differs in.
        validation: whether there are validation images.
        name, notes, tuned, tuning: of the comparison.
        protocol: what the protocol of every run differs in.
    """
    labels = list(rows)
    made = []
    for label, seeds in rows.items():
        cost = (costs or {}).get(label, {})
        trains = label not in untrained
        made.append(
            RunsOfARow(
                label,
                tuple(_run(label, seed, sites, trains, cost, validation, protocol) for seed, sites in seeds.items()),
            )
        )
    chosen = reference or ("PFedST" if "PFedST" in labels else labels[0])
    return Compared(name, tuple(made), chosen, notes, tuned or {}, tuning)


def _run(
    label: str,
    seed: int,
    sites: Mapping[str, float | None],
    trains: bool,
    cost: Mapping[str, Any],
    validation: bool,
    protocol: Mapping[str, Any],
) -> FinishedRun:
    told = _protocol(label, seed, list(sites), trains, validation) | dict(protocol)
    if not trains:
        told |= {"rounds": 0, "round": 0}
    classes = len(told["classes"])
    sizes = {site: told["samples"][site]["test"] for site in sites}
    on_validation = _shifted(sites, -0.05) if validation else dict.fromkeys(sites)
    summary = {
        "format": 2,
        "name": f"{label}-seed{seed}",
        "study": {},
        "last_digits": {},
        "content": {},
        "evaluated": {"round": told["round"], "bins": CALIBRATION_BINS},
        "environment": None,
        "class_metrics": class_metrics(sites, told["classes"]),
        "intervals": {},
        "subgroups": {},
        "calibration": calibration(sites, told["samples"]) if validation else {},
        "protocol": told,
        "personal": _model(sites, sizes, classes),
        "generic": _model(_shifted(sites, -0.1), sizes, classes),
        "validation": {
            "personal": _model(on_validation, sizes, classes),
            "generic": _model(_shifted(on_validation, -0.1), sizes, classes),
        },
        "best_on_validation": None,
        "trained": None,
        "left_out": {},
        "cost": _cost(label, trains) | dict(cost),
    }
    run = FinishedRun(Path(f"runs/{label}-seed{seed}"), summary)
    run.__dict__["records"] = _records(sites, on_validation, told["rounds"])
    return run


def _protocol(label: str, seed: int, sites: list[str], trains: bool, validation: bool) -> dict[str, Any]:
    samples = {"train": 40, "validation": 8 if validation else 0, "test": 3 * IMAGES_OF_A_CLASS}
    return {
        "method": label,
        "method_options": {"weighting": "samples", "finetune_epochs": 0},
        "adapter": "SideNetwork",
        "anchors": "prototypes",
        "encoder": "ViT-B/32",
        "random_weights": False,
        "data": "lesions",
        "data_audit": None,
        "cache": "taps, float32",
        "classes": ["nevus", "melanoma", "keratosis"],
        "clients": "all",
        "samples": {site: dict(samples) for site in sites},
        "seed": seed,
        "seeds": 1,
        "rounds": 2,
        "round": 2,
        "local_epochs": 1,
        "local_batches": "all",
        "batch_size": 16,
        "optimizer": {"class": "AdamW", "lr": 0.001},
        "participation": 1.0,
        "held_out_sites": [],
        "pooled": label == "Pooled",
        "weighting": "samples",
        "split": "test",
        "when": "after the last merge, before local training (`received`)",
        "personal": "merged shared tensors with the client's own personal tensors",
        "generic": "merged shared tensors with personal tensors at their start",
        "selection": "none: the last round",
        "averaging": "macro metrics over the classes present in a client's targets",
        "threads": 1,
        "augmentation": "none",
        "optimizer_state": "reset",
    }


def _cost(label: str, trains: bool) -> dict[str, Any]:
    moved = 1_000_000.0 if trains and label not in ("Local", "Pooled") else 0.0
    return {
        "parameters_trained": 60_000 if trains else 0,
        "parameters_sent": 50_000 if moved else 0,
        "upload_bytes_per_round": moved,
        "download_bytes_per_round": moved,
        "setup_upload_bytes": 0,
        "skipped_steps": 0,
        "images_trained": 80 if trains else 0,
        "flops_per_image": 5e7 if trains else None,
        "fit_seconds": 2.0 if trains else 0.0,
        "total_seconds": 3.0,
        "resumed_after_round": None,
        "peak_memory_bytes": 600 * 2**20,
    }


def _shifted(sites: Mapping[str, float | None], by: float) -> dict[str, float | None]:
    return {site: None if value is None else max(0.0, value + by) for site, value in sites.items()}


def _metrics(value: float | None) -> dict[str, float | None]:
    calibration = None if value is None else 1 - value
    return dict.fromkeys(METRICS, value) | dict.fromkeys(CALIBRATION, calibration)


def _model(sites: Mapping[str, float | None], sizes: Mapping[str, int], classes: int) -> dict[str, Any]:
    metrics = {site: _metrics(value) for site, value in sites.items()}
    return over_clients(metrics, sizes) | {"counts": {site: _counts(sites[site], classes) for site in sorted(sites)}}


def class_metrics(sites: Mapping[str, float | None], classes: Sequence[str]) -> dict[str, Any]:
    """Of each class 10 images of 5 patients, and the value of the site with 0.1 less and more at the ends.

    The last class has no image, and at a site whose value is None there is none at all.
    """

    def table(value: float, last: bool) -> dict[str, Any]:
        nothing = {"value": None, "low": None, "high": None}
        found = {"value": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1)}
        of_class = 0 if last else IMAGES_OF_A_CLASS
        others = (len(classes) - (1 if last else 2)) * 5
        sizes = {"images": of_class, "units": of_class // 2, "other_units": others}
        positive, negative = nothing if last else found, found if others else nothing
        both = positive if others else nothing
        return sizes | {"sensitivity": positive, "specificity": negative, "average_precision": both}

    images = (len(classes) - 1) * IMAGES_OF_A_CLASS
    return {
        site: {"images": images, "units": images // 2, "without_unit": 0}
        | {"personal": [table(value, number == len(classes) - 1) for number in range(len(classes))]}
        for site, value in sites.items()
        if value is not None
    }


def calibration(sites: Mapping[str, float | None], samples: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Of each site T = 2 and one error; all images have a confidence of 0.9 before and 0.7 after, one in ten is wrong.

    A site whose value is None has no test image.
    """
    return {
        site: {"temperature": 2.0, "images": samples[site]["validation"], "errors": 1, "reason": None, "prior": "site"}
        | {"coverage": 0.8, "test": {"images": 0} if value is None else _calibrated(samples[site]["test"])}
        for site, value in sites.items()
    }


def _calibrated(images: int) -> dict[str, Any]:
    right = images - images // 10

    def moment(confidence: float) -> dict[str, Any]:
        place = int(confidence * BINS)
        bins = {
            key: [value if number == place else 0 for number in range(BINS)]
            for key, value in (("images", images), ("right", right), ("confidence", confidence * images))
        }
        return {
            "ece": abs(confidence - right / images),
            "nll": confidence / 2,
            "brier": confidence,
            "reliability": bins,
        }

    curve = [[0.5, 0.05], [1.0, 1 - right / images]]
    given = {"coverage": 0.75, "accuracy": 0.95}
    return {"images": images, "before": moment(0.9), "after": moment(0.7), "selective": given, "risk_coverage": curve}


def _counts(value: float | None, classes: int) -> dict[str, Any]:
    """Of each class 10 images, of which 10 x value are right and the others taken for the next class.

    All have a confidence of 0.5. Where the value is None there is no image.
    """
    of_a_class = 0 if value is None else IMAGES_OF_A_CLASS
    right = round(of_a_class * (value or 0))
    confusion = [[0] * classes for _ in range(classes)]
    for target, row in enumerate(confusion):
        row[target] += right
        row[(target + 1) % classes] += of_a_class - right
    middle = BINS // 2
    at_middle = [int(number == middle) for number in range(BINS)]
    return {
        "confusion": confusion,
        "reliability": {
            "images": [of_a_class * classes * here for here in at_middle],
            "right": [right * classes * here for here in at_middle],
            "confidence": [0.5 * of_a_class * classes * here for here in at_middle],
        },
    }


def _records(
    sites: Mapping[str, float | None], on_validation: Mapping[str, float | None], rounds: int
) -> list[dict[str, Any]]:
    """Evaluated before the first round and after each; values rise in equal steps from half of the last."""
    records = []
    for number in range(rounds + 1):
        share = 1.0 if not rounds else 0.5 + 0.5 * number / rounds
        for site in sites:
            found = {"validation": on_validation[site], "test": sites[site]}
            at_this_round = {split: None if value is None else value * share for split, value in found.items()}
            received = {
                split: {"personal": _metrics(value), "generic": _metrics(value)}
                for split, value in at_this_round.items()
            }
            records.append(
                {"round": number, "client": site, "participated": number > 0, "received": received}
                | ({"setup_upload_bytes": 0} if number == 0 else {"upload_bytes": 0, "download_bytes": 0})
            )
    return records
