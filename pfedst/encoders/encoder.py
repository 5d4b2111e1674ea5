"""The interface of encoders, and `Pixels`, which returns the images unchanged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps
from pfedst.encoders.stored import Inputs
from pfedst.encoders.text import PromptTower
from pfedst.errors import ConfigurationError


class Encoder:
    """Base class of encoders: frozen, one instance per process, shared by all clients by reference.

    An encoder is never copied, trained, sent or saved. It is not a torch module, so a module that holds an encoder does
    not move or save it.

    Attributes:
        offers: kinds of output that an adapter can use. An adapter that needs another kind is refused before training.
        limits: why kinds are missing, as a sentence; may be empty.
        spec: sizes of the image tower.
        preprocessing: how images must be prepared.
        label: name, weights and image size, for every output. Random weights are marked in capitals.
        random_weights: True if the image tower was never trained.
        logit_scale: factor on cosines.
    """

    offers: tuple[Need, ...] = get_args(Need)
    limits: str = ""
    spec: EncoderSpec
    preprocessing: Preprocessing
    label: str
    random_weights: bool
    logit_scale: float

    @abstractmethod
    def encode(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Return several kinds of output for images (B, 3, H, W), normalised as in `preprocessing`, in one pass."""

    def encode_batch(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Return what `encode` returns, computed as one batch: the last bits may depend on the other images.

        The computation is a fixed sequence of tensor operations for any number of images, so it can be exported.
        """
        return self.encode(images, needs)

    def extract(self, images: Tensor, need: Need) -> Taps:
        """Return the output that an adapter needs for images (B, 3, H, W)."""
        return self.encode(images, (need,))[need]

    def taps_of(self, inputs: Inputs, need: Need) -> Taps:
        """Return the output that an adapter needs for a batch of images, or decode it from a cached batch."""
        if isinstance(inputs, Tensor):
            return self.extract(inputs, need)
        if inputs.kind != need:
            raise ConfigurationError(f"the cache gives {inputs.kind}, and {need} is needed")
        return inputs.decode()

    @property
    def identity(self) -> dict[str, str | int | None]:
        """Everything that the output for an image depends on, except the image and the device: the key of a cache."""
        return {"label": self.label, "weights": self.weights_hash}

    @abstractmethod
    def to(self, device: torch.device | str) -> Encoder:
        """Move the towers to a device if they are on another one."""

    @abstractmethod
    def compute_hash(self) -> str:
        """Return the SHA-256 over name, dtype, shape and bytes of every current tensor of the image tower."""

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the image tower, computed once."""
        return self.compute_hash()

    @property
    def nbytes(self) -> int:
        """Size of the image tower in bytes."""
        return 0

    def finish(self, tokens: Tensor, correction: Tensor | None = None) -> Tensor:
        """Return image embeddings (B, E), not normalised, for the input (B, N, D) of block L.

        Gradients pass to `tokens`. `correction` is the correction of the taps, see `Taps`.
        """
        raise self._without("image tower")

    def project(self, tokens: Tensor) -> Tensor:
        """Project the output of block L (..., D) to the joint space of images and texts (..., E), not normalised."""
        raise self._without("image tower")

    def block_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the weights of the L blocks that a low-rank update may change, by target; see `ImageTower.targets`."""
        raise self._without("image tower")

    def embed(self, images: Tensor, block_weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return embeddings (B, E) of images (B, 3, H, W) with replaced block weights, to which gradients pass."""
        raise self._without("image tower")

    def with_block_weights(self, block_weights: Sequence[Mapping[str, Tensor]]) -> Encoder:
        """Return an encoder with a copy of the image tower in which some weights of blocks are replaced.

        Args:
            block_weights: for each block, target -> weight (out, in); see `ImageTower.targets`.
        """
        raise self._without("image tower")

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return unit embeddings (P, E) of P prompts.

        Raises:
            ConfigurationError: If there is no text tower, or a prompt is too long for it.
        """
        raise self._without("text tower")

    def prompt_tower(self) -> PromptTower:
        """Return the frozen text tower, for learned prompts.

        Raises:
            ConfigurationError: If there is no text tower, or its prompts cannot be learned.
        """
        raise self._without("text tower")

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        """Return the same object: the encoder is shared, never copied."""
        return self

    def _without(self, tower: str) -> ConfigurationError:
        return ConfigurationError(f"encoder {self.label} has no {tower}, which this adapter or method needs")


class Pixels(Encoder):
    """Return the images themselves, for an adapter that is a complete model.

    With `Pixels` every method runs on any classifier (a ResNet, a small CNN): see `pfedst.adapters.WholeModel`.

    Args:
        image_size: side of the square images in pixels, >= 1.
        mean: value subtracted from each colour channel.
        std: value by which each colour channel is divided.
    """

    offers = ("images",)

    def __init__(
        self,
        image_size: int = 224,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        if image_size < 1:
            raise ConfigurationError(f"--model.encoder.image_size {image_size}: must be 1 or more")
        self.spec = EncoderSpec(0, 0, 0, 1, image_size, has_text=False)
        self.preprocessing = Preprocessing(image_size, mean, std)
        self.label = f"none (pixels), {image_size} px"
        self.random_weights = False
        self.logit_scale = 1.0

    def encode(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Return the images (B, ...) unchanged."""
        if set(needs) != {"images"}:
            raise self._without("image tower")
        return {"images": Taps("images", (images,))}

    def to(self, device: torch.device | str) -> Pixels:
        """Do nothing: there are no towers to move."""
        return self

    def compute_hash(self) -> str:
        """Return a constant: there are no weights."""
        return "pixels"
