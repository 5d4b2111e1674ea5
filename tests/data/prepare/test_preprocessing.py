"""Small images instead of large ones: pixels by hand, and a tree that survives whatever interrupts it."""

import json
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pfedst.data.prepare import preprocessing
from pfedst.data.prepare.preprocessing import PreprocessingOptions, colour_constancy, preprocess_image, preprocess_tree
from pfedst.data.sources import FileSource
from pfedst.data.transforms import evaluation_transform
from pfedst.encoders import Preprocessing, spec
from pfedst.errors import ConfigurationError, DataError
from tests.fake_data.folder.data import image, make
from tests.fake_data.tiff.data import make as make_tiff

SMALL = PreprocessingOptions(shorter_side=16)


def flat(*colour, size=(4, 6)):
    return np.full((*size, 3), colour, np.uint8)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def unclipped(pixels):
    """The published formula, in floating point, neither clipped nor rounded."""
    light = np.mean(pixels.astype(np.float64) ** 6, axis=(0, 1)) ** (1 / 6)
    return pixels / (light / np.linalg.norm(light) * np.sqrt(3))


# -- colour constancy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_grey_stays_as_it_is(level) -> None:
    assert np.array_equal(colour_constancy(flat(level, level, level)), flat(level, level, level))


def test_a_grey_picture_with_structure_stays_as_it_is() -> None:
    grey = np.repeat(noise(9, 7)[..., :1], 3, axis=-1)
    assert np.array_equal(colour_constancy(grey), grey)


def test_a_flat_cast_becomes_grey() -> None:
    # the root mean square of 200, 100, 100 is sqrt(20000) = 141.4
    assert np.array_equal(colour_constancy(flat(200, 100, 100)), flat(141, 141, 141))


def test_a_highlight_stays_bright_where_a_plain_cast_would_turn_it_dark() -> None:
    pixels = flat(200, 100, 100, size=(60, 60))
    pixels[0, 0] = 255
    # one pixel in 3600 moves the norms a little: a sixth power counts (255 / 100)^6 = 275 times as much
    wrapped = unclipped(pixels).astype(np.int64).astype(np.uint8)
    assert unclipped(pixels)[0, 0, 1] > 340
    assert wrapped[0, 0, 1] < 110
    assert colour_constancy(pixels)[0, 0, 1:].tolist() == [255, 255]
    assert colour_constancy(pixels)[0, 0, 0] > 170


def test_a_channel_without_light_stays_without() -> None:
    # the root mean square of 255, 0, 0 is 255 / sqrt(3) = 147.2
    assert np.array_equal(colour_constancy(flat(255, 0, 0)), flat(147, 0, 0))


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12).map(lambda shape: (*shape, 3))))
def test_constancy_is_the_published_formula_and_keeps_the_order_of_levels(pixels) -> None:
    found = colour_constancy(pixels)
    assert found.dtype == np.uint8
    if pixels.any(axis=(0, 1)).all():
        # by pixels instead of by levels, so that sums differ in the last bits
        assert np.abs(found - np.clip(unclipped(pixels), 0, 255)).max() <= 0.5 + 1e-9
    for channel in range(3):
        order = np.argsort(pixels[..., channel], axis=None)
        assert (np.diff(found[..., channel].ravel()[order].astype(int)) >= 0).all()


# -- one image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((1024, 768), "none", (298, 224)),  # 298.67, cut as torchvision and FLamby do
        ((768, 1024), "none", (224, 298)),
        ((600, 450), "none", (298, 224)),
        ((1024, 1024), "none", (224, 224)),
        ((224, 300), "none", (224, 300)),
        ((100, 80), "none", (100, 80)),
        ((3000, 90), "none", (3000, 90)),
        ((1024, 768), "square", (224, 224)),
        ((100, 80), "square", (80, 80)),
    ],
)
def test_sizes(size, crop, expected) -> None:
    assert preprocess_image(Image.new("RGB", size), PreprocessingOptions(crop=crop)).size == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(8, 60), st.sampled_from(["none", "square"]))
