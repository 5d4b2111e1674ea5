"""The transform of an image against open_clip's own, for every resize mode and interpolation."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pfedst.data.datasets import evaluation_transform, training_transform
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


@pytest.mark.parametrize("mode", get_args(ResizeMode))
def test_flips_keep_the_resize_mode(mode) -> None:
    preprocessing, image = Preprocessing(16, MEAN, STD, "bicubic", mode), picture(20, 40)
    flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    flipped += [image, image.transpose(Image.Transpose.ROTATE_180)]
    expected = [evaluation_transform(preprocessing)(one) for one in flipped]
    for _ in range(8):
        found = training_transform(preprocessing, "flips")(image)
        assert any(torch.equal(found, one) for one in expected)
