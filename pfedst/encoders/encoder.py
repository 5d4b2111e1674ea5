"""What every encoder offers, and the encoder that is none: pixels as they come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps
from pfedst.encoders.stored import Inputs
from pfedst.encoders.text import PromptTower
from pfedst.errors import ConfigurationError


class Encoder:
    """Frozen, one instance a process, shared by all clients by reference: never copied, trained, sent or saved.

    It is no torch module, so that a module that holds it neither moves nor saves it.

    Attributes:
        offers: what an adapter may ask of it; an adapter that needs something else is refused before training.
        spec: sizes of the image tower.
        preprocessing: how images must enter.
        label: name, weights and image size, for every output; random weights say so in capitals.
        random_weights: whether the image tower was never trained.
        logit_scale: factor on cosines.
    """

    offers: ClassVar[tuple[Need, ...]] = get_args(Need)
    spec: EncoderSpec
    preprocessing: Preprocessing
    label: str
    random_weights: bool
    logit_scale: float

    @abstractmethod
    def encode(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Several answers about a batch of images (B, 3, H, W), normalised as `preprocessing` says, in one pass."""

    def extract(self, images: Tensor, need: Need) -> Taps:
        """What an adapter needs of a batch of images (B, 3, H, W)."""
        return self.encode(images, (need,))[need]

    def taps_of(self, inputs: Inputs, need: Need) -> Taps:
        """What an adapter needs of a batch, from its images or from what a cache kept of them."""
        if isinstance(inputs, Tensor):
            return self.extract(inputs, need)
        if inputs.kind != need:
            raise ConfigurationError(f"the cache hands out {inputs.kind}, and {need} is needed")
        return inputs.decode()

    @property
    def identity(self) -> dict[str, str | int | None]:
        """All that an image's answers depend on, but for the image and the device: the key of a cache."""
        return {"label": self.label, "weights": self.compute_hash()}

    @abstractmethod
    def to(self, device: torch.device | str) -> Encoder:
        """Move the towers, if they are elsewhere."""

    @abstractmethod
    def compute_hash(self) -> str:
        """SHA-256 over name, dtype, shape and bytes of every tensor of the image tower as it is now."""

    @property
    def nbytes(self) -> int:
        """Bytes of the image tower."""
        return 0

    def finish(self, tokens: Tensor, correction: Tensor | None = None) -> Tensor:
        """What enters block L (B, N, D) -> image embeddings (B, E), not normalised; gradients pass to `tokens`.

        `correction` is that of the taps: see `Taps`.
        """
        raise self._without("image tower")

    def project(self, tokens: Tensor) -> Tensor:
        """Output of block L (..., D) -> the joint space of images and texts (..., E), not normalised."""
        raise self._without("image tower")

    def block_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """The weights of the L blocks that a low-rank update may change, by target; see `ImageTower.targets`."""
        raise self._without("image tower")

    def embed(self, images: Tensor, block_weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Images (B, 3, H, W) -> embeddings (B, E) with other weights in some blocks; gradients pass to those."""
        raise self._without("image tower")

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (P, E) of P prompts."""
        raise self._without("text tower")

    def prompt_tower(self) -> PromptTower:
        """The frozen text tower, for prompts that are learned.

        Raises:
            ConfigurationError: there is none, or none whose prompts can be learned.
        """
        raise self._without("text tower")

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        """The encoder is shared, never copied."""
        return self

    def _without(self, tower: str) -> ConfigurationError:
        return ConfigurationError(f"encoder {self.label} has no {tower}, which this adapter or method needs")


class Pixels(Encoder):
    """No encoder at all: hands out the images themselves, for an adapter that is a whole model of its own.

    With it every method runs on any classifier (a ResNet, a small CNN): see `pfedst.adapters.WholeModel`.

    Args:
        image_size: side of the square images in pixels, >= 1.
        mean: of each colour channel, subtracted.
        std: of each colour channel, divided by.
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
        """The images (B, ...) as they come."""
        if set(needs) != {"images"}:
            raise self._without("image tower")
        return {"images": Taps("images", (images,))}

    def to(self, device: torch.device | str) -> Pixels:
        """Nothing to move."""
        return self

    def compute_hash(self) -> str:
        """Nothing to hash."""
        return "pixels"
