"""Finished runs and images that the tests of this package share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.runs import fitted


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of pFedST over three sites; tests only read it."""
    return fitted(tmp_path_factory.mktemp("inference") / "runs", "PFedST", 3, "--coordinator.share_class_counts=true")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Nine image files of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    paths = [folder / f"image_{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        pixels = draws.integers(0, 255, (40 + 3 * number, 44, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths
