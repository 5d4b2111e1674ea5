"""A fake folder SITE/{train,test}/CLASS/*.png of random images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SITES = ("clinic_a", "clinic_b")
CLASSES = ("benign", "malignant", "unclear")


def image(path: Path, seed: int, size: int = 40) -> Path:
    """One random image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size + 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make(root: Path, train: int = 6, test: int = 4) -> Path:
    """Two sites, three classes."""
    seed = 0
    for site in SITES:
        for split, count in (("train", train), ("test", test)):
            for name in CLASSES:
                for number in range(count):
                    seed += 1
                    image(root / site / split / name / f"{number}.{'png' if number % 2 else 'jpg'}", seed)
    return root
