"""The calibration of the model of a site: fitted on the predictions that the site has kept, and measured on test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedst.client.calibration_file import Calibration
from pfedst.client.predictions import Predictions
from pfedst.data.sites import Split
from pfedst.evaluation.calibration import Fitted, calibrated, fit_temperature
from pfedst.evaluation.counts import prediction_counts
from pfedst.evaluation.selective import COVERAGE, risk_coverage, selective, threshold_for
from pfedst.evaluation.stated import BALANCED, SITE
from pfedst.evaluation.stated_metrics import stated_metrics
from pfedst.methods.priors import TRAINING, uniform

MODEL = "personal"
"""The model that is calibrated: that of the site. Of a method that does not personalise it is the one model."""
PROBABILITY_METRICS = ("ece", "nll", "brier")
SPLITS: tuple[Split, Split] = ("validation", "test")
"""The split that is fitted on, and the split that is measured on."""


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and what it does on the predictions that it was not fitted on.

    Attributes:
        calibration: what is kept at the site.
        reported: numbers without an image, a threshold or a class frequency: what a run reports.
    """

    calibration: Calibration
    reported: dict[str, Any]


def calibrate(folder: Path, round_number: int, finetuned: bool, coverage: float = COVERAGE) -> Calibrated:
    """Fit a temperature and a threshold on the kept predictions on validation; measure them on those on test.

    Args:
        folder: of the site, `sites/NAME`.
        round_number: round of the last evaluation.
        finetuned: whether that was the evaluation after the fine-tuning that ends a run.
        coverage: share of the images that shall be predicted, in (0, 1).

    Raises:
        StateError: predictions are missing, damaged, or of another round.
    """
    validation, test = (_Probabilities(Predictions.load(folder, split, round_number)) for split in SPLITS)
    fitted, kept = validation.fit(), validation.predictions
    effective, own = (None if prior is None else prior.tolist() for prior in (validation.effective, kept.site_prior))
    prior = TRAINING if effective is None else SITE
    calibration = Calibration(
        site=kept.site, round=round_number, finetuned=finetuned, **vars(fitted), coverage=coverage,
        thresholds={} if fitted.reason else validation.thresholds(fitted.temperature, coverage),
        prior=prior, effective=effective, site_prior=own, class_names=list(kept.class_names),
    )  # fmt: skip
    of_test = test.report(fitted, calibration.threshold)
    reported = {**vars(fitted), "prior": prior, "coverage": coverage, "test": of_test}
    return Calibrated(calibration, reported)


class _Probabilities:
    """The model of a site on one split: probabilities at the prior of the site, or at that of its training.

    Args:
        predictions: as they are kept.
    """

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        self.logits, self.labels = predictions.logits(MODEL), predictions.tensors["label"]
        self.effective = predictions.effective(MODEL)

    def at(self, temperature: float) -> Tensor:
        """Return log-probabilities (N, K)."""
        return self._at(temperature, None if self.effective is None else self.predictions.site_prior)

    def _at(self, temperature: float, target: Tensor | None) -> Tensor:
        return calibrated(self.logits, temperature, self.effective, target)

    def thresholds(self, temperature: float, coverage: float) -> dict[str, float]:
        """Return the threshold of a coverage at each prior that predictions can be for."""
        targets: dict[str, Tensor | None] = {TRAINING: None}
        if self.effective is not None:
            targets |= {BALANCED: uniform(len(self.effective)), SITE: self.predictions.site_prior}
        at_each = {prior: self._at(temperature, target).exp() for prior, target in targets.items()}
        return {prior: threshold_for(found.max(1).values, coverage) for prior, found in at_each.items()}

    def fit(self) -> Fitted:
        """Fit the temperature."""
        return fit_temperature(self.logits, self.labels, self.effective, self.predictions.site_prior)

    def report(self, fitted: Fitted, threshold: float | None) -> dict[str, Any]:
        """Return number of images, metrics and reliability before and after, and what the threshold gives."""
        images = len(self.labels)
        if not images:
            return {"images": 0}
        moments = {"before": self.at(1.0), "after": self.at(fitted.temperature)}
        found = {moment: _measured(logarithms, self.labels) for moment, logarithms in moments.items()}
        confidence, predicted = moments["after"].exp().max(1)
        right = predicted == self.labels
        abstaining = None if threshold is None else vars(selective(confidence, right, threshold))
        return {"images": images, **found, "selective": abstaining, "risk_coverage": risk_coverage(confidence, right)}


def _measured(logarithms: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return metrics and the reliability of log-probabilities (N, K)."""
    metrics = stated_metrics(logarithms, labels, SITE)
    reliability = prediction_counts(logarithms.exp(), labels)["reliability"]
    return {**{metric: metrics[metric] for metric in PROBABILITY_METRICS}, "reliability": reliability}
