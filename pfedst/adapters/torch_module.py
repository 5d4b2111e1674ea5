"""TorchModule: a torch module of one's own as an adapter, as it is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pfedst.adapters.adapter import WholeModel
from pfedst.encoders import AnchorHead, Encoder, Taps


class TorchModule(WholeModel):
    """Any torch module that maps images (B, 3, S, S) to logits (B, K).

    Its classifier is called `fc`, as in the ResNets of torchvision; for another name write a `WholeModel`.

    Args:
        encoder: gives the images as it prepares them; `Pixels` for none.
        head: the class anchors, of which the number of classes is used alone.
        module: class of the module, or a function that makes it; called with the number of classes K.
    """

    head_keys = "module.fc.*"

    def __init__(self, encoder: Encoder, head: AnchorHead, module: Callable[[int], nn.Module]) -> None:
        super().__init__(encoder, head)
        self.module = module(len(head.class_names))

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K) for the images."""
        logits: Tensor = self.module(taps.tensors[0])
        return logits
