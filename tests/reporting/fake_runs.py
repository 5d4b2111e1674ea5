"""Run folders on disk with numbers that a test chose."""

import json
from statistics import fmean, pstdev

from pfedst.reporting.summary import CALIBRATION_BINS

METRICS = ("balanced_accuracy", "auroc", "macro_f1", "accuracy", "ece", "classwise_ece")
COST = {
    "parameters_trained": 100,
    "parameters_sent": 40,
    "upload_bytes_per_round": 1000.0,
    "download_bytes_per_round": 3000.0,
    "setup_upload_bytes": 500,
    "skipped_steps": 0,
    "images_trained": 1000,
    "flops_per_image": 2e9,
    "fit_seconds": 10.0,
    "total_seconds": 20.0,
    "resumed_after_round": None,
    "peak_memory_bytes": 2**30,
}
PROTOCOL = {
    "method": "FedAvg",
    "method_options": {"weighting": "samples"},
    "weighting": "samples",
    "adapter": "SideNetwork",
    "anchors": "text",
    "encoder": "ViT-B-16, weights openai",
    "random_weights": False,
    "data": "Images in a folder",
    "data_audit": None,
    "classes": ["x", "y"],
    "samples": {"a": {"train": 8, "validation": 2, "test": 10}, "b": {"train": 4, "validation": 2, "test": 30}},
    "seed": 0,
    "rounds": 5,
    "round": 5,
    "local_epochs": 1,
    "local_batches": "all",
    "batch_size": 4,
    "augmentation": "none",
    "optimizer": {"class": "AdamW", "lr": 0.001, "weight_decay": 0.01},
    "optimizer_state": "reset",
    "participation": 1.0,
    "held_out_sites": [],
    "pooled": False,
    "split": "test",
    "when": "after the last merge",
    "selection": "none: the last round",
    "averaging": "mean over sites",
    "personal": "merged and personal",
    "generic": "merged",
}


def of_model(values, held_out=()):
    """Of {site: value}: every metric has that value; confusion of 10 images a site, of which value is right."""
    found = [value for site, value in values.items() if site not in held_out]
    columns = {"mean": fmean(found), "weighted_mean": fmean(found), "worst": min(found), "std": pstdev(found)}
    if held_out:
        columns["held_out_mean"] = fmean(values[site] for site in held_out)
    summary = {column: dict.fromkeys(METRICS, value) for column, value in columns.items()}
    counts = {
        site: {
            "confusion": [[round(5 * value), 5 - round(5 * value)], [0, 5]],
            "reliability": {"images": [0] * 14 + [10], "right": [0] * 14 + [9], "confidence": [0.0] * 14 + [9.8]},
        }
        for site, value in values.items()
    }
    return (
        {"clients": {site: dict.fromkeys(METRICS, value) for site, value in values.items()}}
        | summary
        | {"counts": counts}
    )


def write_run(
    folder,
    values,
    generic=None,
    seed=0,
    cost=None,
    left_out=None,
    study=None,
    last_digits=None,
    content=None,
    class_metrics=None,
    environment=None,
    **protocol,
):
    """A finished run: personal {site: value}, generic the same or {site: value}.

    Without `study` its options were not recorded, as those of a run that no command line started.
    """
    folder.mkdir(parents=True)
    sites = {site: {"train": 8, "validation": 2, "test": 10} for site in values}
    held_out = protocol.get("held_out_sites", ())
    personal = of_model(values, held_out)
    summary = {
        "format": 2,
        "pfedst_version": "1.0.0",
        "name": folder.name,
        "study": {} if study is None else study | {"seed_everything": seed},
        "last_digits": last_digits or {},
        "content": content or {},
        "evaluated": {
            "round": 5,
            "split": "test",
            "prior": "none: logits as the model gives them",
            "bins": CALIBRATION_BINS,
        },
        "environment": environment,
        "class_metrics": class_metrics or {},
        "protocol": PROTOCOL | {"seed": seed, "samples": sites} | protocol,
        "personal": personal,
        "generic": of_model(generic or values, held_out),
        "validation": {"personal": personal, "generic": personal},
        "best_on_validation": None,
        "trained": None,
        "left_out": left_out or {},
        "cost": COST | (cost or {}),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    records = [
        {
            "round": r,
            "client": site,
            "received": {s: {"personal": dict.fromkeys(METRICS, v)} for s in ("validation", "test")},
        }
        for r in (0, 5)
        for site, v in values.items()
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def as_format_1(folder):
    """The same run with a summary as the version before wrote it."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    new = ("class_metrics", "environment", "pfedst_version", "study", "last_digits", "content", "evaluated")
    old = {key: value for key, value in summary.items() if key not in new}
    file.write_text(json.dumps(old | {"format": 1}))
    return folder


def write_comparison(folder, rows, reference, tuned=None, **options):
    """A comparison of {label: {seed: {site: value}}}; a seed of None is one that is missing."""
    folder.mkdir(exist_ok=True)
    content = {"format": 1, "name": folder.name, "reference": reference, "tuning": None, "rows": []}
    if tuned:
        content["tuning"] = {"seeds": [100], "metric": "balanced_accuracy, validation, last round"}
    for label, seeds in rows.items():
        runs = {}
        for seed, values in seeds.items():
            runs[str(seed)] = f"{label}-{seed}"
            if values is not None:
                write_run(folder / "runs" / f"{label}-{seed}", values, seed=seed, **({"method": label} | options))
        content["rows"].append({"label": label, "options": {}, "tuned": (tuned or {}).get(label), "runs": runs})
    (folder / "comparison.json").write_text(json.dumps(content))
    return folder
