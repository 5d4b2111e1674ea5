"""Synthetic sites: lesion-like images whose colours, light, labels and numbers differ between sites.

They show that the software works and have no medical meaning. Their label says SYNTHETIC wherever numbers appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedst.data.camera import Camera
from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.decoding import ImageHeader
from pfedst.data.sites import LabelledImages, Sites
from pfedst.data.sources import content_digest
from pfedst.errors import ConfigurationError
from pfedst.seeds import derive_seed

CLASS_NAMES = ("nevus", "melanoma", "keratosis", "vascular", "carcinoma", "fibroma")
SKIN = np.array([0.80, 0.62, 0.52])
# of each class: colour relative to the skin, irregularity of the border, strength of the texture
COLOURS = np.array(
    [
        [-0.22, -0.22, -0.20],
        [-0.34, -0.36, -0.30],
        [-0.16, -0.20, -0.24],
        [-0.06, -0.28, -0.22],
        [-0.02, -0.14, -0.10],
        [-0.12, -0.12, -0.06],
    ]
)
BORDERS = (0.06, 0.30, 0.14, 0.10, 0.22, 0.04)
TEXTURES = (0.02, 0.05, 0.12, 0.03, 0.08, 0.06)
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class ArraySource:
    """Images in memory, (n, S, S, 3)."""

    images: Images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        """Return the image."""
        return Image.fromarray(self.images[index])

    def digest(self, index: int) -> str:
        """Return a hash of the pixels."""
        return content_digest(self.images[index].tobytes())

    def name(self, index: int) -> str:
        """Return the number of the image as text."""
        return f"image {index}"

    def header(self, index: int) -> ImageHeader:
        """Return the size of the image."""
        height, width, _ = self.images[index].shape
        return ImageHeader(width, height, "RGB")


class SyntheticSites(FederatedDataModule):
    """Seeded lesion-like images.

    The class determines colour, border and texture. The site determines colour cast and light.

    Args:
        sites: number of sites, 1 to 26.
        classes: number of classes, 2 to 6.
        image_size: side in pixels, >= 16.
        samples_per_site: number of training images for each site; validation is split off from them. Default:
            decreasing.
        test_samples_per_site: number of test images for each site. Every class occurs equally often.
        heterogeneity: strength of colour cast and light, >= 0. With 0 the sites differ only in their labels.
        label_skew: concentration of the Dirichlet draw of each site's class shares, > 0. A small value is skewed.
        noise: standard deviation of pixel noise, >= 0.
        seed: seed of the images.
        options: options of FederatedDataModule.
    """

    def __init__(
        self,
        sites: int = 4,
        classes: int = 4,
        image_size: int = 64,
        samples_per_site: Sequence[int] | None = None,
        test_samples_per_site: Sequence[int] | None = None,
        heterogeneity: float = 1.0,
        label_skew: float = 2.0,
        noise: float = 0.04,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        train = list(samples_per_site or [max(40, 160 - 40 * index) for index in range(sites)])
        test = list(test_samples_per_site or [120] * sites)
        if not 1 <= sites <= 26 or not 2 <= classes <= len(CLASS_NAMES) or image_size < 16:
            raise ConfigurationError("--data: 1 to 26 sites, 2 to 6 classes and an image_size of 16 or more")
        if len(train) != sites or len(test) != sites or min(train + test) < classes:
            raise ConfigurationError(
                "--data: samples_per_site needs one number per site, at least the number of classes"
            )
        if heterogeneity < 0 or label_skew <= 0 or noise < 0:
            raise ConfigurationError("--data: heterogeneity and noise must be 0 or more, label_skew above 0")
        self.names = [f"site_{'abcdefghijklmnopqrstuvwxyz'[index]}" for index in range(sites)]
        self.classes = classes
        self.image_size = image_size
        self.sizes = list(zip(train, test, strict=True))
        self.heterogeneity = heterogeneity
        self.label_skew = label_skew
        self.noise = noise
        self.seed = seed
        self.label = f"SYNTHETIC lesion-like images ({sites} sites, seed {seed})"

    def read(self) -> Sites:
        """Draw all images."""
        return Sites(CLASS_NAMES[: self.classes], {name: self._site(i) for i, name in enumerate(self.names)})

    def _site(self, index: int) -> dict[Any, LabelledImages]:
        rng = np.random.default_rng(derive_seed(self.seed, "synthetic site", self.names[index]))
        strength = self.heterogeneity
        camera = Camera(
            1 + strength * rng.uniform(-0.22, 0.22, 3),
            strength * rng.uniform(-0.08, 0.08, 3),
            float(np.exp(strength * rng.uniform(-0.4, 0.4))),
            strength * rng.uniform(-0.2, 0.2, 2),
        )
        shares = rng.dirichlet([self.label_skew] * self.classes)
        train, test = self.sizes[index]
        few = min(4, train // self.classes)
        skewed = rng.choice(self.classes, train - few * self.classes, p=shares)
        labels = {
            "train": np.concatenate([np.repeat(np.arange(self.classes), few), skewed]),
            "test": np.arange(test) % self.classes,
        }
        return {
            split: LabelledImages(
                ArraySource(self._draw(of, camera, rng)),
                [int(label) for label in of],
                [f"{self.names[index]} {split} {number}" for number in range(len(of))],  # each a patient of its own
            )
            for split, of in labels.items()
        }

    def _draw(self, labels: NDArray[np.int64], camera: Camera, rng: np.random.Generator) -> Images:
        """Return images (n, S, S, 3) of lesions on skin, as the camera of a site records them."""
        n, size = len(labels), self.image_size
        y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]

        def per_image(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return values.reshape(n, 1, 1)

        dx = x - per_image(rng.uniform(-0.2, 0.2, n))
        dy = (y - per_image(rng.uniform(-0.2, 0.2, n))) * per_image(rng.uniform(0.8, 1.25, n))
        angle, radius = np.arctan2(dy, dx), np.hypot(dx, dy)
        border = per_image(rng.uniform(0.35, 0.6, n))
        for waves in (3, 5, 8):
            amplitude = np.take(BORDERS, labels) * rng.uniform(0.3, 1.0, n) / waves**0.5
            border = border + per_image(amplitude) * np.sin(waves * angle + per_image(rng.uniform(0, 6.28, n)))
        mask = 1 / (1 + np.exp((radius - border) / 0.04))
        grain = rng.normal(size=(n, size // 4 + 1, size // 4 + 1)).repeat(4, 1).repeat(4, 2)[:, :size, :size]
        texture = per_image(np.take(TEXTURES, labels)) * grain
        colour = COLOURS[labels] * rng.uniform(0.75, 1.25, (n, 1)) + rng.normal(0, 0.03, (n, 3))
        skin = SKIN + rng.normal(0, 0.03, (n, 3))
        image = skin[:, None, None] + mask[..., None] * (colour[:, None, None] + texture[..., None])
        image = image + rng.normal(0, self.noise, image.shape)
        light = camera.light[0] * x + camera.light[1] * y
        image = np.clip(image, 0.01, 1) ** camera.gamma * camera.gains + camera.offsets + light[..., None]
        pixels: Images = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        return pixels
