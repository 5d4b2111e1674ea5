"""The adapter: the small trainable module between what the frozen encoder hands out and the logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pfedst.encoders import AnchorHead, Encoder, Need, Taps
from pfedst.errors import ConfigurationError


class Adapter(nn.Module):
    """Base of every adapter.

    A subclass names in `needs` what it asks of the encoder (which decides whether cached taps serve) and computes
    an image embedding; the class anchors in `head` turn it into logits. The encoder is held by reference: it is no
    module, so that it is never moved, saved or sent with the adapter. Any batch norm in it that is given one value a
    channel in training (a batch of one image) goes by its running statistics, and leaves them as they are.

    Attributes:
        needs: what it asks of the encoder.
        head_keys: glob over the state-dict keys of the classifier, for methods that treat it apart.
        encoder: the frozen encoder, one a process.
        head: class anchors; `head.weight` is trainable with learned anchors or after `learn_head`, otherwise the
            head holds no state.

    Raises:
        ConfigurationError: the encoder does not offer what the adapter needs.
    """

    needs: ClassVar[Need]
    head_keys: ClassVar[str] = "head.*"

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__()
        if self.needs not in encoder.offers:
            raise ConfigurationError(
                f"{type(self).__name__} needs {self.needs} of the encoder, and {encoder.label} offers only "
                f"{', '.join(encoder.offers)}; choose another --model.adapter or --model.encoder"
            )
        self.encoder = encoder
        self.head = head

    @abstractmethod
    def embed(self, taps: Taps) -> Tensor:
        """Taps of B images -> image embeddings (B, E), not normalised."""

    def forward(self, taps: Taps) -> Tensor:
        """Taps of B images -> logits (B, K)."""
        logits: Tensor = self.head(self.embed(taps))
        return logits

    def train(self, mode: bool = True) -> Adapter:
        """Set the mode; before training, prepare every batch norm that has come to be for a batch of one image."""
        for layer in self.modules() if mode else ():
            if isinstance(layer, _BatchNorm) and _before_batch_norm not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_before_batch_norm, with_kwargs=True)
                layer.register_forward_hook(_after_batch_norm, always_call=True)
        super().train(mode)
        return self

    def learn_head(self) -> None:
        """Make the classifier trainable, starting from the class anchors; one that already is stays as it is."""
        if self.head.weight is None:
            self.head.learn("linear")


def _before_batch_norm(layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    """One value a channel has no variance: torch refuses it, unless the layer goes by running statistics."""
    (values,) = (*inputs, *named.values())
    layer.is_lone = layer.training and values.numel() == layer.num_features
    layer.training = layer.training and not layer.is_lone


def _after_batch_norm(layer: Any, inputs: tuple[Tensor, ...], output: Tensor | None) -> None:
    layer.training = layer.training or layer.is_lone


class WholeModel(Adapter):
    """Base of an adapter that is a classifier of its own: from the images to the logits, without class anchors.

    With the encoder `Pixels` it runs every method on any model. A subclass makes its layers after calling this
    constructor (`len(head.class_names)` classes), calls the last one `fc` or names another in `head_keys`, and
    defines `forward`: `taps.tensors[0]` are the images (B, 3, S, S).
    """

    needs = "images"
    head_keys = "fc.*"

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        del self.head

    @abstractmethod
    def forward(self, taps: Taps) -> Tensor:
        """Images -> logits (B, K)."""

    def embed(self, taps: Taps) -> Tensor:
        """Refused: what lies before the last layer is not said."""
        raise ConfigurationError(f"{type(self).__name__} has no embedding of its own, which this method needs")

    def learn_head(self) -> None:
        """The classifier is trainable as it is."""


AdapterFactory = Callable[[Encoder, AnchorHead], Adapter]
"""What a configuration gives: an adapter class with its options, still to be told encoder and head."""
