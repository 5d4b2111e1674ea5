"""The data types that encoders share with other packages: sizes, preprocessing and taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Need = Literal["pooled", "tokens", "taps", "images"]
"""Kind of encoder output that an adapter needs; see `Taps`."""
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
"""How an image becomes a square, in open_clip's words.

`shortest`: the shorter side gets the size of the input, the centre is cut out. `longest`: the longer side gets it, the
rest is black. `squash`: both sides get it, whatever the aspect ratio."""


@dataclass(frozen=True)
class Taps:
    """Output of the encoder for one batch.

    `kind` determines the content of `tensors` (B images, N tokens with the class token first, if the embedding is that
    of a class token, D width, E embedding, L blocks):

    * `pooled`: one tensor (B, E), the image embedding, NOT normalised;
    * `tokens`: one tensor (B, N, D), the output of block L before the final norm;
    * `taps`: L tensors (B, N, D), Z_0 .. Z_{L-1}: the input of block 1, then the outputs of blocks 1 .. L-1;
    * `images`: one tensor (B, 3, H, W), for adapters inside the tower.

    If the patches of the taps are averaged, `correction` (B, D) is the output of block L for the class token (or the
    pooled output) on all patches minus that on the averaged patches. Adding `correction` to the latter makes an
    untrained side network exact. Otherwise `correction` is None.
    """

    kind: Need
    tensors: tuple[Tensor, ...]
    correction: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.tensors[0])


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of an image tower.

    Attributes:
        width: D, channels of a token; 0 for a tower without tokens.
        layers: L, number of transformer blocks; 0 for a tower without tokens.
        tokens: N, patches and the prefix tokens that the tower has (class token, register tokens).
        embedding: E, channels of the image embedding.
        image_size: side of the square input, pixels.
        has_text: True if there is a text tower with usable weights.
    """

    width: int
    layers: int
    tokens: int
    embedding: int
    image_size: int
    has_text: bool

    def step_bytes(self, need: Need) -> int:
        """Return the bytes of an image, float32, on its way to an adapter: pixels, and its output or a wide layer.

        Args:
            need: what the adapter needs, not `images`.
        """
        tokens = self.tokens * self.width
        output = {"pooled": self.embedding, "tokens": tokens, "taps": self.layers * tokens}[need]
        hidden = 4 * tokens  # of the MLP of a block
        return 4 * (3 * self.image_size**2 + max(output, hidden))


@dataclass(frozen=True)
class Preprocessing:
    """Input of the tower: square side in pixels, channel means and standard deviations of RGB in [0, 1]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
