"""Temperature scaling of a site's model, separate from a change of its class prior.

A model has learned class frequencies pi_effective. Its probabilities at a target prior, with a temperature T, are

    p proportional to exp(f / T - log pi_effective + log pi_target).

T is fitted at the prior of the site, which its validation images have. A change of prior is not divided by T: the
frequencies of a hospital are no matter of confidence. At the prior that a model has learned T changes no prediction.
Shapes: N images, K classes, G temperatures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST_IMAGES = 15
"""Number of validation images from which on a temperature is fitted."""
DEVIATION = 0.5
"""Standard deviation of the normal prior on log T, whose mean is 0. Without it an accurate site, with no wrong
prediction among a few images, gets the smallest temperature of the grid."""
FLOOR = True
"""Whether T is at least 1, so that fitting never makes a model more confident; `benchmarks/calibration.py` measures
both."""
STEPS = 125
"""Number of temperatures on each side of 1."""
STEP = 0.02
"""Distance of two temperatures of the grid in log T."""
TOO_FEW = f"fewer than {FEWEST_IMAGES} validation images"
NOT_FINITE = "the logits are not finite"
REASONS = (TOO_FEW, NOT_FINITE)
"""Why there is no temperature."""


@dataclass(frozen=True)
class Fitted:
    """A fitted temperature.

    Attributes:
        temperature: T, > 0; 1 if there is a reason.
        images: number of images that it was fitted on.
        errors: number of wrong predictions among them, at the prior of the site.
        reason: one of `REASONS`, if the temperature was not fitted; else None.
    """

    temperature: float
    images: int
    errors: int
    reason: str | None = None


def calibrated(
    logits: Tensor, temperature: float, effective: Tensor | None = None, target: Tensor | None = None
) -> Tensor:
    """Return log-probabilities (N, K) of float64 with a temperature, at a class prior.

    Args:
        logits: (N, K), as the model predicts them.
        temperature: T, > 0.
        effective: class frequencies (K,) that the model has learned; None if they are not known.
        target: class frequencies (K,) of the probabilities; None: those that the model has learned.

    Raises:
        ValueError: a target, and the learned frequencies are not known.
    """
    scaled = logits.double() / temperature
    if target is None:
        return scaled.log_softmax(1)
    if effective is None:
        raise ValueError("without the learned class frequencies there is no change of prior")
    return (scaled - effective.double().log() + target.double().log()).log_softmax(1)


def temperatures(floor: bool = FLOOR) -> Tensor:
    """Return the temperatures (G,) of the grid; 1 is one of them. With a floor none is below 1."""
    return (torch.arange(0 if floor else -STEPS, STEPS + 1, dtype=torch.float64) * STEP).exp()


def image_losses(
    logits: Tensor, targets: Tensor, effective: Tensor | None, site: Tensor | None, floor: bool = FLOOR
) -> Tensor:
    """Return the negative log-likelihood (G, N) in nats of each image at each temperature, at the prior of the site.

    Args:
        logits: (N, K).
        targets: (N,) class indices.
        effective: see `calibrated`.
        site: class frequencies (K,) of the site; not used if `effective` is None.
        floor: leave out temperatures below 1.
    """
    target = None if effective is None else site
    losses = [
        -calibrated(logits, temperature, effective, target).gather(1, targets[:, None])[:, 0]
        for temperature in temperatures(floor).tolist()
    ]
    return torch.stack(losses)


def best_temperature(losses: Tensor, deviation: float = DEVIATION, floor: bool = FLOOR) -> float:
    """Return the temperature with the smallest loss.

    Args:
        losses: (G,) sums over images, at the temperatures of the grid with this floor.
        deviation: standard deviation of the normal prior on log T, > 0; infinite: no prior.
        floor: as `losses` were computed.
    """
    grid = temperatures(floor)
    return float(grid[int((losses + grid.log().square() / (2 * deviation**2)).argmin())])


def fit_temperature(logits: Tensor, targets: Tensor, effective: Tensor | None, site: Tensor | None) -> Fitted:
    """Fit the temperature of a model on validation images, at the prior of the site.

    The grid has no step size and cannot diverge; the result depends on the images alone, and not on their order.

    Args:
        logits: (N, K).
        targets: (N,) class indices.
        effective: see `calibrated`.
        site: see `image_losses`.
    """
    images = len(targets)
    if not images:
        return Fitted(1.0, 0, 0, TOO_FEW)
    predicted = calibrated(logits, 1.0, effective, None if effective is None else site).argmax(1)
    errors = int((predicted != targets).sum())
    if not logits.isfinite().all():
        return Fitted(1.0, images, errors, NOT_FINITE)
    if images < FEWEST_IMAGES:
        return Fitted(1.0, images, errors, TOO_FEW)
    losses = [math.fsum(row) for row in image_losses(logits, targets, effective, site).tolist()]
    return Fitted(best_temperature(torch.tensor(losses, dtype=torch.float64)), images, errors)
