"""Class anchors: K embeddings, one per class, with which the embedding of an image is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.encoders.encoder import Encoder
from pfedst.encoders.precision import in_float32
from pfedst.errors import ConfigurationError

AnchorKind = Literal["text", "prototypes", "learned"]
HeadForm = Literal["cosine", "linear"]
SURELY_OTHER = 0.9999
"""Unit anchors with a smaller cosine differ by more than rounding."""
ROUNDING = 1e-6
"""Largest difference between two unit anchors that are the same: a row of a product depends on its place in it."""


class AnchorHead(nn.Module):
    """Logits (B, K): the logit scale times the cosine between an embedding and the anchor of each class.

    With `text` and `prototypes` the anchors are a frozen buffer that is not in the state dict and is never sent. With
    `learned` the anchors are the parameter `weight` (K, E), initialised with random unit vectors. `learn` makes a head
    trainable, starting from its anchors: before training it predicts as the frozen head does.

    Attributes:
        class_names: names of the K classes, in the order of the logits.

    Args:
        class_names: names of the K classes, in the order of the logits.
        embedding: E.
        logit_scale: factor on the cosine.
        kind: source of the anchors.
    """

    anchors: Tensor

    def __init__(self, class_names: Sequence[str], embedding: int, logit_scale: float, kind: AnchorKind) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.kind = kind
        self.logit_scale = logit_scale
        self.form: HeadForm | None = None
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.is_set = kind == "learned"
        start = torch.zeros(len(self.class_names), embedding)
        if kind == "learned":
            start = F.normalize(torch.randn_like(start), dim=-1)
        self.register_buffer("anchors", start, persistent=False)
        if kind == "learned":
            self.learn("cosine")

    def learn(self, form: HeadForm) -> None:
        """Make the head trainable, starting from its anchors.

        Args:
            form: `cosine`: cosine similarity to the rows of `weight`. `linear`: a linear layer on the unit embedding.
        """
        self.form = form
        self.weight = nn.Parameter(torch.empty_like(self.anchors))
        self.bias = nn.Parameter(torch.zeros_like(self.anchors[:, 0])) if form == "linear" else None
        self._start()

    def set_anchors(self, anchors: Tensor) -> None:
        """Set the anchors (K, E) of the classes. Rows are normalised; zero rows stay zero.

        Raises:
            ConfigurationError: If the anchors are learned, have another shape, or two classes have the same one.
        """
        if self.kind == "learned" or anchors.shape != self.anchors.shape:
            raise ConfigurationError(f"class anchors of shape {tuple(anchors.shape)} do not fit this head")
        unit = F.normalize(anchors.float(), dim=-1)
        self._refuse_equal(unit)
        self.anchors.copy_(unit)
        self.is_set = True
        self._start()

    def _refuse_equal(self, unit: Tensor) -> None:
        """Check that no two anchors are equal but for rounding. Classes without images have rows of zeros."""
        if unit.is_meta:
            return
        for one, other in (unit @ unit.T > SURELY_OTHER).triu(1).nonzero().tolist():
            if (unit[one] - unit[other]).abs().max() < ROUNDING:
                remedy = {
                    "text": "give them other names (--data.class_names), or use --model.anchors prototypes",
                    "prototypes": "they have the same images; see pfedst data audit, or use --model.anchors text",
                }
                raise ConfigurationError(
                    f'the classes "{self.class_names[one]}" and "{self.class_names[other]}" have the same class anchor '
                    f"({self.kind}), so their images cannot be distinguished: {remedy[self.kind]}"
                )

    @torch.no_grad()
    def _start(self) -> None:
        if self.weight is not None:
            self.weight.copy_(self.anchors * (self.logit_scale if self.form == "linear" else 1.0))

    @in_float32
    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits (B, K) in float32 for embeddings (B, E)."""
        if not self.is_set:
            raise ConfigurationError("class anchors are not set: gather the prototypes first")
        if self.form == "linear":
            assert self.weight is not None
            return F.linear(F.normalize(embedding, dim=-1), self.weight, self.bias)
        return self.cosine_logits(embedding, self.unit_anchors())

    def unit_anchors(self) -> Tensor:
        """Return the current class anchors (K, E), trained or not. A class without images may have a zero row."""
        # the gradient of a zero row is one over the smallest norm
        return self.anchors if self.weight is None else F.normalize(self.weight, dim=-1, eps=1e-3)

    @in_float32
    def cosine_logits(self, embedding: Tensor, unit_anchors: Tensor) -> Tensor:
        """Return logits (B, K) in float32 of embeddings (B, E), not normalised, for given unit vectors (K, E)."""
        return self.logit_scale * F.normalize(embedding, dim=-1) @ unit_anchors.T


def text_anchors(
    encoder: Encoder, class_names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)
) -> Tensor:
    """Return anchors (K, E): the mean over the templates of the unit text embeddings of each class name, normalised.

    Raises:
        ConfigurationError: If there is no template, or a template has no {} for the class name.
        WeightsError: If the encoder has no text tower.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ConfigurationError(f"--model.prompts {list(templates)}: each needs a {{}} for the class name")
    embeddings = [encoder.encode_text([t.replace("{}", name) for name in class_names]) for t in templates]
    return F.normalize(torch.stack(embeddings).mean(0), dim=-1)


def class_sums(embeddings: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the statistics that one client sends: sums (K, E) of unit embeddings per class, and image counts (K,).

    Args:
        embeddings: (n, E), not normalised.
        targets: (n,) class indices.
        classes: K.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    sums = torch.zeros(classes, embeddings.shape[1], dtype=torch.float64)
    return sums.index_add_(0, targets, unit), torch.bincount(targets, minlength=classes)


def prototypes_from_sums(sums: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """Return class means (K, E) over all clients, weighted by class counts, as unit rows.

    A class without images at any client has a zero row: its logit is 0 for every image.
    """
    total = torch.stack(list(counts)).sum(0).clamp_min(1)
    return F.normalize(torch.stack(list(sums)).sum(0) / total[:, None], dim=-1).float()
