"""Encoders: frozen towers, their weights and class anchors. They do not depend on the federated methods."""

from pfedst.encoders.anchors import AnchorHead, AnchorKind, HeadForm, class_sums, prototypes_from_sums, text_anchors
from pfedst.encoders.encoder import Encoder, Pixels
from pfedst.encoders.frozen_clip import FrozenCLIP
from pfedst.encoders.precision import computes_in_float32, in_float32
from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps
from pfedst.encoders.stored import Inputs, StoredTaps, TapDtype
from pfedst.encoders.text import PromptTower

__all__ = [
    "AnchorHead",
    "AnchorKind",
    "Encoder",
    "EncoderSpec",
    "FrozenCLIP",
    "HeadForm",
    "Inputs",
    "Need",
    "Pixels",
    "Preprocessing",
    "PromptTower",
    "StoredTaps",
    "TapDtype",
    "Taps",
    "class_sums",
    "computes_in_float32",
    "in_float32",
    "prototypes_from_sums",
    "text_anchors",
]
