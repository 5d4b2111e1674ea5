"""The card of a run: its facts, what only people can say, and the checklist of the field, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfedst.reporting.card_tables import MODELS, calibration, classes, estimates, sites, subgroups, table
from pfedst.reporting.claim_items import STATED, Item, claim_items
from pfedst.reporting.data_card import FILE, KEYS, read_data_card
from pfedst.reporting.earlier_formats import present_summary
from pfedst.reporting.environment import environment_lines
from pfedst.reporting.report_table import percent
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.run_warnings import warning_text
from pfedst.state import json_bytes, write_atomically, writing
from pfedst.version import __version__

FORMAT = 1
"""Of `card.json`."""
NO_CLINICAL_USE = "Research software, not a medical device. Do not use this model for diagnosis or treatment."


@dataclass(frozen=True)
class RunCard:
    """The card of a run.

    Attributes:
        facts: by section of the card: a table of facts by name.
        data_card: what people said of the images.
        items: of the checklist.
        results: metrics of each site with their intervals, and subgroups.
        markdown: the card as a page.
    """

    name: str
    facts: Mapping[str, Mapping[str, Any]]
    data_card: Mapping[str, str]
    items: Sequence[Item]
    results: Mapping[str, Any]
    markdown: str

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON can hold it."""
        return {
            "format": FORMAT,
            "pfedst_version": __version__,
            "notice": NO_CLINICAL_USE,
            "run": self.name,
            "facts": {section: dict(of) for section, of in self.facts.items()},
            "results": dict(self.results),
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
        ConfigurationError: there is no run, or the data card cannot be read.
    """
    folder = Path(run)
    summary = present_summary(RunFolder(folder).finished(), folder / "summary.json")
    file = folder / FILE if data_card is None else Path(data_card)
    said = read_data_card(file) if data_card is not None or file.is_file() else {}
    items, facts = claim_items(summary, said), _facts(summary)
    name = folder.resolve().name
    results = {"sites": estimates(summary), "subgroups": summary["subgroups"]}
    return RunCard(name, facts, said, items, results, _markdown(name, summary, facts, said, items))


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
            **(
                {"images that a hospital counts as at most": protocol["most_samples"]}
                if "most_samples" in protocol
                else {}
            ),
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
    missing = f"; not done at {', '.join(audit['not_audited'])}" if "not_audited" in audit else ""
    return f"{counts}{codes}; {'every image was opened' if audit['opened'] else 'tables alone'}{missing}"


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
    if missing := summary["personal"].get("not_evaluated"):
        found["hospitals without numbers, as they could not be evaluated"] = ", ".join(missing)
    if warnings := summary["warnings"]:
        found["warnings of the run"] = "; ".join(warning_text(warning) for warning in warnings)
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
        parts += [f"## {section}", table(("fact", "value"), of.items())]
        if section == "Results":
            parts += [
                *sites(summary),
                "## Results by subgroup",
                *subgroups(summary),
                "## Results by class",
                *classes(summary),
                "## Calibration",
                calibration(summary),
            ]
    environment = summary.get("environment")
    lines = ["not recorded"] if environment is None else environment_lines(environment)
    parts += ["## Software and hardware", "\n".join(f"- {line}" for line in lines)]
    parts += ["`config.yaml` in the folder of the run trains it again: `pfedst fit --config config.yaml`."]
    parts += [
        "## Data card",
        table(("what", "stated"), ((words, said.get(key, STATED)) for key, words in KEYS.items())),
    ]
    parts += [f"Entries come from `{FILE}` in the folder of the run, or from `pfedst card --data_card FILE`."]
    parts += ["## CLAIM 2024", "Items of the checklist (doi:10.1148/ryai.240300), topics in our words."]
    rows = ((item.number, item.topic, _status(item), item.where) for item in items)
    parts += [table(("item", "topic", "this card", "section"), rows)]
    return "\n\n".join(parts) + "\n"


def _status(item: Item) -> str:
    return STATED if item.status == "to be stated" else item.status
