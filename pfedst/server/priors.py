"""The class priors of a federation: what a merged model has learned, and how frequent classes are over all sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedst.errors import StateError
from pfedst.messages.payload import State
from pfedst.messages.requests import FEDERATION, MERGED
from pfedst.methods.criteria import Criterion
from pfedst.methods.priors import TOLERANCE, learned_prior, mixture, uniform

ClassCounts = Mapping[str, list[int]]
"""Number of training images of a site by class: `natural`, and `sampled` as the sampler shows them in an epoch."""


@dataclass(frozen=True)
class FederationPriors:
    """Class priors of a federation; None where one is not known.

    Attributes:
        merged: the effective prior (K,) of a merged model: the mean of those of the clients, by the weights of the
            merge. Exact for cross-entropy if images of a class look alike at all sites, and approximate otherwise.
        federation: the mean of the natural class frequencies of the sites, by the same weights.
    """

    merged: Tensor | None = None
    federation: Tensor | None = None

    @classmethod
    def of(
        cls,
        loss: Criterion,
        uses_criterion: bool,
        classes: int,
        weights: Mapping[str, float],
        counts: Mapping[str, ClassCounts],
        balanced: Collection[str] = (),
    ) -> FederationPriors:
        """Return the priors of a federation that trains with a loss.

        Args:
            loss: the loss.
            uses_criterion: False for a method whose loss is another one: then nothing is known of the merged model.
            classes: K.
            weights: of the sites that train, by name.
            counts: by site, as sites sent them; empty if they do not.
            balanced: the sites whose sampler shows all classes equally often, which say so without their counts.
        """
        merged = federation = None
        if not sum(weights.values()):  # no site with images to train on: these sites say nothing of the run
            return cls()
        sampled = {site: torch.ones(classes) for site in balanced}
        sampled |= {site: torch.tensor(of_site["sampled"]) for site, of_site in counts.items()}
        if loss.is_balanced:
            sampled = {site: torch.ones(classes) for site in weights}
        if sampled.keys() >= weights.keys():
            learned = [learned_prior(loss, uses_criterion, sampled[site]) for site in weights]
            if known := [prior for prior in learned if prior is not None]:  # all of them, or none
                merged = mixture(known, list(weights.values()))
        if counts.keys() >= weights.keys():
            natural = [loss.prior(torch.tensor(counts[site]["natural"]).double()) for site in weights]
            federation = mixture(natural, list(weights.values()))
        return cls(merged, federation)

    def parts(self, classes: int, is_trained: bool) -> State:
        """Return what a request to evaluate carries.

        Args:
            classes: K.
            is_trained: False before the first merge: such a model has learned no frequencies, and its prior is uniform.
        """
        found = {MERGED: self.merged if is_trained else uniform(classes), FEDERATION: self.federation}
        return {key: prior for key, prior in found.items() if prior is not None}

    def about(self) -> dict[str, Any]:
        """Return what is saved with a round: nothing if nothing is known."""
        found = {MERGED: self.merged, FEDERATION: self.federation}
        known = {key: prior.tolist() for key, prior in found.items() if prior is not None}
        return {"priors": known} if known else {}

    @classmethod
    def from_about(cls, about: Mapping[str, Any], classes: int) -> FederationPriors:
        """The inverse of `about`.

        Raises:
            StateError: the saved values are no priors of so many classes.
        """
        saved = about.get("priors", {})
        if not isinstance(saved, dict):
            raise StateError("the saved round holds no class priors where they belong")
        return cls(_prior(saved, MERGED, classes), _prior(saved, FEDERATION, classes))


def _prior(saved: Mapping[str, Any], key: str, classes: int) -> Tensor | None:
    values = saved.get(key)
    if values is None:
        return None
    whole = isinstance(values, list) and len(values) == classes and all(type(value) is float for value in values)
    if not whole or not all(0 < value <= 1 for value in values) or abs(sum(values) - 1) > TOLERANCE:
        raise StateError(f'the saved round holds no class prior under "{key}"')
    return torch.tensor(values, dtype=torch.float64)
