"""ZeroShot: the frozen encoder without training."""

from typing import ClassVar

from pfedst.adapters import Adapter, LinearHead
from pfedst.encoders import AnchorHead, AnchorKind, Encoder
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class ZeroShot(FederatedMethod):
    """The frozen encoder with the names of the classes as text: nothing is trained or sent, and no label is used.

    Why: it shows what training adds.
    Method: argmax over classes of cos(image embedding, text embedding of the class).
    When to use: as the first row of every table, with an encoder that has a text tower; otherwise use Prototypes.
    """

    source = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    personalises = False
    joins = False
    requires_anchors: ClassVar[AnchorKind | None] = "text"

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """The cosine to the anchors alone."""
        return LinearHead(encoder, head, "cosine")

    def partition(self, client: LocalModel) -> list[Rule]:
        """Everything is frozen."""
        return [("*", "frozen")]
