"""ZeroShot: the encoder as it comes."""

from pfedst.adapters import Adapter, LinearHead
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class ZeroShot(FederatedMethod):
    """The frozen encoder with its class anchors: nothing is trained, nothing is sent.

    Why: shows what training adds at all.
    Method: argmax over classes of cos(image embedding, class anchor).
    When to use: as the first row of every table. Zero-shot in the strict sense with `text` anchors only: prototypes
        are class means of the training images.
    """

    source = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    personalises = False

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """The cosine to the anchors alone."""
        return LinearHead(encoder, head, "cosine")

    def partition(self, client: LocalModel) -> list[Rule]:
        """Everything is frozen."""
        return [("*", "frozen")]
