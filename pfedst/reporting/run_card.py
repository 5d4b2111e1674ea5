"""The card of a run: its facts, what only people can say, and the checklist of the field, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation.averages import METRICS
from pfedst.reporting.claim_items import STATED, Item, claim_items
from pfedst.reporting.data_card import FILE, KEYS, read_data_card
from pfedst.reporting.environment import environment_lines
from pfedst.reporting.loading import present_summary
from pfedst.reporting.report_table import percent
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.tables import metric_title
from pfedst.state import json_bytes, write_atomically, writing
from pfedst.version import __version__

FORMAT = 1
"""Of `card.json`."""
NO_CLINICAL_USE = "Research software, not a medical device. Do not use this model for diagnosis or treatment."
MODELS = ("personal", "generic")


@dataclass(frozen=True)
class RunCard:
    """The card of a run.

    Attributes:
        facts: by section of the card: a table of facts by name.
        data_card: what people said of the images.
        items: of the checklist.
        markdown: the card as a page.
    """

    name: str
    facts: Mapping[str, Mapping[str, Any]]
    data_card: Mapping[str, str]
    items: Sequence[Item]
    markdown: str

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON can hold it."""
        return {
            "format": FORMAT,
            "pfedst_version": __version__,
            "notice": NO_CLINICAL_USE,
            "run": self.name,
            "facts": {section: dict(of) for section, of in self.facts.items()},
            "data_card": {key: self.data_card.get(key, STATED) for key in KEYS},
            "claim_2024": [asdict(item) for item in self.items],
        }

    def write(self, folder: str | Path) -> Path:
        """Write `card.md` and `card.json` into a folder; return the path of the page.

        Raises:
            StateError: the disk refuses.
        """
        page = Path(folder) / "card.md"
        with writing(page):
            page.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(page.with_suffix(".json"), json_bytes(self.to_json()))
            write_atomically(page, self.markdown.encode())
        return page


def card(run: str | Path, data_card: str | Path | None = None) -> RunCard:
    """Make the card of a finished run from its summary; no image is needed.

    Args:
        run: folder of the run.
        data_card: YAML of what people know of the images; default: `data_card.yaml` in the folder, if it is there.

    Raises:
        StateError: the run is not finished, or its summary is damaged.
        ConfigurationError: the data card cannot be read.
    """
    folder = Path(run)
    found = RunFolder(folder).summary()
    if found is None:
        raise StateError(f"{folder} holds no summary.json: not a run, or a run that is not finished")
    summary = present_summary(found, folder / "summary.json")
    file = folder / FILE if data_card is None else Path(data_card)
    said = read_data_card(file) if data_card is not None or file.is_file() else {}
    items, facts = claim_items(summary, said), _facts(summary)
    name = folder.resolve().name
    return RunCard(name, facts, said, items, _markdown(name, summary, facts, said, items))


def _facts(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    protocol, content, cost = summary["protocol"], summary["content"], summary["cost"]
    audit = protocol.get("data_audit")
    facts: dict[str, dict[str, Any]] = {
        "Data": {
            "images": protocol["data"],
            "classes": ", ".join(protocol["classes"]),
            "images of each hospital (train / validation / test)": "; ".join(
                f"{site} {of['train']} / {of['validation']} / {of['test']}" for site, of in protocol["samples"].items()
            ),
            "hospitals that never trained": ", ".join(protocol["held_out_sites"]) or "none",
            "audit": "not done" if audit is None else _audit(audit),
            "hash of images, classes and splits": content.get("data", "not recorded"),
        },
        "Model": {
            "method": protocol["method"],
            "options of the method": _listed(protocol["method_options"]),
            "adapter": protocol["adapter"],
            "class anchors": protocol["anchors"],
            "encoder, frozen": protocol["encoder"],
            "SHA-256 of the encoder": content.get("encoder_weights", "not recorded"),
            "preprocessing": "that of the encoder, named in config.yaml; square input of the size above",
            "trained numbers of a hospital": f"{cost['parameters_trained']:,}",
        },
        "Training": {
            "rounds": protocol["rounds"],
            "local epochs and batches a round": f"{protocol['local_epochs']}; {protocol['local_batches']} batches",
            "batch size": protocol["batch_size"],
            "loss": protocol.get("loss", "cross-entropy"),
            "optimiser": _listed(protocol["optimizer"]),
            "augmentation": protocol["augmentation"],
            "participation": protocol["participation"],
            "weights of hospitals in the merge": protocol["weighting"],
            "seed": f"{protocol['seed']} (one seed: no claim of significance)",
            "reported model": f"{protocol['when']}; round {protocol['round']} of {protocol['rounds']}",
            "selection": protocol["selection"],
            "left out of rounds": _left_out(summary),
            "sent by all hospitals": f"{_total(cost):,.0f} bytes up",
        },
        "Results": _results(summary),
    }
    return facts


def _audit(audit: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} of severity {severity}" for severity, number in audit["findings"].items())
    codes = f" ({', '.join(audit['codes'])})" if audit["codes"] else ""
    return f"{counts}{codes}; {'every image was opened' if audit['opened'] else 'tables alone'}"


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "none"


def _left_out(summary: Mapping[str, Any]) -> str:
    found = summary.get("left_out") or {}
    return "; ".join(f"{site}: {_listed(kinds)}" for site, kinds in found.items()) or "none"


def _total(cost: Mapping[str, Any]) -> float:
    return float(cost.get("upload_bytes", cost["upload_bytes_per_round"]) or 0)


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "split": f"{summary['evaluated']['split']}, after round {summary['evaluated']['round']}",
        "class prior of predictions": summary["evaluated"]["prior"],
        "averages": summary["protocol"]["averaging"],
    }
    for model in MODELS:
        if model not in summary:
            continue
        mean, worst, spread = (summary[model][key].get("balanced_accuracy") for key in ("mean", "worst", "std"))
        found[f"balanced accuracy, {model}, %"] = (
            f"mean {percent(mean)}, worst hospital {percent(worst)}, deviation over hospitals {percent(spread)}"
        )
    return found


