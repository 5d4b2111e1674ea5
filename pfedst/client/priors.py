"""The class priors of the models of one site: which frequencies each has learned, and at which it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedst.errors import ConfigurationError
from pfedst.evaluation.stated import BALANCED, FEDERATION, NO_PRIOR, NO_TRAINING_IMAGES, REASON, SITE, Stated
from pfedst.evaluation.stated_metrics import stated_metrics
from pfedst.messages.payload import State
from pfedst.methods.criteria import Criterion
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.priors import TargetPrior, learned_prior, prior_shift, uniform


@dataclass(frozen=True)
class SitePriors:
    """Priors of the models of a site, by model; a model without an effective prior has a reason instead.

    Attributes:
        effective: by model, the frequencies (K,) that it has learned, or one of `REASONS`.
        targets: by the name of a stated prior, the frequencies (K,) at this site, or one of `REASONS`.
    """

    effective: Mapping[str, Tensor | str]
    targets: Mapping[str, Tensor | str]

    def shifts(self, prior: TargetPrior) -> State:
        """Return what is added to the logits of each model, so that they are at a prior; nothing for `training`.

        Raises:
            ConfigurationError: the frequencies that a model has learned, or those of the site, are not known.
        """
        return {model: self._shift(model, self._target(prior)) for model in self.effective if prior}

    def _target(self, prior: TargetPrior) -> Tensor:
        of_site = self.targets[SITE]
        if not isinstance(of_site, str):
            return prior.at(of_site)
        if prior.option == SITE:
            raise ConfigurationError(
                f"--model.prior site: {of_site}, so its class frequencies are not known; give balanced, or a file of "
                f"class frequencies"
            )
        balanced = self.targets[BALANCED]
        assert not isinstance(balanced, str)  # it is always known
        return prior.at(balanced)

    def _shift(self, model: str, target: Tensor) -> Tensor:
        effective = self.effective[model]
        if isinstance(effective, str):
            raise ConfigurationError(f"--model.prior: the {model} model cannot be corrected: {effective}")
        return prior_shift(effective, target)

    def stated(self, model: str, logits: Tensor, targets: Tensor) -> Stated:
        """Return the metrics of raw logits (N, K) of a model at each stated prior, or why there are none."""
        found: Stated = {}
        for prior, frequencies in self.targets.items():
            effective = self.effective[model]
            if isinstance(effective, str) or isinstance(frequencies, str):
                found[prior] = {REASON: effective if isinstance(effective, str) else frequencies}
            else:
                found[prior] = stated_metrics(logits.double() + prior_shift(effective, frequencies), targets, prior)
        return found


def check_corrigible(loss: Criterion, method: FederatedMethod, classes: int) -> None:
    """Check that what a method trains with a loss has an effective prior.

    Raises:
        ConfigurationError: it has none, so that predictions cannot be corrected for another one.
    """
    if not method.uses_criterion:
        raise ConfigurationError(
            f"--model.prior: method {type(method).__name__} with these options has a loss of its own, whose logits "
            f"belong to no class prior; leave --model.prior out"
        )
    loss.effective_prior(torch.ones(classes))


def own_prior(loss: Criterion, uses_criterion: bool, counts: Tensor) -> Tensor | str:
    """Return `learned_prior`, or the reason why there is none."""
    if not counts.any() and not loss.is_balanced:  # it was trained on images that are not here
        return NO_TRAINING_IMAGES
    found = learned_prior(loss, uses_criterion, counts)
    return NO_PRIOR if found is None else found


def targets_at(loss: Criterion, natural: Tensor, federation: Tensor | None) -> dict[str, Tensor | str]:
    """Return the stated priors at a site, or the reason why one is not known.

    Args:
        loss: gives the pseudo-count.
        natural: number of images of its training split by class (K,).
        federation: the mean of the priors over sites; None if it is not known, or if the model is not the same at all.
    """
    found: dict[str, Tensor | str] = {BALANCED: uniform(len(natural)), SITE: NO_TRAINING_IMAGES}
    if natural.any():
        found[SITE] = loss.prior(natural.double())
    return found if federation is None else found | {FEDERATION: federation}
