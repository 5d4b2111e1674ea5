"""ZeroShot: the encoder as it comes."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.client import FederatedClient
from pfedst.method import FederatedMethod
from pfedst.partition import Rule


class ZeroShot(FederatedMethod):
    """The frozen encoder with its class anchors: nothing is trained, nothing is sent.

    Zero-shot in the strict sense with `text` anchors only: prototypes are class means of the training images.
    """

    source = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"

    def partition(self, client: FederatedClient) -> Sequence[Rule]:
        """Everything is frozen."""
        return [("*", "frozen")]
