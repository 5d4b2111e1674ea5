"""SiteModel: the frozen encoder, one adapter, and what its predictions mean: classes, prior, temperature, threshold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pfedst.adapters import Adapter, lora_layers, with_lora_merged
from pfedst.data.grey_scale import PixelRange
from pfedst.encoders import Encoder, Taps
from pfedst.errors import ConfigurationError
from pfedst.evaluation.calibration import calibrated
from pfedst.inference.options import Options
from pfedst.inference.predict import predict
from pfedst.inference.rebuild import tensors_of
from pfedst.messages.payload import hash_of
from pfedst.methods.priors import SITE, TargetPrior

ID_DIGITS = 16
"""Digits of the hash that names a model."""


@dataclass(frozen=True)
class Abstention:
    """When a model abstains: its confidence is below a threshold, which was set on the validation images of its site.

    Attributes:
        coverage: share of the validation images on which the model does not abstain.
        thresholds: by prior (`training`, `balanced`, `site`), the smallest confidence of a prediction that counts.
    """

    coverage: float
    thresholds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class SiteModel:
    """A trained model that predicts: that of one site, or the generic model of a run.

    Attributes:
        encoder: the frozen encoder.
        adapter: maps what it needs of the encoder to logits (B, K); in evaluation mode.
        class_names: names of the K classes, in the order of the logits.
        which: `personal`, the model of a site, or `generic`.
        site: name of the site; None for a generic model.
        effective: class frequencies (K,) that the model has learned; None if they are not known.
        site_prior: class frequencies (K,) of the training split of the site; None if they are not known.
        temperature: T, fitted on the validation images of the site; 1 for a generic model.
        abstention: when the model abstains; None if it never does.
        prior: the prior of the run, at which a prediction is if no other is named.
        pixel_range: grey values that become black and white; None if each file decides.
        options: what the model is rebuilt from.
        source: where it comes from: the name (`run`) and the `round` of its run.
    """

    encoder: Encoder
    adapter: Adapter
    class_names: tuple[str, ...]
    which: str
    site: str | None = None
    effective: Tensor | None = field(default=None, repr=False)
    site_prior: Tensor | None = field(default=None, repr=False)
    temperature: float = 1.0
    abstention: Abstention | None = None
    prior: TargetPrior = field(default_factory=TargetPrior)
    pixel_range: PixelRange | None = None
    options: Options = field(default_factory=dict, repr=False)
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """A hash of all numbers of the model, those of its encoder included."""
        parts = f"{hash_of(tensors_of(self.adapter))} {self.encoder.weights_hash} {self.class_names}"
        return hashlib.sha256(parts.encode()).hexdigest()[:ID_DIGITS]

    @property
    def name(self) -> str:
        """The model in words, for messages."""
        return "the generic model" if self.site is None else f"the {self.which} model of site {self.site}"

    def to(self, device: torch.device | str) -> SiteModel:
        """Move encoder and adapter to a device."""
        self.encoder.to(device)
        self.adapter.to(device)
        vars(self).pop("_plain", None)  # on the device of before
        return self

    @cached_property
    def _plain(self) -> Adapter:
        """The adapter with LoRA merged into its weights, once and not for each batch."""
        return with_lora_merged(self.adapter) if lora_layers(self.adapter) else self.adapter

    @torch.inference_mode()
    def logits(self, taps: Taps) -> Tensor:
        """Return the logits (B, K) of what the encoder says of B images, on the CPU."""
        logits: Tensor = self._plain(taps)
        return logits.float().cpu()

    def target(self, prior: str | None) -> TargetPrior:
        """Return the prior that predictions are for: `training`, `balanced`, `site`, a file, or None for the run's.

        Raises:
            ConfigurationError: the model cannot be corrected for that prior.
        """
        target = (self.prior if prior is None else TargetPrior(prior)).of_classes(self.class_names)
        if not target:
            return target
        if self.effective is None:
            raise ConfigurationError(
                f"--prior {target.option}: the class frequencies that {self.name} has learned are not known, so its "
                f"predictions cannot be corrected; leave --prior out, or train with "
                f"--coordinator.share_class_counts true or --model.loss BalancedSoftmax"
            )
        if target.option == SITE and self.site_prior is None:
            raise ConfigurationError(
                f"--prior site: {self.name} has no class frequencies of a site; name a JSON or CSV file of class "
                f"frequencies, or balanced"
            )
        return target

    def probabilities(self, logits: Tensor, target: TargetPrior) -> Tensor:
        """Return the probabilities (B, K), float64, of logits (B, K) at a prior; see `calibrated`."""
        if not target or self.effective is None:
            return calibrated(logits, self.temperature).exp()
        # without a site the target is none of a site: only the number of classes counts
        site = self.effective if self.site_prior is None else self.site_prior
        return calibrated(logits, self.temperature, self.effective, target.at(site)).exp()

    def correction(self, target: TargetPrior) -> tuple[float, Tensor]:
        """Return scale and shift (K,), float64, with probabilities = softmax(scale * logits + shift) at a prior."""
        return 1 / self.temperature, self.probabilities(torch.zeros(1, len(self.class_names)), target)[0].log()

    def threshold(self, target: TargetPrior) -> float | None:
        """Return the smallest confidence that counts at a prior; None if there is no threshold for it."""
        return None if self.abstention is None else self.abstention.thresholds.get(target.option)

    def predict(
        self,
        images: Any,
        prior: str | None = None,
        batch_size: int = 16,
        strict: bool = False,
    ) -> pd.DataFrame:
        """Predict the class of each image.

        Args:
            images: a path, a folder, an image of Pillow, an array (H, W, 3) or (H, W) of uint8, or an iterable of
                these.
            prior: class frequencies that predictions are for: `training`, `balanced`, `site`, or a JSON or CSV file;
                None for the prior of the run.
            batch_size: images that the encoder computes at once, >= 1.
            strict: raise the error of an image that cannot be read; without, its row has the error.

        Returns:
            One row an image; see `pfedst.inference.predict.predict`.

        Raises:
            DataError: nothing is named, or with `strict` an image cannot be read.
            ConfigurationError: predictions cannot be for that prior.
        """
        return predict([self], images, prior, batch_size, strict)
