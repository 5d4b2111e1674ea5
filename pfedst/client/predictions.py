"""Predictions of a site on its own images, kept at the site and never sent.

Priors, calibration, confidence intervals and groups can be computed from them without running the encoder again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pfedst.client.priors import SitePriors
from pfedst.data.sites import Split
from pfedst.errors import StateError
from pfedst.evaluation.class_metrics import class_metrics
from pfedst.evaluation.site_metrics import site_metrics
from pfedst.evaluation.stated import SITE
from pfedst.evaluation.subgroups import subgroup_metrics
from pfedst.messages.payload import State
from pfedst.methods.priors import TOLERANCE
from pfedst.state import clear_unfinished, write_atomically, writing

if TYPE_CHECKING:
    from pfedst.data import FederatedDataModule

FORMAT = 1
ABOUT = "pfedst"
"""The entry of the metadata that holds format, site and classes, as JSON."""
LOGITS = "logits."
"""The prefix of the tensors that hold the logits of a model."""
SHIFT = "prior_shift."
"""The prefix of the tensors that are added to the logits of a model, so that they are at the prior of the run."""
EFFECTIVE = "effective."
"""The prefix of the class frequencies that a model has learned."""
SUBGROUP = "subgroup."
"""The prefix of the indices of subgroups, by column."""
SITE_PRIOR = "site_prior"
"""The class frequencies of the training split of the site."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one or two models on N images of one split, in the order of the data set.

    Saved as `sites/NAME/predictions/SPLIT.safetensors` with these tensors:

    | tensor | shape | holds |
    |---|---|---|
    | `id` | (N, 16) uint8 | hash of each image: of its content, or of its name if images are not verified |
    | `group` | (N, 16) uint8 | hash of the patient or lesion; zeros where it is not known |
    | `label` | (N,) int64 | class index |
    | `logits.personal`, `logits.generic` | (N, K) float32 | logits; one model if there is no other |
    | `round` | () int64 | the round of the evaluation |
    | `train_counts.natural` | (K,) int64 | training images of the site, by class |
    | `train_counts.sampled` | (K,) int64 | the same as the sampler shows them in an epoch |
    | `prior_shift.personal`, `prior_shift.generic` | (K,) float64 | with `--model.prior`: what is added to the logits |
    | `effective.personal`, `effective.generic` | (K,) float64 | class frequencies that a model has learned, if known |
    | `site_prior` | (K,) float64 | class frequencies of the training split, with the pseudo-count of the loss |
    | `subgroup.COLUMN` | (N,) int64 | with `--data.subgroups`: index of the subgroup of each image |

    Files of older versions lack the last rows. The metadata names the format, the site, the classes and the subgroups
    of each column.
    """

    site: str
    class_names: tuple[str, ...]
    tensors: State
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: FederatedDataModule,
        site: str,
        split: Split,
        logits: Mapping[str, Tensor],
        targets: Tensor,
        shifts: Mapping[str, Tensor] | None = None,
    ) -> Predictions:
        """Gather what is known of the images beside the logits, and of the models beside them."""
        ids, groups = data.identities(site, split)
        subgroups = data.subgroups_of(site, split)
        natural, sampled = data.class_counts(site, "train"), data.sampled_counts([site])
        tensors = {"id": ids, "group": groups, "label": targets}
        tensors |= {f"{LOGITS}{model}": values.float().cpu() for model, values in logits.items()}
        tensors |= {"train_counts.natural": torch.tensor(natural), "train_counts.sampled": torch.tensor(sampled)}
        tensors |= {f"{SHIFT}{model}": shift for model, shift in (shifts or {}).items()}
        tensors |= {f"{SUBGROUP}{column}": codes for column, (_, codes) in subgroups.items()}
        return cls(site, data.class_names, tensors, {column: names for column, (names, _) in subgroups.items()})

    @classmethod
    def load(cls, folder: Path, split: Split, round_number: int | None) -> Predictions:
        """Read the file of a split in a site's folder; `round_number` None: of whatever round it is.

        Raises:
            StateError: there is no such file, it is damaged, or its predictions are of another round.
        """
        file = folder / "predictions" / f"{split}.safetensors"
        try:
            with safe_open(file, "pt") as opened:
                about = json.loads(opened.metadata()[ABOUT])
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # it is no dict
            found = int(tensors.pop("round"))
            subgroups = {column: tuple(names) for column, names in about.get("subgroups", {}).items()}
            loaded = cls(about["site"], tuple(about["classes"]), tensors, subgroups)
            loaded._check()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"{file} is missing or damaged ({error})") from error
        if round_number is not None and found != round_number:
            raise StateError(f"{file} holds the predictions after round {found}, not after round {round_number}")
        return loaded

    def _check(self) -> None:
        """Check the tensors that numbers are computed from.

        Raises:
            KeyError, ValueError: one is missing, or of another shape.
        """
        labels, classes = self.tensors["label"], len(self.class_names)
        images = len(labels)
        if labels.dim() != 1 or (images and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise ValueError("label holds no class indices")
        for key, tensor in self.tensors.items():
            if key.startswith(LOGITS) and (len(tensor) != images or (images and tensor.shape != (images, classes))):
                raise ValueError(f"{key} holds no logits of {images} images")
            if key.startswith(SUBGROUP):
                _check_codes(key, tensor, images, len(self.subgroups[key.removeprefix(SUBGROUP)]))
            if key == SITE_PRIOR or key.startswith(EFFECTIVE):
                _check_prior(key, tensor, classes)

    def with_priors(self, priors: SitePriors) -> Predictions:
        """Add the class frequencies that the models have learned, where they are known, and those of the site."""
        effective = {f"{EFFECTIVE}{model}": prior for model, prior in priors.effective.items()}
        found = {SITE_PRIOR: priors.targets[SITE], **effective}
        known = {key: prior.double().clone() for key, prior in found.items() if not isinstance(prior, str)}
        return replace(self, tensors=self.tensors | known)

    def effective(self, model: str) -> Tensor | None:
        """Return the class frequencies (K,) that a model has learned; None if they are not known."""
        return self.tensors.get(f"{EFFECTIVE}{model}") if SITE_PRIOR in self.tensors else None

    @property
    def site_prior(self) -> Tensor | None:
        """The class frequencies (K,) of the training split of the site; None in a file of an older version."""
        return self.tensors.get(SITE_PRIOR)

    def logits(self, model: str, shifted: bool = False) -> Tensor:
        """Return the logits (N, K) of a model; `shifted`: at the prior of the run."""
        values, shift = self.tensors[f"{LOGITS}{model}"], self.tensors.get(f"{SHIFT}{model}")
        return values if shift is None or not shifted or not len(values) else values.double() + shift

    def class_metrics(self, seed: int) -> dict[str, Any]:
        """Return sensitivity, specificity and average precision of each class for each model, with intervals.

        The unit of the bootstrap is the patient or lesion of an image, and the image itself where it is not known;
        `without_unit` is the number of such images. See `pfedst.evaluation.class_metrics.class_metrics`.

        Args:
            seed: of the bootstrap.
        """
        found = class_metrics(self._probabilities(), self.tensors["label"].numpy(), self._units(), seed)
        return found | {"without_unit": int(self._without_unit().sum())}

    def site_metrics(self, seed: int) -> dict[str, Any]:
        """Return accuracy, balanced accuracy and AUROC of each model, with intervals; see `site_metrics`."""
        return site_metrics(self._probabilities(), self.tensors["label"].numpy(), self._units(), seed)

    def subgroup_metrics(self, minimum: int, seed: int) -> dict[str, Any]:
        """Return the same of each subgroup that is large enough; see `pfedst.evaluation.subgroups`."""
        columns = {
            column: (names, self.tensors[f"{SUBGROUP}{column}"].numpy()) for column, names in self.subgroups.items()
        }
        targets = self.tensors["label"].numpy()
        return subgroup_metrics(self._probabilities(), targets, self._units(), columns, minimum, seed)

    def _probabilities(self) -> dict[str, NDArray[np.float64]]:
        models = [key.removeprefix(LOGITS) for key in self.tensors if key.startswith(LOGITS)]
        return {model: self.logits(model, shifted=True).softmax(1).double().numpy() for model in models}

    def _without_unit(self) -> Tensor:
        """Return for each image (N,) whether its patient or lesion is not known."""
        return (self.tensors["group"] == 0).all(1)

    def _units(self) -> NDArray[np.int64]:
        """Return the number (N,) of each image's patient or lesion, in an order that is not that of the images."""
        unknown = self._without_unit()
        hashes = torch.where(unknown[:, None], self.tensors["id"], self.tensors["group"])
        kinds = torch.cat([unknown[:, None].to(torch.uint8), hashes], 1).numpy()
        return np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def save(self, folder: Path, split: Split, round_number: int) -> None:
        """Write the file of a split into a site's folder.

        Raises:
            StateError: the disk refuses.
        """
        file = folder / "predictions" / f"{split}.safetensors"
        # in one entry: the order of several is random, and the bytes of the file with it
        of_file = {"format": FORMAT, "site": self.site, "classes": list(self.class_names)}
        of_file |= {"subgroups": {c: list(names) for c, names in self.subgroups.items()}} if self.subgroups else {}
        about = {ABOUT: json.dumps(of_file)}
        tensors = self.tensors | {"round": torch.tensor(round_number)}
        with writing(file):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # of patients: for this user alone
            file.parent.mkdir(exist_ok=True)
            clear_unfinished(file.parent)
            write_atomically(file, save({key: tensor.contiguous() for key, tensor in tensors.items()}, about))


def _check_codes(key: str, codes: Tensor, images: int, names: int) -> None:
    """Check the indices of subgroups.

    Raises:
        ValueError: they are not those of so many images and names.
    """
    if codes.shape != (images,) or (images and not 0 <= int(codes.min()) <= int(codes.max()) < names):
        raise ValueError(f"{key} holds no subgroups of {images} images")


def _check_prior(key: str, frequencies: Tensor, classes: int) -> None:
    """Check class frequencies.

    Raises:
        ValueError: they are not those of so many classes.
    """
    whole = frequencies.shape == (classes,) and bool((frequencies > 0).all())
    if not whole or abs(float(frequencies.sum()) - 1) > TOLERANCE:
        raise ValueError(f"{key} holds no frequencies of {classes} classes")
