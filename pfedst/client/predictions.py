"""Predictions of a site on its own images, kept at the site and never sent.

Priors, calibration, confidence intervals and groups can be computed from them without running the encoder again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pfedst.data import FederatedDataModule, Split
from pfedst.messages.payload import State
from pfedst.state import clear_unfinished, write_atomically, writing

FORMAT = 1
ABOUT = "pfedst"
"""The entry of the metadata that holds format, site and classes, as JSON."""


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
    | `train_counts.sampled` | (K,) int64 | the same as a sampler shows them in an epoch |

    The metadata names the format, the site and the classes.
    """

    site: str
    class_names: tuple[str, ...]
    tensors: State

    @classmethod
    def of(
        cls, data: FederatedDataModule, site: str, split: Split, logits: Mapping[str, Tensor], targets: Tensor
    ) -> Predictions:
        """Gather what is known of the images beside the logits."""
        ids, groups = data.identities(site, split)
        counts = torch.tensor(data.class_counts(site, "train"))
        tensors = {"id": ids, "group": groups, "label": targets}
        tensors |= {f"logits.{model}": values.float().cpu() for model, values in logits.items()}
        tensors |= {"train_counts.natural": counts, "train_counts.sampled": counts.clone()}
        return cls(site, data.class_names, tensors)

    def save(self, folder: Path, split: Split, round_number: int) -> None:
        """Write the file of a split into a site's folder.

        Raises:
            StateError: the disk refuses.
        """
        file = folder / "predictions" / f"{split}.safetensors"
        # in one entry: the order of several is random, and the bytes of the file with it
        about = {ABOUT: json.dumps({"format": FORMAT, "site": self.site, "classes": list(self.class_names)})}
        tensors = self.tensors | {"round": torch.tensor(round_number)}
        with writing(file):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # of patients: for this user alone
            file.parent.mkdir(exist_ok=True)
            clear_unfinished(file.parent)
            write_atomically(file, save({key: tensor.contiguous() for key, tensor in tensors.items()}, about))
