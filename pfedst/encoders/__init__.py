"""Encoders: frozen towers, their weights, class anchors. They know nothing of methods."""

from pfedst.encoders.anchors import AnchorHead, AnchorKind, class_sums, prototypes_from_sums, text_anchors
from pfedst.encoders.frozen_clip import FrozenCLIP
from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps

__all__ = [
    "AnchorHead",
    "AnchorKind",
    "EncoderSpec",
    "FrozenCLIP",
    "Need",
    "Preprocessing",
    "Taps",
    "class_sums",
    "prototypes_from_sums",
    "text_anchors",
]
