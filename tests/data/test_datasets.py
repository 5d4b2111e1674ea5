"""The transform of an image against open_clip's own, for every resize mode and interpolation."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import v2

from pfedst.data.datasets import SiteDataset
from pfedst.data.transforms import ImageTransform, evaluation_transform
from pfedst.encoders.spec import Interpolation, Preprocessing, ResizeMode

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("mode", get_args(ResizeMode))
@settings(max_examples=15, deadline=None)
@given(height=st.integers(5, 90), width=st.integers(5, 90))
def test_an_image_is_prepared_as_open_clip_does(interpolation, mode, height, width) -> None:
    own = evaluation_transform(Preprocessing(32, MEAN, STD, interpolation, mode))(picture(height, width))
    theirs = image_transform_v2(PreprocessCfg(32, "RGB", MEAN, STD, interpolation, mode), is_train=False)
    assert own.shape == (3, 32, 32)
    assert torch.allclose(own, theirs(picture(height, width)), atol=1e-6)


def test_a_wide_image_shows_its_ends_by_mode() -> None:
    """Ends that are white on black: cut off by `shortest`, seen by `squash`, between black bars by `longest`."""
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, :8] = wide[:, -8:] = 255
    found = {}
    for mode in get_args(ResizeMode):
        transform = evaluation_transform(Preprocessing(16, (0.0,) * 3, (1.0,) * 3, "bilinear", mode))
        found[mode] = transform(Image.fromarray(wide))[0]
    assert found["shortest"].max() == 0
    assert found["squash"][:, 0].min() > 0.9
    assert found["longest"][8, 0] > 0.9
    assert found["longest"][:5].max() == found["longest"][-5:].max() == 0


class Pictures:
    """Images in memory."""

    def __init__(self, *images):
        self.images = images

    def load(self, index):
        return self.images[index]


def trained_on(image, preprocessing, augmentation, seed=0):
    """What a training step sees of an image (3, S, S)."""
    dataset = SiteDataset(Pictures(image), [0], ImageTransform(preprocessing, augmentation))
    return dataset.images([0], [seed])[0]


@pytest.mark.parametrize("mode", get_args(ResizeMode))
def test_flips_keep_the_resize_mode(mode) -> None:
    preprocessing, image = Preprocessing(16, MEAN, STD, "bicubic", mode), picture(21, 40)
    plain = evaluation_transform(preprocessing)(image)
    expected = [plain, plain.flip(-1), plain.flip(-2), plain.flip(-1, -2)]
    found = [trained_on(image, preprocessing, "flips", seed) for seed in range(16)]
    assert {[torch.equal(one, other) for other in expected].index(True) for one in found} == {0, 1, 2, 3}


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    preprocessing = Preprocessing(16, MEAN, STD)
    images = [picture(20 + index, 40) for index in range(6)]
    for augmentation in ("flips", "crops", v2.RandAugment()):
        dataset = SiteDataset(Pictures(*images), [0] * 6, ImageTransform(preprocessing, augmentation))
        whole = dataset.images(range(6), range(6))
        for index, image in enumerate(images):
            assert torch.equal(whole[index], trained_on(image, preprocessing, augmentation, index)), augmentation
