"""The adapter: the small trainable module between what the frozen encoder hands out and the logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from pfedst.encoders import AnchorHead, FrozenCLIP, Need, Taps


class Adapter(nn.Module):
    """Base of every adapter.

    A subclass names in `needs` what it asks of the encoder (which decides whether cached taps serve) and computes
    an image embedding; the class anchors in `head` turn it into logits. The encoder is held by reference: it is no
    module, so that it is never moved, saved or sent with the adapter.

    Attributes:
        encoder: the frozen encoder, one a process.
        head: class anchors; `head.weight` is trainable with learned anchors, otherwise the head holds no state.
    """

    needs: ClassVar[Need]

    def __init__(self, encoder: FrozenCLIP, head: AnchorHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @abstractmethod
    def embed(self, taps: Taps) -> Tensor:
        """Taps of B images -> image embeddings (B, E), not normalised."""

    def forward(self, taps: Taps) -> Tensor:
        """Taps of B images -> logits (B, K)."""
        logits: Tensor = self.head(self.embed(taps))
        return logits


AdapterFactory = Callable[[FrozenCLIP, AnchorHead], Adapter]
"""What a configuration gives: an adapter class with its options, still to be told encoder and head."""
