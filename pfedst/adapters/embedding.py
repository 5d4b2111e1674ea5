"""Adapters on the image embedding alone: a trainable classifier, and attention over channels.

Shapes: B images, E channels of the embedding, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.encoders import AnchorHead, Encoder, HeadForm, Taps, in_float32


class PooledHead(Adapter):
    """The class anchors on the image embedding, without any layer between.

    Args:
        encoder: the frozen encoder.
        head: the class anchors, trained or not.
    """

    needs = "pooled"

    def embed(self, taps: Taps) -> Tensor:
        """Return the pooled embedding (B, E) unchanged."""
        return taps.tensors[0]


class LinearHead(PooledHead):
    """Train a classifier on the frozen image embedding, initialised with the class anchors.

    Before training (round 0) the predictions are those of zero-shot classification.

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        form: `linear`: W x + b on the unit embedding x, initialised with W = logit scale * anchors. `cosine`: cosine
            similarity to trainable anchors.
    """

    def __init__(self, encoder: Encoder, head: AnchorHead, form: HeadForm = "linear") -> None:
        super().__init__(encoder, head)
        head.learn(form)


class AttentionAdapter(Adapter):
    """Attention over the channels of the image embedding: f' = softmax(second(h(first(f)))) * f.

    FedCLIP uses h = tanh. FACMIC uses h = LeakyReLU after BatchNorm (`batch_norm`). The embedding is not normalised
    before it enters the adapter.

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        batch_norm: use the form of FACMIC in place of that of FedCLIP.
    """

    needs = "pooled"

    def __init__(self, encoder: Encoder, head: AnchorHead, batch_norm: bool = False) -> None:
        super().__init__(encoder, head)
        E = encoder.spec.embedding
        self.first, self.second = nn.Linear(E, E), nn.Linear(E, E)
        self.norm = nn.BatchNorm1d(E) if batch_norm else None

    def embed(self, taps: Taps) -> Tensor:
        """Return the weighted embedding (B, E) for the pooled embedding (B, E)."""
        f_BE = taps.tensors[0]
        return self.attention(f_BE) * f_BE

    @in_float32
    def attention(self, f_BE: Tensor) -> Tensor:
        """Return weights (B, E) of the channels: positive, with sum one for each image."""
        hidden = self.first(f_BE)
        hidden = torch.tanh(hidden) if self.norm is None else F.leaky_relu(self.norm(hidden))
        weights: Tensor = self.second(hidden).softmax(-1)
        return weights
