"""Base classes of adapters: small trainable modules that turn the output of the frozen encoder into logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pfedst.adapters.lora import with_lora_merged
from pfedst.encoders import AnchorHead, Encoder, Need, Taps, computes_in_float32
from pfedst.errors import ConfigurationError


class Adapter(nn.Module):
    """Base class of all adapters.

    A subclass sets `needs`, the kind of encoder output that it takes, and computes an image embedding. The class
    anchors in `head` turn the embedding into logits. `needs` also decides whether cached taps can be used.

    The encoder is held by reference and is not a module, so it is never moved, saved or sent with the adapter.

    If a batch norm receives one value per channel in training (a batch of one image), it uses its running statistics
    and does not update them.

    Attributes:
        needs: kind of encoder output that the adapter takes.
        head_keys: glob over the state-dict keys of the classifier, for methods that treat the classifier separately.
        encoder: the frozen encoder, one per process.
        head: class anchors. `head.weight` is trainable with learned anchors or after `learn_head`; otherwise the head
            has no state.

    Raises:
        ConfigurationError: If the encoder does not offer what the adapter needs.
    """

    needs: ClassVar[Need]
    head_keys: ClassVar[str] = "head.*"

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__()
        if self.needs not in encoder.offers:
            reason = f" ({encoder.limits})" if encoder.limits else ""
            raise ConfigurationError(
                f"{type(self).__name__} needs {self.needs} of the encoder, and {encoder.label} offers only "
                f"{', '.join(encoder.offers)}{reason}; choose another --model.adapter or --model.encoder"
            )
        self.encoder = encoder
        self.head = head

    @abstractmethod
    def embed(self, taps: Taps) -> Tensor:
        """Return image embeddings (B, E), not normalised, for the taps of B images."""

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K) for the taps of B images."""
        logits: Tensor = self.head(self.embed(taps))
        return logits

    def train(self, mode: bool = True) -> Adapter:
        """Set the training mode and prepare every batch norm added since the last call for a batch of one image."""
        for layer in self.modules() if mode else ():
            if isinstance(layer, _BatchNorm) and _before_batch_norm not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_before_batch_norm, with_kwargs=True)
                layer.register_forward_hook(_after_batch_norm, always_call=True)
        super().train(mode)
        return self

    def merged(self) -> Adapter:
        """Return a copy in evaluation mode that computes the same logits with plain weights.

        Low-rank updates are added to the weights that they change. The copy is for inference and export; its state does
        not fit this adapter.

        Raises:
            ConfigurationError: If the logits are not a fixed sequence of tensor operations.
        """
        return with_lora_merged(self).eval()

    def learn_head(self) -> None:
        """Make the classifier trainable, starting from the class anchors. A trainable classifier is unchanged."""
        if self.head.weight is None:
            self.head.learn("linear")

    def classify_in_float32(self) -> None:
        """Let the layers of the classifier compute in float32 whatever the precision of a run, as class anchors do."""
        for name, layer in self.named_modules():
            keys = [f"{name}.{key}" for key, _ in layer.named_parameters(recurse=False)]
            if not isinstance(layer, AnchorHead) and any(fnmatchcase(key, self.head_keys) for key in keys):
                computes_in_float32(layer)


def _before_batch_norm(layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    """Use running statistics for a batch with one value per channel, which torch refuses in training mode."""
    if not layer.training:
        return
    (values,) = (*inputs, *named.values())
    if values.numel() == layer.num_features:
        layer.training, layer.is_lone = False, True


def _after_batch_norm(layer: Any, inputs: tuple[Tensor, ...], output: Tensor | None) -> None:
    if vars(layer).pop("is_lone", False):
        layer.training = True


class WholeModel(Adapter):
    """Base class of adapters that are complete classifiers: images to logits, without class anchors.

    With the encoder `Pixels`, every method runs on any such model. A subclass creates its layers after calling this
    constructor (`len(head.class_names)` classes), names the last layer `fc` or sets `head_keys` to another name, and
    defines `forward`: `taps.tensors[0]` holds the images (B, 3, S, S).

    Attributes:
        classes: number of classes K; other logits than (B, K) raise a ConfigurationError.
    """

    needs = "images"
    head_keys = "fc.*"

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        del self.head
        self.classes = len(head.class_names)
        self.register_forward_hook(_check_logits)

    @abstractmethod
    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K) for the images."""

    def embed(self, taps: Taps) -> Tensor:
        """Raise ConfigurationError: the model does not define an embedding."""
        raise ConfigurationError(f"{type(self).__name__} has no embedding, which this method needs")

    def learn_head(self) -> None:
        """Do nothing: the classifier is already trainable."""


def _check_logits(model: Any, inputs: Any, logits: Any) -> None:
    """Raise a ConfigurationError if a model does not return logits (B, K)."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(shape, tuple) or shape[1:] != (model.classes,):
        name = type(getattr(model, "module", model)).__name__
        raise ConfigurationError(f"{name} returns {shape}, where logits (images, {model.classes} classes) belong")


AdapterFactory = Callable[[Encoder, AnchorHead], Adapter]
"""An adapter class with its options, as a configuration gives it. Call it with the encoder and the head."""
