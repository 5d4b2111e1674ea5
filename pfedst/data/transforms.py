"""How an image becomes input of the encoder: cut to a square of 8-bit pixels, augmented, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from open_clip.transform import ResizeKeepRatio
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pfedst.data.augmentation import CheckedTransform, Preset
from pfedst.encoders.spec import Preprocessing
from pfedst.seeds import generator, seeded

FLIP_PROBABILITY = 0.5
"""Of a horizontal and of a vertical flip: a lesion has no up."""


def evaluation_transform(preprocessing: Preprocessing) -> v2.Compose:
    """Return the transform of a PIL image to (3, S, S): make it a square by the resize mode, normalise."""
    return v2.Compose([*_to_square(preprocessing), v2.ToImage(), *_normalise(preprocessing)])


def _to_square(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    size, mode = preprocessing.image_size, v2.InterpolationMode(preprocessing.interpolation)
    resize: torch.nn.Module
    if preprocessing.resize_mode == "longest":
        resize = ResizeKeepRatio(size, interpolation=mode, longest=1.0)
    else:
        both = preprocessing.resize_mode == "squash"
        resize = v2.Resize([size, size] if both else size, mode, antialias=True)
    # the crop fills up with black where the image is smaller
    return [resize, v2.CenterCrop(size)]


def _normalise(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(preprocessing.mean), list(preprocessing.std))]


class ImageTransform:
    """Cuts images to squares, augments them and normalises them.

    The square is cut from one image by Pillow. All later steps work on uint8 pixels, (3, S, S) or a batch of them, so
    that a store of squares gives the bits of the files.

    Attributes:
        augments: True if training images are augmented.
        cuts_at_random: True if the square is a random crop of the whole image, which a store of squares cannot hold.
        by_image: True if each image is augmented by itself; False for one operation on a batch.

    Args:
        preprocessing: of the encoder.
        augmentation: `none`; `flips` (both flips of the square); `crops` (in place of the resize mode a random resized
            crop, as open_clip trains, and both flips); or a transform of torchvision for the square image (3, S, S),
            uint8.

    Raises:
        ConfigurationError: the transform cannot be used on one image, or changes its shape.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: Preset | v2.Transform = "none") -> None:
        size, mode = preprocessing.image_size, v2.InterpolationMode(preprocessing.interpolation)
        self._square = v2.Compose([*_to_square(preprocessing), v2.ToImage()])
        self._mean, self._std = (torch.tensor(of)[:, None, None] for of in (preprocessing.mean, preprocessing.std))
        self._cut: v2.Compose | None = None
        self._change: CheckedTransform | None = None
        self.augments = augmentation != "none"
        if augmentation == "crops":
            crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), interpolation=mode, antialias=True)
            flips = [v2.RandomHorizontalFlip(FLIP_PROBABILITY), v2.RandomVerticalFlip(FLIP_PROBABILITY)]
            self._cut = v2.Compose([crop, *flips, v2.ToImage()])
        elif not isinstance(augmentation, str):
            self._change = CheckedTransform(augmentation, size)
        self.cuts_at_random = self._cut is not None
        self.by_image = self._change is not None or self.cuts_at_random

    def square(self, image: Image.Image) -> Tensor:
        """Return the square (3, S, S), uint8, of an image in RGB, by the resize mode of the encoder."""
        return cast(Tensor, self._square(image)).as_subclass(Tensor)

    def random_square(self, image: Image.Image, seed: int) -> Tensor:
        """Return an augmented random crop (3, S, S), uint8; only if `cuts_at_random`."""
        assert self._cut is not None
        with seeded(seed):
            return cast(Tensor, self._cut(image)).as_subclass(Tensor)

    def augmented(self, squares: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return augmented squares (B, 3, S, S), uint8, each by its own seed, whatever the batch."""
        if not self.augments:
            return squares
        if self._change is None:
            return _flipped(squares, seeds)
        changed = []
        for square, seed in zip(squares, seeds, strict=True):
            with seeded(seed):
                changed.append(self._change(tv_tensors.Image(square)))
        return torch.stack(changed)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), uint8, as input of the encoder, float32."""
        # torchvision's operations in their order, for the same bits, without the tests around them
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)


def _flipped(squares: Tensor, seeds: Sequence[int]) -> Tensor:
    """Flip each square at random, with the draws of torchvision's two flips: horizontal, then vertical."""
    draws = torch.stack([torch.rand(2, generator=generator(seed)) for seed in seeds]) if seeds else torch.ones(0, 2)
    flips = (draws < FLIP_PROBABILITY).to(squares.device)[:, :, None, None, None]
    across = torch.where(flips[:, 0], squares.flip(-1), squares)
    return torch.where(flips[:, 1], across.flip(-2), across)
