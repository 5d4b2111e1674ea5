"""What an encoder promises to the rest of the house: its sizes, its preprocessing, and the taps it hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Need = Literal["pooled", "tokens", "taps", "images"]
"""What an adapter asks of the encoder; see `Taps`."""


@dataclass(frozen=True)
class Taps:
    """What the encoder hands to an adapter for one batch.

    `kind` says what `tensors` holds (B images, N tokens with the class token first, D width, E embedding, L blocks):

    * `pooled`: one tensor (B, E), the image embedding, NOT normalised;
    * `tokens`: one tensor (B, N, D), the output of block L before the final norm;
    * `taps`: L tensors (B, N, D), Z_0 .. Z_{L-1}: what enters block 1, then the outputs of blocks 1 .. L-1;
    * `images`: one tensor (B, 3, H, W), for adapters that are injected into the tower.

    With taps whose patches are averaged, `correction` (B, D) is what block L says of the class token on all patches
    less what it says on the averages; added to the latter it makes an untrained side network exact. Otherwise None.
    """

    kind: Need
    tensors: tuple[Tensor, ...]
    correction: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tensors[0])


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of an image tower.

    Attributes:
        width: D, channels of a token.
        layers: L, number of transformer blocks.
        tokens: N, class token + patches (+ register tokens, where a tower has them).
        embedding: E, channels of the image embedding.
        image_size: side of the square input, pixels.
        has_text: whether a text tower with usable weights is at hand.
    """

    width: int
    layers: int
    tokens: int
    embedding: int
    image_size: int
    has_text: bool


@dataclass(frozen=True)
class Preprocessing:
    """How images must enter the tower: square side in pixels, channel means and deviations of RGB in [0, 1]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
