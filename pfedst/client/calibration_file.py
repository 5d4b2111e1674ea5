"""`sites/NAME/calibration.json`: temperature and threshold of the model of a site, kept at the site.

They belong to the personal model after one evaluation. A generic model has neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation.calibration import REASONS
from pfedst.evaluation.stated import BALANCED, SITE
from pfedst.messages.records import is_count, is_number
from pfedst.methods.priors import TOLERANCE, TRAINING
from pfedst.state import write_json, writing

FILE = "calibration.json"
FORMAT = 1
PRIORS = ("effective", "site_prior")
CHOICES = (TRAINING, BALANCED, SITE)


@dataclass(frozen=True)
class Calibration:
    """The content of `calibration.json`.

    Attributes:
        site: name of the site.
        round: round of the evaluation whose predictions it was fitted on.
        finetuned: whether that was the evaluation after the fine-tuning that ends a run.
        temperature: T, > 0; 1 if there is a reason.
        images, errors: number of validation images, and of wrong predictions among them.
        reason: why there is neither temperature nor threshold; None if there are.
        coverage: share of the validation images whose confidence reaches the threshold, in (0, 1).
        thresholds: by prior (`training`, and where learned frequencies are known `balanced` and `site`), the lowest
            confidence with which the model predicts; empty if there is a reason. They hold for this temperature.
        prior: `site`: T and threshold are at the class frequencies of the site; `training`: the frequencies that the
            model has learned are not known, and T divides the logits.
        effective: class frequencies (K,) that the model has learned; None if they are not known.
        site_prior: class frequencies (K,) of the site; None if the predictions are of an older version.
        class_names: names of the K classes.
    """

    site: str
    round: int
    finetuned: bool
    temperature: float
    images: int
    errors: int
    reason: str | None
    coverage: float
    thresholds: dict[str, float]
    prior: str
    effective: list[float] | None
    site_prior: list[float] | None
    class_names: list[str]

    @property
    def threshold(self) -> float | None:
        """The threshold at `prior`; None if there is a reason."""
        return self.thresholds.get(self.prior)

    def save(self, folder: Path) -> None:
        """Write the file into the folder of the site.

        Raises:
            StateError: the disk refuses.
        """
        with writing(folder / FILE):
            write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def load_calibration(folder: Path, round_number: int, finetuned: bool | None = None) -> Calibration | None:
    """Read the calibration of a site.

    Args:
        folder: of the site, `sites/NAME`.
        round_number: round of the model that is used.
        finetuned: whether that model is the one after the fine-tuning that ends a run; None: it is not known.

    Returns:
        The calibration; None if there is none, or if it is that of another round.

    Raises:
        StateError: the file is damaged, or of another version.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{file} is damaged ({error}); write it again with pfedst calibrate") from error
    if isinstance(content, dict) and is_count(found := content.get("format")) and found != FORMAT:
        raise StateError(f"{file} is of another version of pfedst (format {found}, this version reads {FORMAT})")
    if not _is_calibration(content):
        raise StateError(f"{file} is damaged; write it again with pfedst calibrate")
    made = Calibration(**{key: value for key, value in content.items() if key != "format"})
    return made if made.round == round_number and finetuned in (None, made.finetuned) else None


def _is_calibration(content: Any) -> bool:
    """Return True for a file of this format whose numbers are in their ranges."""
    keys = {"format", *Calibration.__dataclass_fields__}
    if not isinstance(content, dict) or set(content) != keys or content["format"] != FORMAT:
        return False
    names, thresholds, effective = content["class_names"], content["thresholds"], content["effective"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return False
    return (
        isinstance(content["site"], str)
        and type(content["finetuned"]) is bool
        and all(is_count(content[key]) for key in ("round", "images", "errors"))
        and content["errors"] <= content["images"]
        and _is_between(content["temperature"], 0, 1e6)
        and _is_between(content["coverage"], 0, 1)
        and isinstance(thresholds, dict)
        and all(is_number(value) and 0 <= value <= 1 for value in thresholds.values())
        and content["reason"] in (None, *REASONS)
        and set(thresholds) == (set() if content["reason"] else {TRAINING} if effective is None else set(CHOICES))
        and (content["reason"] is None or content["temperature"] == 1)
        and all(content[key] is None or _are_frequencies(content[key], len(names)) for key in PRIORS)
        and content["prior"] == (TRAINING if effective is None else SITE)
        and (effective is None or content["site_prior"] is not None)
    )


def _is_between(value: Any, low: float, high: float) -> bool:
    return is_number(value) and low < value < high


def _are_frequencies(found: Any, classes: int) -> bool:
    if not isinstance(found, list) or len(found) != classes:
        return False
    return all(is_number(value) and value > 0 for value in found) and abs(sum(found) - 1) <= TOLERANCE
