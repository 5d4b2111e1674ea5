"""Model cards: the README.md of an exported model. The card of a run is that of `pfedst.reporting.run_card`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pfedst.errors import StateError
from pfedst.inference.rebuild import PERSONAL
from pfedst.inference.saved_run import SavedRun
from pfedst.inference.site_model import SiteModel
from pfedst.reporting.run_card import NO_CLINICAL_USE

METRICS = {"balanced_accuracy": "Balanced accuracy", "auroc": "AUROC", "macro_f1": "Macro F1", "accuracy": "Accuracy"}
"""Metrics of a card, by their key in `summary.json`."""
RANDOM = " The encoder has RANDOM WEIGHTS: this model shows that the software works, and no more."
ENCODER_INSIDE = "\n`model.onnx` holds the encoder, too: the licence of the encoder applies to that file.\n"
USE = """```python
from pfedst import load_model

model = load_model("FOLDER", encoder_weights="WEIGHTS.safetensors")
model.predict(["image.png"])
```"""
LIMITS = """For research on images like those that it was trained on: the same kind of camera, patients and classes. It
has not been tested on other images. An image of none of these classes still gets one of them. A confidence is no
probability of a disease in another population. Check the model on your own labelled images before any other use
(`pfedst test`)."""


def results_of(run: SavedRun, model: SiteModel) -> dict[str, Any]:
    """Return the test results of a model by site, with their protocol: the content of `metrics.json`.

    Nothing of it counts the images of a class. The results of a run are those of its last round, so that a model of
    another round has none.
    """
    summary = run.summary
    if summary is None or summary["protocol"]["round"] != model.source["round"]:
        return {"sites": {}, "reason": "the run reports another round than that of this model, or is not finished"}
    protocol = summary["protocol"]
    sites = summary[model.which]["clients"]
    if model.which == PERSONAL:
        sites = {name: metrics for name, metrics in sites.items() if name == model.site}
    kept = ("split", "round", "when", "seed", "method", "encoder", "random_weights", "data", "prior", "loss")
    return {
        "sites": {name: {key: metrics.get(key) for key in METRICS} for name, metrics in sites.items()},
        "protocol": {key: protocol[key] for key in kept if key in protocol},
    }


def model_card(
    config: Mapping[str, Any], results: Mapping[str, Any], name: str, licence: str | None, with_encoder: bool = False
) -> str:
    """Return the card of a model: front matter for the hub, then text.

    Args:
        config: content of `config.json`.
        results: content of `metrics.json`.
        name: of the model.
        licence: as the hub knows it; None if none was named.
        with_encoder: the folder holds `model.onnx`, in which the encoder is.
    """
    text = _text(config, results, name, licence) + ENCODER_INSIDE * with_encoder
    return f"---\n{_front_matter(config, results, name, licence)}\n---\n\n{text}"


def _front_matter(config: Mapping[str, Any], results: Mapping[str, Any], name: str, licence: str | None) -> str:
    evaluated = [
        EvalResult(
            task_type="image-classification",
            dataset_type="private",
            dataset_name=str(results.get("protocol", {}).get("data", "own images")),
            # the hub groups results by this entry, and not by the name of a data set
            dataset_config=site,
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{METRICS[metric]} (test)",
            metric_value=round(float(value), 4),
        )
        for site, metrics in results["sites"].items()
        for metric, value in metrics.items()
        if value is not None
    ]
    data = ModelCardData(
        license=licence,
        library_name="pfedst",
        pipeline_tag="image-classification",
        tags=["medical", "federated-learning", "clip", "side-tuning", "lora"],
        model_name=name,
        eval_results=evaluated or None,
    )
    try:
        return str(data.to_yaml(line_break="\n")).strip()
    except ValueError as error:  # of an option of the hub's own
        raise StateError(f"the card of {name} cannot be written: {error}") from error


def _text(config: Mapping[str, Any], results: Mapping[str, Any], name: str, licence: str | None) -> str:
    personal, encoder, source = config["which"] == PERSONAL, config["encoder"], config["source"]
    whose = f"the personal model of site `{config['site']}`" if personal else "the generic model"
    method = results.get("protocol", {}).get("method") or config["options"]["method"]["class_path"].rpartition(".")[2]
    parts = [
        f"# {name}",
        f"**{NO_CLINICAL_USE}**{RANDOM * bool(encoder['random_weights'])}",
        f"This is {whose} of run `{source.get('run')}` after round {source.get('round')}, trained with {method} by "
        f"pfedst across hospitals. It classifies an image as one of: "
        f"{', '.join(config['classes'])}.",
        "## Use",
        USE,
        f"The folder holds the adapter alone. The encoder is {encoder['label']}; its image tower has the SHA-256 "
        f"`{encoder['sha256']}` (over its tensors at this image size), and another one is refused.",
        "## Results",
        _results(results),
        "## Class prior, calibration, abstention",
        _meaning(config),
        "## Intended use and limits",
        LIMITS,
        "## What this folder discloses",
        _disclosed(personal),
        "## Licence",
        "No licence was named: ask whoever gave you this folder. The data that it was trained on may forbid some uses."
        if licence is None
        else f"{licence}. The licences of the encoder and of the data may forbid some uses.",
    ]
    return "\n\n".join(parts) + "\n"


def _results(results: Mapping[str, Any]) -> str:
    if not results["sites"]:
        return f"None: {results['reason']}."
    rows = [f"| site | {' | '.join(METRICS.values())} |", "|---|" + "---|" * len(METRICS)]
    for site, metrics in results["sites"].items():
        cells = ["-" if metrics[key] is None else f"{100 * metrics[key]:.1f}" for key in METRICS]
        rows.append(f"| {site} | {' | '.join(cells)} |")
    protocol = results["protocol"]
    note = (
        f"Test split, %, after round {protocol['round']}, seed {protocol['seed']}; macro averages over present classes."
    )
    return "\n".join(rows) + f"\n\n{note} Data: {protocol['data']}."


def _meaning(config: Mapping[str, Any]) -> str:
    names = config["classes"]
    parts = []
    if config["effective_prior"] is None:
        parts.append("The class frequencies that this model has learned are not known: it predicts at its own prior.")
    else:
        pairs = zip(names, config["effective_prior"], strict=True)
        shown = ", ".join(f"{name} {100 * frequency:.1f} %" for name, frequency in pairs)
        parts.append(f"Its logits belong to the class frequencies: {shown}. `--prior` corrects for others.")
    temperature = config["temperature"]
    parts.append(
        "Its temperature is 1: it is not calibrated."
        if temperature == 1
        else f"Its temperature, {temperature:.3g}, was fitted on the validation images of its site."
    )
    abstention = config["abstention"]
    parts.append(
        "It never abstains."
        if abstention is None
        else f"It abstains below a confidence that {100 * abstention['coverage']:.0f} % of the validation images reach."
    )
    return " ".join(parts)


def _disclosed(personal: bool) -> str:
    anchors = (
        "Class anchors that are prototypes are means of embeddings over all sites: the anchor of a class with a single "
        "training image IS the embedding of that image."
    )
    if personal:
        return (
            "A personal model holds what its site did not share with the others: tensors that were trained on its "
            f"images alone, and its class frequencies. Publish it only if the site agrees. {anchors}"
        )
    return f"The generic model holds what the server knows, and no tensor that a site kept to itself. {anchors}"