@example(113, 111, 53, "none")
def test_any_size(width, height, side, crop) -> None:
    made = preprocess_image(Image.new("RGB", (width, height)), PreprocessingOptions(side, crop))
    assert min(made.size) == min(side, width, height)  # never larger, and never a pixel short
    scale = min(made.size) / min(width, height)
    longer = min(made.size) if crop == "square" else max(width, height) * scale
    assert longer - 1 < max(made.size) <= longer + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(17, 90), st.integers(17, 90))
def test_an_encoder_sees_the_very_tensor_that_the_original_gives(height, width) -> None:
    picture = Image.fromarray(noise(height, width))
    transform = evaluation_transform(Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    for crop in ("none", "square"):
        made = preprocess_image(picture, PreprocessingOptions(16, crop))
        assert torch.equal(transform(made), transform(picture))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(17, 90),
    st.integers(17, 90),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["shortest", "longest", "squash"]),
)
def test_with_the_encoders_own_filter_and_resize_mode_too(height, width, interpolation, mode) -> None:
    picture = Image.fromarray(noise(height, width))
    transform = evaluation_transform(Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), interpolation, mode))
    made = preprocess_image(picture, PreprocessingOptions(16, interpolation=interpolation, resize_mode=mode))
    assert torch.equal(transform(made), transform(picture))


def test_the_words_are_those_of_the_encoders() -> None:
    assert (get_args(preprocessing.Interpolation), get_args(preprocessing.ResizeMode)) == (
        get_args(spec.Interpolation),
        get_args(spec.ResizeMode),
    )


def test_a_tree_of_before_these_options_goes_on(source, sequential, tmp_path) -> None:
    target = tmp_path / "small"
    shutil.copytree(sequential, target)
    file = target / "preprocessing.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("interpolation", "resize_mode")}
    file.write_text(json.dumps(old))
    assert preprocess_tree(source, target, SMALL).written == 0
    with pytest.raises(DataError, match="made with resize_mode shortest, and this run has squash"):
        preprocess_tree(source, target, replace(SMALL, resize_mode="squash"))


def test_constancy_comes_after_resizing_and_cropping() -> None:
    picture = Image.fromarray(noise(60, 90))
    small = np.asarray(picture.resize((30, 20), Image.Resampling.BICUBIC))[:, 5:25]
    made = np.asarray(preprocess_image(picture, PreprocessingOptions(20, "square", colour_constancy=True)))
    assert np.array_equal(made, np.rint(np.clip(unclipped(small), 0, 255)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shorter_side": 0},
        {"crop": "circle"},
        {"format": "gif"},
        {"interpolation": "nearest"},
        {"resize_mode": "fit"},
        {"window": (40.0, 0.0)},
        {"window": (float("nan"), 1.0)},
        {"pixel_range": [1.0, 1.0]},
    ],
)
def test_options_out_of_range(wrong) -> None:
    option, value = next(iter(wrong.items()))
    with pytest.raises(ConfigurationError) as caught:
        PreprocessingOptions(**wrong)
    assert str(caught.value).startswith(f"--{option} {value}: must be ")


def test_a_window_is_a_range_by_centre_and_width(tmp_path) -> None:
    values = np.random.default_rng(0).integers(-1000, 3000, (8, 9))
    make_tiff(tmp_path / "hounsfield" / "a.tif", values.astype("i2"))
    made = []
    for name, options in {"window": {"window": (40, 400)}, "range": {"pixel_range": (-160, 240)}}.items():
        preprocess_tree(tmp_path / "hounsfield", tmp_path / name, PreprocessingOptions(8, **options))
        with Image.open(tmp_path / name / "a.png") as written:
            made.append(np.asarray(written)[..., 0])
    assert np.array_equal(*made)
    assert np.array_equal(made[0], np.rint(((values + 160) / 400).clip(0, 1) * 255))
    words = ["window [40, 400]", "has None", "another TARGET"]
    refused(words, tmp_path / "hounsfield", tmp_path / "window", PreprocessingOptions(8, pixel_range=(-160, 240)))
    with pytest.raises(ConfigurationError, match="--window and --pixel_range both"):
        PreprocessingOptions(window=(40, 400), pixel_range=(-160, 240))