def _markdown(
    name: str,
    summary: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    said: Mapping[str, str],
    items: Sequence[Item],
) -> str:
    synthetic = " The encoder has RANDOM WEIGHTS: the numbers show that the software works, and no more."
    notice = f"**{NO_CLINICAL_USE}**{synthetic * bool(summary['protocol']['random_weights'])}"
    parts = [f"# Card of the run {name}", notice, f"Written by pfedst {__version__} from the summary of the run."]
    for section, of in facts.items():
        parts += [f"## {section}", _table(("fact", "value"), of.items())]
        if section == "Results":
            parts += [
                _sites(summary),
                "## Results by class",
                *_classes(summary),
                "## Calibration",
                _calibration(summary),
            ]
    environment = summary.get("environment")
    lines = ["not recorded"] if environment is None else environment_lines(environment)
    parts += ["## Software and hardware", "\n".join(f"- {line}" for line in lines)]
    parts += ["`config.yaml` in the folder of the run trains it again: `pfedst fit --config config.yaml`."]
    parts += [
        "## Data card",
        _table(("what", "stated"), ((words, said.get(key, STATED)) for key, words in KEYS.items())),
    ]
    parts += [f"Entries come from `{FILE}` in the folder of the run, or from `pfedst card --data_card FILE`."]
    parts += ["## CLAIM 2024", "Items of the checklist (doi:10.1148/ryai.240300), topics in our words."]
    rows = ((item.number, item.topic, _status(item), item.where) for item in items)
    parts += [_table(("item", "topic", "this card", "section"), rows)]
    return "\n\n".join(parts) + "\n"


def _status(item: Item) -> str:
    return STATED if item.status == "to be stated" else item.status


def _sites(summary: Mapping[str, Any]) -> str:
    samples, split = summary["protocol"]["samples"], summary["evaluated"]["split"]
    held_out = summary["protocol"]["held_out_sites"]
    metrics = [metric for metric in METRICS if metric in summary["personal"]["mean"]]
    rows = [
        (
            f"{site} (never trained)" if site in held_out else site,
            model,
            samples[site][split],
            *(percent(values[metric]) for metric in metrics),
        )
        for model in MODELS
        if model in summary
        for site, values in summary[model]["clients"].items()
    ]
    return _table(("hospital", "model", "images", *(f"{metric_title(metric)}, %" for metric in metrics)), rows)


def _classes(summary: Mapping[str, Any]) -> list[str]:
    if not summary["class_metrics"]:
        return ["Not recorded."]
    names = summary["protocol"]["classes"]
    rows = [
        (site, name, of["images"], of["units"], _interval(of["sensitivity"]), _interval(of["specificity"]))
        for site, found in summary["class_metrics"].items()
        for name, of in zip(names, found["personal"], strict=True)
    ]
    headings = ("hospital", "class", "images", "patients or lesions", "sensitivity, %", "specificity, %")
    note = (
        "Personal model. In brackets the 95 % bootstrap interval within the hospital, over patients or lesions where "
        "they are known and over images elsewhere; none if there are too few. Confusion counts are in `summary.json`."
    )
    return [_table(headings, rows), note]


def _interval(found: Mapping[str, float | None]) -> str:
    if found["low"] is None or found["high"] is None:
        return percent(found["value"])
    return f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"


def _calibration(summary: Mapping[str, Any]) -> str:
    if not summary["calibration"]:
        return "Not recorded."
    rows = []
    for site, found in summary["calibration"].items():
        before, after = (found["test"].get(moment) or {} for moment in ("before", "after"))
        reason = found["reason"] or "fitted on validation"
        rows.append(
            (site, f"{found['temperature']:.2f}", percent(before.get("ece")), percent(after.get("ece")), reason)
        )
    return _table(("hospital", "temperature", "ECE before, %", "ECE after, %", "how"), rows)


def _table(headings: Sequence[str], rows: Any) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
