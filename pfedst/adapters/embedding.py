"""Adapters behind the encoder, on its image embedding alone: a head, and attention over channels.

Shapes: B images, E channels of the embedding, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.encoders import AnchorHead, Encoder, HeadForm, Taps


class LinearHead(Adapter):
    """A trainable classifier on the frozen image embedding, started at the class anchors (round 0 is zero-shot).

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        form: `linear` in the unit embedding, W x + b with W = logit scale * anchors, or `cosine` to trained anchors.
    """

    needs = "pooled"

    def __init__(self, encoder: Encoder, head: AnchorHead, form: HeadForm = "linear") -> None:
        super().__init__(encoder, head)
        head.learn(form)

    def embed(self, taps: Taps) -> Tensor:
        """The pooled embedding (B, E) as it is."""
        return taps.tensors[0]


class AttentionAdapter(Adapter):
    """Attention over the channels of the image embedding: f' = softmax(second(h(first(f)))) * f.

    As in FedCLIP (h = tanh) and, with `batch_norm`, as in FACMIC (h = LeakyReLU after BatchNorm). The embedding
    enters raw, not normalised.

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        batch_norm: FACMIC's form.
    """

    needs = "pooled"

    def __init__(self, encoder: Encoder, head: AnchorHead, batch_norm: bool = False) -> None:
        super().__init__(encoder, head)
        E = encoder.spec.embedding
        self.first, self.second = nn.Linear(E, E), nn.Linear(E, E)
        self.norm = nn.BatchNorm1d(E) if batch_norm else None

    def embed(self, taps: Taps) -> Tensor:
        """Pooled (B, E) -> attended (B, E)."""
        f_BE = taps.tensors[0]
        return self.attention(f_BE) * f_BE

    def attention(self, f_BE: Tensor) -> Tensor:
        """Weights (B, E) of the channels, positive, summing to one."""
        hidden = self.first(f_BE)
        hidden = torch.tanh(hidden) if self.norm is None else F.leaky_relu(self.norm(hidden))
        weights: Tensor = self.second(hidden).softmax(-1)
        return weights