@pytest.mark.parametrize("options", [{"window": (40, 400)}, {"pixel_range": (-160, 240)}])
def test_a_range_without_effect_is_an_error_before_anything_is_written(source, tmp_path, options) -> None:
    option = next(iter(options))
    with pytest.raises(ConfigurationError, match=f"--{option} has no effect: every image has 8 bits"):
        preprocess_tree(source, tmp_path / "small", PreprocessingOptions(16, **options))
    assert not (tmp_path / "small").exists()


# -- a tree ----------------------------------------------------------------------------------------------------


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(words, *arguments, **options) -> None:
    with pytest.raises(DataError) as caught:
        preprocess_tree(*arguments, **options)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 images, and what is none."""
    root = make(tmp_path_factory.mktemp("source") / "images")
    (root / "labels.csv").write_text("no image")
    image(root / ".trash" / "a.png", 0)
    (root / "clinic_a" / "._0.jpg").write_bytes(b"of another system")
    return root


@pytest.fixture(scope="module")
def sequential(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("sequential") / "small"
    report = preprocess_tree(source, target, SMALL, workers=1)
    assert (report.written, report.skipped) == (60, 0)
    return target


def test_names_are_kept_and_images_are_small(source, sequential) -> None:
    names = {str(path.relative_to(source)) for path in source.rglob("[0-9]*.*g")}
    assert len(names) == 60
    assert set(content(sequential)) == {*names, "preprocessing.json"}
    picture = FileSource([source / "clinic_a/train/benign/1.png"]).load(0)
    made = FileSource([sequential / "clinic_a/train/benign/1.png"]).load(0)
    assert made.size == (18, 16)
    assert np.array_equal(made, preprocess_image(picture, SMALL))
    with Image.open(sequential / "clinic_a/train/benign/0.jpg") as jpeg:
        assert jpeg.format == "JPEG"
        assert [layer[1:3] for layer in jpeg.layer] == [(1, 1)] * 3  # colour is not subsampled


def test_what_the_tree_says_of_itself(source, sequential) -> None:
    assert json.loads((sequential / "preprocessing.json").read_text()) == {
        "rule": 2, "source": "images", "shorter_side": 16, "crop": "none", "colour_constancy": False, "window": None,
        "pixel_range": None, "format": "same",
        "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip
    report = preprocess_tree(source, sequential, SMALL)
    assert (report.written, report.skipped) == (0, 60)
    of_images = {name: size for name, size in content(sequential).items() if name != "preprocessing.json"}
    assert report.bytes_before == sum(len((source / name).read_bytes()) for name in of_images)
    assert report.bytes_after == sum(map(len, of_images.values()))


def test_threads_change_nothing(source, sequential, tmp_path) -> None:
    assert preprocess_tree(source, tmp_path, SMALL, workers=2).written == 60
    assert content(tmp_path) == content(sequential)


def test_an_interrupted_run_goes_on(source, sequential, tmp_path) -> None:
    target = tmp_path / "small"
    shutil.copytree(sequential, target)
    lost = sorted(target.rglob("*.jpg"))[:7]
    for path in lost:
        path.unlink()
    half = target / lost[0].parent / f".{lost[0].name}.part"
    half.write_bytes(b"half")
    emptied = next(target.rglob("*.png"))
    emptied.write_bytes(b"")
    report = preprocess_tree(source, target, SMALL, workers=1)
    assert (report.written, report.skipped) == (8, 52)
    assert content(target) == content(sequential)


def test_what_cannot_be_written_is_said(source, sequential, tmp_path) -> None:
    target = tmp_path / "small"
    shutil.copytree(sequential, target)
    shutil.rmtree(target / "clinic_b")
    (target / "clinic_b").write_text("in the way")
    refused([str(target / "clinic_b"), "run again", "finished images are kept"], source, target, SMALL, workers=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shorter_side": 32}, ["shorter_side 16", "has 32", "another TARGET"]),
        ({"shorter_side": 16, "colour_constancy": True}, ["colour_constancy False", "has True"]),
    ],
)
def test_a_target_with_other_options(source, sequential, options, words) -> None:
    before = content(sequential)
    refused(words, source, sequential, PreprocessingOptions(**options))
    assert content(sequential) == before


def test_targets_that_cannot_be(source, sequential, tmp_path) -> None:
    for target in (source, source / "small", source / "clinic_a" / ".." / "small"):
        refused(["lies in", "outside"], source, target, SMALL)
    other = make(tmp_path / "others", 1, 1)
    refused(["source images", "has others"], other, sequential, SMALL)
    refused(["holds clinic_a but no preprocessing.json"], source, other, SMALL)
    refused(["is no folder"], source, other / "clinic_a/train/benign/0.jpg", SMALL)
    (tmp_path / "preprocessing.json").write_text("{")
    refused(["preprocessing.json is damaged"], source, tmp_path, SMALL)


def test_sources_that_cannot_be(tmp_path) -> None:
    refused(["SOURCE", "no such folder"], tmp_path / "none", tmp_path / "small", SMALL)
    (tmp_path / "empty").mkdir()
    refused(["holds no image"], tmp_path / "empty", tmp_path / "small", SMALL)
    with pytest.raises(ConfigurationError, match="--workers -1"):
        preprocess_tree(tmp_path, tmp_path / "small", SMALL, workers=-1)


@pytest.mark.parametrize(("form", "other"), [("png", "a.jpg"), ("same", "a.png"), ("jpeg", "a.jpg")])
def test_two_images_with_one_name(tmp_path, form, other) -> None:
    image(tmp_path / "images" / "a.tif", 0)
    image(tmp_path / "images" / other, 1)
    options = PreprocessingOptions(format=form)
    refused(["a.tif", other, "rename"], tmp_path / "images", tmp_path / "small", options)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("same", ["a.JPG", "b.png", "c.png"]),
        ("png", ["a.png", "b.png", "c.png"]),
        ("jpeg", ["a.JPG", "b.jpg", "c.jpg"]),
    ],
)
def test_formats(tmp_path, form, names) -> None:
    for name in ("a.JPG", "b.png", "c.tiff"):
        image(tmp_path / "images" / name, 0)
    preprocess_tree(tmp_path / "images", tmp_path / "small", PreprocessingOptions(format=form), workers=1)
    made = sorted(path for path in (tmp_path / "small").iterdir() if path.suffix != ".json")
    assert [path.name for path in made] == names
    for path in made:
        with Image.open(path) as picture:
            assert picture.format == ("PNG" if path.suffix == ".png" else "JPEG")


def test_images_are_turned_and_say_nothing_of_the_patient(tmp_path) -> None:
    picture = Image.fromarray(noise(40, 60))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "Jane Doe"
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.jpg", exif=exif, comment=b"Jane Doe")
    picture.save(tmp_path / "images" / "b.png", exif=exif)
    preprocess_tree(tmp_path / "images", tmp_path / "small", SMALL, workers=1)
    for path in (tmp_path / "small" / "a.jpg", tmp_path / "small" / "b.png"):
        assert FileSource([path]).load(0).size == (16, 24)
        assert b"Jane" not in path.read_bytes()


def test_bad_images_do_not_stop_the_others(tmp_path) -> None:
    root = make(tmp_path / "images")
    good = content(root / "clinic_b/train")
    for path in (root / "clinic_a").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-300])
    refused(
        ["15 of 60 images cannot be read", "clinic_a/test/benign/1.png", "and 5 more"],
        root,
        tmp_path / "small",
        SMALL,
        workers=1,
    )
    assert set(content(tmp_path / "small/clinic_b/train")) == set(good)
    assert len(content(tmp_path / "small")) == 45 + 1
    for path in (root / "clinic_a").rglob("*.png"):
        image(path, 1)
    report = preprocess_tree(root, tmp_path / "small", SMALL, workers=1)
    assert (report.written, report.skipped) == (15, 45)


def test_a_link_to_a_folder_is_followed_but_not_in_a_circle(tmp_path) -> None:
    image(tmp_path / "elsewhere" / "a.png", 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "site").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    preprocess_tree(tmp_path / "images", tmp_path / "small", SMALL, workers=1, outside_files=True)
    assert set(content(tmp_path / "small")) == {"site/a.png", "preprocessing.json"}
