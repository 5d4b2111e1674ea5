"""One rule for the range of grey values: the same pixels whatever the source, caches and checks included."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pfedst.data import FolderSites, HuggingFaceSites, ManifestSites, SyntheticSites
from pfedst.data.grey_scale import GreyScale, scaled
from pfedst.data.limits import NamelessError
from pfedst.data.sources import FileSource
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from tests.fake_data.dicom.data import make as make_dicom
from tests.fake_data.folder.data import image
from tests.fake_data.tiff.data import make as make_tiff

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
TWELVE_BITS = (0.0, 4095.0)
PLACES = [(site, split, name) for site in "ab" for split in ("train", "test") for name in ("no", "yes") for _ in "123"]


def levels(seed: int, most: int):
    """Grey values 0 to `most`."""
    values = np.random.default_rng(seed).integers(0, most, (20, 24), endpoint=True)
    values[0, :2] = 0, most
    return values


def tree(root, write, suffix: str):
    """Two sites, two classes; `write` gets the path and the number of the image."""
    for number, (site, split, name) in enumerate(PLACES):
        path = root / site / split / name / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, number)
    return root


def twelve_in_sixteen(path, number: int):
    return make_tiff(path, levels(number, 4095).astype("u2"), order="<>"[number % 2])


def floats(path, number: int):
    return make_tiff(path, levels(number, 1000 + number).astype("f4"))


@pytest.fixture
def folder(tmp_path):
    return tree(tmp_path / "tree", twelve_in_sixteen, ".tif")


def pixels(module):
    """Pixels of all images, in the order of the files."""
    return {
        (site, split, row): np.asarray(part.source.load(row))[..., 0]
        for site, split, part in module.found().parts()
        for row in range(len(part.labels))
    }


# -- the rule ----------------------------------------------------------------------------------------------------------


@given(
    arrays(st.sampled_from(["u1", "u2", "i2", "i4", "f4"]), array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
)
def test_a_given_range_is_linear_between_black_and_white(values, low, width) -> None:
    if not np.isfinite(values).all():
        return
    found = scaled(values, (low, low + width))
    fractions = (values.astype(np.float64) - low) / ((low + width) - low)
    assert found.dtype == np.uint8
    assert (found[values <= low] == 0).all()
    assert (found[values >= low + width] == 255).all()
    assert (np.abs(found - 255 * fractions.clip(0, 1)) <= 0.5 + 1e-6).all()


def test_large_images_are_converted_in_parts(monkeypatch) -> None:
    values = levels(0, 60_000).astype(np.float32)
    whole = scaled(values, (0, 50_000))
    monkeypatch.setattr("pfedst.data.grey_scale.BLOCK", 100)
    assert np.array_equal(scaled(values, (0, 50_000)), whole)


@pytest.mark.parametrize(("most", "refused"), [(0, False), (1, True), (4095, True), (4096, False), (65535, False)])
def test_a_declared_range_that_is_hardly_used_is_refused(most, refused) -> None:
    values = levels(0, most).astype(np.uint16)
    if refused:
        with pytest.raises(NamelessError, match=f"its values reach {most} of 65535"):
            GreyScale().to_8_bits(values, (0, 65535), "a")
    else:
        assert np.array_equal(GreyScale().to_8_bits(values, (0, 65535), "a"), values // 256)
    assert GreyScale((0, max(most, 1))).to_8_bits(values, (0, 65535), "a").max() == (255 if most else 0)


# -- every source ------------------------------------------------------------------------------------------------------


def test_all_sources_give_the_same_pixels(tmp_path, folder) -> None:
    found = pixels(FolderSites(folder, pixel_range=TWELVE_BITS, validation_fraction=0.0))
    expected = {number: np.rint(levels(number, 4095) * 255 / 4095) for number in range(len(PLACES))}
    assert sorted(map(np.ndarray.tolist, found.values())) == sorted(map(np.ndarray.tolist, expected.values()))
    rows = [f"{site}/{split}/{name}/{number}.tif" for number, (site, split, name) in enumerate(PLACES)]
    lines = [f"{path},{path.split('/')[2]},{path.split('/')[0]},{path.split('/')[1]}" for path in rows]
    (folder / "manifest.csv").write_text("\n".join(["path,label,site,split", *lines]))
    of_table = ManifestSites(folder / "manifest.csv", pixel_range=TWELVE_BITS, validation_fraction=0.0)
    assert all(np.array_equal(found[place], image) for place, image in pixels(of_table).items())

    def dicom(path, number: int):
        return make_dicom(path, levels(number, 4095).astype("u2"))

    of_dicom = FolderSites(tree(tmp_path / "dicom", dicom, ".dcm"), pixel_range=TWELVE_BITS, validation_fraction=0.0)
    assert all(np.array_equal(found[place], image) for place, image in pixels(of_dicom).items())


def test_so_does_a_set_of_hugging_face(tmp_path) -> None:
    pytest.importorskip("datasets")
    from tests.fake_data.image_folder.data import make as make_image_folder
    from tests.fake_data.image_folder.data import save

    root = make_image_folder(tmp_path / "tree")
    files = sorted(root.rglob("*.png"))
    for number, path in enumerate(files):
        Image.fromarray(levels(number, 4095).astype(np.uint16)).save(path)
    for place in (root, save(root, tmp_path / "saved", None)):
        found = pixels(HuggingFaceSites(place, pixel_range=TWELVE_BITS, validation_fraction=0.0)).values()
        expected = [np.rint(levels(number, 4095) * 255 / 4095) for number in range(len(files))]
        assert sorted(map(np.ndarray.tolist, found)) == sorted(map(np.ndarray.tolist, expected))
        with pytest.raises(DataError, match=r"(?s)row 0 .*its values reach 4095 of 65535.*--data\.pixel_range"):
            HuggingFaceSites(place).prepare(SMALL)


# -- what the user sees ------------------------------------------------------------------------------------------------


def test_without_the_option_all_are_refused_with_its_remedy(folder) -> None:
    with pytest.raises(DataError) as caught:
        FolderSites(folder).prepare(SMALL)
    message = str(caught.value)
    assert message.startswith("24 of 24 images cannot be read:\n")
    assert "a/train/no/0.tif: its values reach 4095 of 65535" in message
    assert "set --data.pixel_range (--pixel_range of pfedst data preprocess), '[0, 4095]' or '[0, 65535]'" in message
    assert "Where no other remedy is named" in message


def test_a_guess_is_reported_once_for_a_data_set(tmp_path, caplog) -> None:
    root = tree(tmp_path / "tree", floats, ".tif")
    module = FolderSites(root, cache_folder=tmp_path / "cache")
    with caplog.at_level(logging.WARNING, "pfedst"):
        module.prepare(SMALL)
        list(module.train_loader("a", 0))
    told = [record.getMessage() for record in caplog.records if "declares no range" in record.getMessage()]
    assert len(told) == 1
    assert ".tif declares no range of grey values: its smallest value (0)" in told[0]
    assert "--data.pixel_range" in told[0]
    assert module.report is not None
    finding = next(finding for finding in module.report.findings if finding.code == "guessed_pixel_range")
    assert finding.message.endswith("become black and white (12 a, 12 b)")
    again = FolderSites(root, cache_folder=tmp_path / "cache")
    again.prepare(SMALL)  # from what the cache's folder knows
    assert again.report is not None
    assert [f.message for f in again.report.findings if f.code == "guessed_pixel_range"] == [finding.message]


@pytest.mark.parametrize(("most", "told"), [(16_383, 1), (16_384, 0)])
def test_dim_images_are_reported_once_for_a_data_set(tmp_path, caplog, most, told) -> None:
    def dim(path, number: int):
        Image.fromarray(levels(number, most).astype(np.uint16)).save(path)

    def dim_colours(path, number: int):
        make_tiff(path, np.dstack([levels(number, most)] * 3).astype("u2"))

    for kind in (dim, dim_colours):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pfedst"):
            FolderSites(tree(tmp_path / kind.__name__, kind, ".tif")).prepare(SMALL)
        assert len([record for record in caplog.records if "is dim" in record.getMessage()]) == told


def test_nothing_is_guessed_with_the_option(tmp_path, caplog) -> None:
    module = FolderSites(tree(tmp_path, floats, ".tif"), pixel_range=(0, 1100))
    with caplog.at_level(logging.WARNING, "pfedst"):
        module.prepare(SMALL)
    assert not [record for record in caplog.records if "declares no range" in record.getMessage()]
    assert module.report is not None
    assert "guessed_pixel_range" not in {finding.code for finding in module.report.findings}


def test_a_range_without_effect_is_an_error(tmp_path) -> None:
    root = tree(tmp_path, lambda path, number: image(path, number), ".png")
    with pytest.raises(ConfigurationError, match=r"--data\.pixel_range \[0, 9\] has no effect: every image has 8 bits"):
        FolderSites(root, pixel_range=(0, 9)).prepare(SMALL)
    with pytest.raises(ConfigurationError, match=r"--data\.pixel_range has no effect on these images"):
        SyntheticSites(pixel_range=(0, 9)).prepare(SMALL)


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan")), (0.0, float("inf")), (1.0,)])
def test_ranges_that_are_none(wrong) -> None:
    with pytest.raises(ConfigurationError, match=r"--data\.pixel_range \[.*\]: must be two numbers"):
        SyntheticSites(pixel_range=wrong)


# -- caches ------------------------------------------------------------------------------------------------------------


def test_neither_taps_nor_scans_of_another_range_are_used(tmp_path, folder) -> None:
    def keys(pixel_range):
        module = FolderSites(folder, pixel_range=pixel_range, cache_folder=tmp_path / "cache")
        module.prepare(SMALL)
        return module.fingerprint, {key for of_image in module._keys("a", "train") for key, *_ in of_image}

    one, other = keys(TWELVE_BITS), keys((0.0, 8191.0))
    assert one[0] != other[0]
    assert not one[1] & other[1]
    assert one == keys(TWELVE_BITS)
    assert len(list((tmp_path / "cache" / "looks").iterdir())) == 2


def test_images_of_a_declared_range_keep_their_hash(tmp_path) -> None:
    file = image(tmp_path / "a.png", 0)
    assert FileSource([file]).digest(0) == FileSource([file], GreyScale()).digest(0)
    assert FileSource([file]).digest(0) != FileSource([file], GreyScale((0, 1))).digest(0)
