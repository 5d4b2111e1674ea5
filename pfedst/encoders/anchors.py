"""Class anchors: the K embeddings to which an image's embedding is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.encoders.frozen_clip import FrozenCLIP
from pfedst.errors import ConfigurationError

AnchorKind = Literal["text", "prototypes", "learned"]


class AnchorHead(nn.Module):
    """Logits (B, K): the logit scale times the cosine of an embedding and each class's anchor.

    With `text` and `prototypes` the anchors are a buffer that is in no state dict: frozen, never sent. With
    `learned` they are the parameter `weight` (K, E), at random unit vectors in the beginning.

    Args:
        classes: K.
        embedding: E.
        logit_scale: factor on the cosine.
        kind: where the anchors come from.
    """

    anchors: Tensor

    def __init__(self, classes: int, embedding: int, logit_scale: float, kind: AnchorKind) -> None:
        super().__init__()
        self.classes = classes
        self.logit_scale = logit_scale
        self.weight: nn.Parameter | None = None
        self.is_set = kind == "learned"
        if kind == "learned":
            self.weight = nn.Parameter(F.normalize(torch.randn(classes, embedding), dim=-1))
        else:
            self.register_buffer("anchors", torch.zeros(classes, embedding), persistent=False)

    def set_anchors(self, anchors: Tensor) -> None:
        """Take anchors (K, E) of the classes; rows are normalised, zero rows stay zero.

        Raises:
            ConfigurationError: learned anchors, or another shape.
        """
        if self.weight is not None or anchors.shape != self.anchors.shape:
            raise ConfigurationError(f"class anchors of shape {tuple(anchors.shape)} do not fit this head")
        self.anchors.copy_(F.normalize(anchors.float(), dim=-1))
        self.is_set = True

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, E) -> (B, K)."""
        if not self.is_set:
            raise ConfigurationError("class anchors are not set: gather the prototypes first")
        anchors = self.anchors if self.weight is None else F.normalize(self.weight, dim=-1)
        return self.logit_scale * F.normalize(embedding, dim=-1) @ anchors.T


def text_anchors(
    encoder: FrozenCLIP, class_names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)
) -> Tensor:
    """Anchors (K, E): each template filled with each class name, unit embeddings averaged over templates.

    Raises:
        ConfigurationError: no template, or one without a place for the class name.
        WeightsError: the encoder has no text tower.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ConfigurationError(f"--model.prompts {list(templates)}: each needs a {{}} for the class name")
    embeddings = [encoder.encode_text([t.replace("{}", name) for name in class_names]) for t in templates]
    return F.normalize(torch.stack(embeddings).mean(0), dim=-1)


def class_sums(embeddings: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """What one client tells of its images: sums (K, E) of unit embeddings a class, and counts (K,).

    Args:
        embeddings: (n, E), not normalised.
        targets: (n,) class indices.
        classes: K.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    sums = torch.zeros(classes, embeddings.shape[1], dtype=torch.float64)
    return sums.index_add_(0, targets, unit), torch.bincount(targets, minlength=classes)


def prototypes_from_sums(sums: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """Class means (K, E) over all clients, weighted by class counts, as unit rows.

    A class without an image anywhere has a zero row: its logit is 0 for every image.
    """
    total = torch.stack(list(counts)).sum(0).clamp_min(1)
    return F.normalize(torch.stack(list(sums)).sum(0) / total[:, None], dim=-1).float()
