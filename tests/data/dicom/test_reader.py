"""DICOM files become the grey levels and colours that a screen would show, or an error with a remedy."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import warnings
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfedst.data.dicom.reader import DicomHeader, is_dicom, load_dicom, read_header
from pfedst.errors import DataError

pydicom = pytest.importorskip("pydicom", minversion="3")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing  # noqa: E402

from tests.fake_data.dicom.data import make, table  # noqa: E402

SAMPLES = Path(pydicom.__file__).parent / "data/test_files"


@pytest.fixture(autouse=True)
def quiet():
    """pydicom warns of what these files do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def grey(file, window=None):
    """The levels of a one-row image, equal in all three channels."""
    image = load_dicom(file, window)
    assert image.mode == "RGB"
    levels = np.asarray(image)
    assert levels.dtype == np.uint8
    assert (levels == levels[..., :1]).all()
    return levels[0, :, 0].tolist()


def u2(*values):
    return np.array([values], "<u2")


def i2(*values):
    return np.array([values], "<i2")


def u1(*values):
    return np.array([values], "u1")


RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}
IDENTITY = {"RescaleSlope": 1, "RescaleIntercept": 0}

# every expected level was worked out by hand, as the comments say
GREY = {
    # HU: -1024 -160 -60 0 240 2976; (HU - 40) / 400 + 0.5: below, 0, 0.25, 0.4, 1, above; times 255
    "given window, rescaled units": (u2(0, 864, 964, 1024, 1264, 4000), RESCALED, (40, 400), [0, 0, 64, 102, 255, 255]),
    "given window instead of the file's": (u2(10, 15, 20), {"WindowCenter": 99, "WindowWidth": 9}, (15, 10), [0, 128, 255]),
    "slope 2, given window": (i2(-5, 0, 5), {"RescaleSlope": 2, "RescaleIntercept": 1}, (1, 20), [0, 128, 255]),
    "slope without intercept": (u2(0, 5, 10), {"RescaleSlope": 2}, (10, 20), [0, 128, 255]),
    "narrow given window": (u2(0, 1, 2), {"RescaleSlope": 0.1, "RescaleIntercept": 0}, (0.1, 0.2), [0, 128, 255]),
    # LINEAR: (x - (c - 0.5)) / (w - 1) + 0.5 with c = 10, w = 2: 9.5 and 1
    "own window, linear": (u2(8, 9, 10, 11), {"WindowCenter": 10, "WindowWidth": 2}, None, [0, 0, 255, 255]),
    "linear of width 1 is a threshold": (u2(8, 9, 10, 11), {"WindowCenter": 10, "WindowWidth": 1}, None, [0, 0, 255, 255]),
    "linear_exact": (u2(8, 9, 10, 11), {"WindowCenter": 10, "WindowWidth": 2, "VOILUTFunction": "LINEAR_EXACT"}, None, [0, 0, 128, 255]),
    # 1 / (1 + exp(-4 (x - 10) / 4)): e^2 = 7.389, e^-1 = 0.3679; 255 / 8.389 = 30.4, 255 / 1.3679 = 186.4
    "sigmoid": (u2(8, 10, 11, 60000), {"WindowCenter": 10, "WindowWidth": 4, "VOILUTFunction": "SIGMOID"}, None, [30, 128, 186, 255]),
    "the first of two windows": (u2(8, 9, 10, 11), {"WindowCenter": [10, 100], "WindowWidth": [2, 50]}, None, [0, 0, 255, 255]),
    "empty window": (u2(0, 100, 255), {"WindowCenter": "", "WindowWidth": ""}, None, [0, 100, 255]),
    "own window in rescaled units": (u2(1032, 1033, 1034), {**RESCALED, "WindowCenter": 10, "WindowWidth": 2}, None, [0, 0, 255]),
    "empty function is linear": (u2(9, 10), {"WindowCenter": 10, "WindowWidth": 2, "VOILUTFunction": ""}, None, [0, 255]),
    "smallest to largest, signed": (i2(-100, 0, 100, 155), {}, None, [0, 100, 200, 255]),
    "smallest to largest, rescaled": (u2(0, 51, 255), {"RescaleSlope": 3, "RescaleIntercept": -7}, None, [0, 51, 255]),
    # rescaled: 0 -51 -255, so stored 0 is the brightest
    "negative slope": (u2(0, 51, 255), {"RescaleSlope": -1, "RescaleIntercept": 0}, None, [255, 204, 0]),
    "negative slope, own window": (u2(0, 51, 255), {"RescaleSlope": -1, "RescaleIntercept": 0, "WindowCenter": -127, "WindowWidth": 256}, None, [255, 204, 0]),
    "all equal": (u2(7, 7), {}, None, [0, 0]),
    "32 bits": (np.array([[0, 2**31, 2**32 - 1]], "<u4"), {}, None, [0, 128, 255]),
    "12 of 16 bits": (u2(0, 4095), {"BitsStored": 12, "HighBit": 11}, (2047.5, 4095), [0, 255]),
    "padding": (i2(-2000, 0, 51, 255), {"PixelPaddingValue": ("SS", -2000)}, None, [0, 0, 51, 255]),
    "padding written as unsigned": (i2(-2000, 0, 51, 255), {"PixelPaddingValue": ("US", 63536)}, None, [0, 0, 51, 255]),
    "padding range": (i2(-2000, -1995, 0, 255), {"PixelPaddingValue": ("SS", -2000), "PixelPaddingRangeLimit": ("SS", -1990)}, None, [0, 0, 0, 255]),
    "padding, rescaled": (i2(-2000, 0, 51, 255), {"PixelPaddingValue": ("SS", -2000), **RESCALED}, None, [0, 0, 51, 255]),
    "nothing but padding": (i2(-2000, -2000), {"PixelPaddingValue": ("SS", -2000)}, None, [0, 0]),
    "inverted": (u2(0, 51, 255), {"PhotometricInterpretation": "MONOCHROME1"}, None, [255, 204, 0]),
    # MONOCHROME1 is padded at its bright end, which is the dark one of the screen
    "inverted, padded": (u2(0, 51, 255, 4095), {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": ("US", 4095)}, None, [255, 204, 0, 0]),
    "inverted, window": (u2(5, 10, 20), {"PhotometricInterpretation": "MONOCHROME1"}, (10, 20), [191, 128, 0]),
    "8 bits as they are": (u1(10, 60, 200), {}, None, [10, 60, 200]),
    "8 bits, rescale of nothing": (u1(10, 60, 200), IDENTITY, None, [10, 60, 200]),
    "8 bits, inverted": (u1(10, 60, 200), {"PhotometricInterpretation": "MONOCHROME1"}, None, [245, 195, 55]),
    "8 bits, window": (u1(10, 60, 200), {}, (60, 100), [0, 128, 255]),
    "8 bits, rescaled": (u1(10, 61, 265 - 10), {"RescaleSlope": 2, "RescaleIntercept": 0}, None, [0, 53, 255]),
    "8 bits, signed": (np.array([[-128, 127]], "i1"), {}, None, [0, 255]),
    # index = value - 2, the ends go on: 10, 10, 20, 4095, 4095
    "modality table": (u2(0, 2, 3, 4, 999), {"ModalityLUTSequence": [table([10, 20, 4095], 2, 12)]}, (2047.5, 4095), [1, 1, 1, 255, 255]),
    "table, 8-bit entries": (u2(0, 1, 2, 300, 65535), {"VOILUTSequence": [table([0, 100, 255], 0, 8)]}, None, [0, 100, 255, 255, 255]),
    "table, 12-bit entries, before windows": (u2(0, 1, 2), {"VOILUTSequence": [table([0, 1024, 4095], 0, 12)], "WindowCenter": 9, "WindowWidth": 3}, None, [0, 64, 255]),
    "table, negative first value": (i2(-5, -2, -1, 0, 9), {"VOILUTSequence": [table([0, 100, 255], -2, 8)]}, None, [0, 0, 100, 255, 255]),
    "table, first value written as unsigned": (i2(-5, -2, -1, 0, 9), {"VOILUTSequence": [table([0, 100, 255], 65534, 8)]}, None, [0, 0, 100, 255, 255]),
    "table after rescale": (u2(1022, 1023, 1024), {**RESCALED, "VOILUTSequence": [table([0, 100, 255], -2, 8)]}, None, [0, 100, 255]),
}  # fmt: skip


@pytest.mark.parametrize("case", GREY)
def test_grey_levels(tmp_path, case) -> None:
    pixels, elements, window, expected = GREY[case]
    assert grey(make(tmp_path / "a.dcm", pixels, **elements), window) == expected


def test_table_as_words(tmp_path) -> None:
    item = table([0, 100, 255], 0, 8)
    item.add_new("LUTData", "OW", np.array([0, 100, 255], "<u2").tobytes())
    assert grey(make(tmp_path / "a.dcm", u2(0, 1, 2, 9), VOILUTSequence=[item])) == [0, 100, 255, 255]


def test_an_enhanced_image_of_one_frame_has_its_rescale_in_nested_groups(tmp_path) -> None:
    rescale, shared, window, frame = Dataset(), Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024
    shared.PixelValueTransformationSequence = [rescale]
    window.WindowCenter, window.WindowWidth = 10, 2
    frame.FrameVOILUTSequence = [window]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": [frame]}
    file = make(tmp_path / "a.dcm", u2(1032, 1033, 1034), NumberOfFrames=1, **groups)
    assert grey(file) == [0, 0, 255]
    assert grey(file, (9, 2)) == [0, 128, 255]


# red, white, and a grey; in YBR by PS3.3 C.7.6.3.1.2: red = (76, 85, 255)
RGB = np.array([[[255, 0, 0], [255, 255, 255], [9, 9, 9], [0, 0, 255]]], "u1")
PALETTE = {
    f"{colour}PaletteColorLookupTable{part}": value
    for index, colour in enumerate(("Red", "Green", "Blue"))
    for part, value in (("Descriptor", ("US", [4, 10, 16])), ("Data", RGB[0, :, index].astype("<u2") * 257))
}
PALETTE = {name: value if isinstance(value, tuple) else ("OW", value.tobytes()) for name, value in PALETTE.items()}


def colours(file):
    image = load_dicom(file, (40, 400))  # a window is for grey
    assert image.mode == "RGB"
    return np.asarray(image)[0].tolist()


def test_rgb(tmp_path) -> None:
    expected = RGB[0].tolist()
    assert colours(make(tmp_path / "a.dcm", RGB)) == expected
    planes = np.moveaxis(RGB, -1, 0).tobytes()
    assert colours(make(tmp_path / "b.dcm", RGB, frame=planes, PlanarConfiguration=1)) == expected
    assert colours(make(tmp_path / "c.dcm", RGB.astype("<u2") * 257)) == expected
    assert colours(make(tmp_path / "d.dcm", RGB.astype("<u2") * 256)) == expected
    assert colours(make(tmp_path / "e.dcm", RGB.astype("<u2") * 16, BitsStored=12, HighBit=11)) == expected


def test_ybr(tmp_path) -> None:
    # R = 76 + 1.402 * 127 = 254.05; G = 76 + 0.344 * 43 - 0.714 * 127 = 0.1; B = 76 - 1.772 * 43 = -0.2
    ybr = np.array([[[76, 85, 255], [255, 128, 128], [9, 128, 128]]], "u1")
    expected = [[254, 0, 0], [255, 255, 255], [9, 9, 9]]
    assert colours(make(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")) == expected
    half = bytes([76, 76, 85, 255, 9, 255, 128, 128])  # Y Y Cb Cr for each two pixels
    blank = np.zeros((1, 4, 3), "u1")
    file = make(tmp_path / "b.dcm", blank, frame=half, PhotometricInterpretation="YBR_FULL_422")
    assert colours(file) == [expected[0], expected[0], expected[2], expected[1]]


def test_palette(tmp_path) -> None:
    palette = {"PhotometricInterpretation": "PALETTE COLOR", **PALETTE}
    red, white, dark, blue = RGB[0].tolist()
    expected = [red, red, white, dark, blue, blue]  # the ends go on
    assert colours(make(tmp_path / "a.dcm", u1(0, 10, 11, 12, 13, 255), **palette)) == expected
    bytewise = {
        f"{colour}PaletteColorLookupTable{part}": value
        for index, colour in enumerate(("Red", "Green", "Blue"))
        for part, value in (("Descriptor", ("US", [4, 10, 8])), ("Data", ("OW", RGB[0, :, index].tobytes())))
    }
    # 300 - 10 is beyond a byte: pydicom 3.0 takes entry 290 - 256
    assert colours(make(tmp_path / "b.dcm", u2(0, 10, 11, 12, 13, 300), **{**palette, **bytewise})) == expected
    wide = {k: ("OW", RGB[0, :, i].astype("<u2").tobytes()) for i, k in enumerate(k for k in PALETTE if "Data" in k)}
    assert colours(make(tmp_path / "c.dcm", u1(0, 10, 11, 12, 13, 255), **{**palette, **wide})) == expected


def test_segmented_palette(tmp_path) -> None:
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    ramp = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()  # one entry of 0, then 255 up to 65535
    elements = {f"{name}Descriptor": ("US", [256, 0, 16]) for name in names}
    elements |= {f"Segmented{name}Data": ("OW", ramp) for name in names}
    elements["PhotometricInterpretation"] = "PALETTE COLOR"
    assert colours(make(tmp_path / "a.dcm", u1(0, 128, 255), **elements)) == [[0] * 3, [128] * 3, [255] * 3]
    # 0 and 100 of 65535 stay black although no brighter entry is in use
    steep = np.array([0, 2, 0, 100, 1, 254, 65535], "<u2").tobytes()
    elements |= {f"Segmented{name}Data": ("OW", steep) for name in names}
    assert colours(make(tmp_path / "b.dcm", u1(0, 1), **elements)) == [[0] * 3, [0] * 3]


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


BASELINE = "1.2.840.10008.1.2.4.50"
EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LS = "1.2.840.10008.1.2.4.80"
J2K = "1.2.840.10008.1.2.4.90"
MPEG2 = "1.2.840.10008.1.2.4.100"


def test_compressed(tmp_path) -> None:
    pixels = np.broadcast_to(np.array([200, 30, 90], "u1"), (16, 16, 3))
    image = Image.fromarray(pixels)
    jpeg = {"frame": encoded(image, "JPEG", quality=95), "PhotometricInterpretation": "YBR_FULL_422"}
    found = np.asarray(load_dicom(make(tmp_path / "a.dcm", pixels, BASELINE, **jpeg))).astype(int)
    assert abs(found - pixels).max() <= 3
    j2k = {"frame": encoded(image, "JPEG2000", mct=1, no_jp2=True), "PhotometricInterpretation": "YBR_RCT"}
    assert (np.asarray(load_dicom(make(tmp_path / "b.dcm", pixels, J2K, **j2k))) == pixels).all()
    dataset = pydicom.dcmread(make(tmp_path / "c.dcm", pixels))
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "c.dcm")
    assert (np.asarray(load_dicom(tmp_path / "c.dcm")) == pixels).all()


def test_jpeg_ls_with_an_optional_decoder() -> None:
    pytest.importorskip("libjpeg")
    assert load_dicom(SAMPLES / "MR_small_jpeg_ls_lossless.dcm") == load_dicom(SAMPLES / "MR_small.dcm")


@pytest.mark.parametrize("encoding", ["implicit", "bigendian", "RLE", "expb"])
def test_encodings_of_one_image_agree(encoding) -> None:
    assert load_dicom(SAMPLES / f"MR_small_{encoding}.dcm") == load_dicom(SAMPLES / "MR_small.dcm")


def test_second_opinion() -> None:
    """pydicom's own functions, where they are right."""
    ct = pydicom.dcmread(SAMPLES / "CT_small.dcm")
    hounsfield = apply_modality_lut(ct.pixel_array, ct)
    for function in ("LINEAR_EXACT", "LINEAR", "SIGMOID"):
        ct.WindowCenter, ct.WindowWidth, ct.VOILUTFunction = 40, 400, function
        shown = apply_windowing(hounsfield, ct)
        low, high = -32768 - 1024, 32767 - 1024  # of signed 16-bit values
        expected = np.rint((shown - low) / (high - low) * 255)
        with tempfile.TemporaryDirectory() as folder:
            ct.save_as(Path(folder) / "a.dcm")
            found = [load_dicom(Path(folder) / "a.dcm")]
        if function == "LINEAR_EXACT":
            found.append(load_dicom(SAMPLES / "CT_small.dcm", (40, 400)))
        for image in found:
            apart = abs(np.asarray(image)[..., 0] - expected)
            assert apart.max() <= 1  # ties round differently
            assert apart.mean() < 0.01
    mr = pydicom.dcmread(SAMPLES / "MR_small.dcm")
    shown = apply_voi_lut(mr.pixel_array, mr)
    expected = np.rint((shown + 32768) / 65535 * 255)
    assert (np.asarray(load_dicom(SAMPLES / "MR_small.dcm"))[..., 0] == expected).all()
    palette = pydicom.dcmread(SAMPLES / "examples_palette.dcm")
    expected = apply_color_lut(palette.pixel_array, palette) >> 8
    assert (np.asarray(load_dicom(SAMPLES / "examples_palette.dcm")) == expected).all()


def test_colours_of_real_files() -> None:
    for name in (
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
    ):
        image = np.asarray(load_dicom(SAMPLES / name))
        assert abs(image[5, 50].astype(int) - [255, 0, 0]).max() <= 2, name  # bars from red to white
        assert abs(image[95, 50].astype(int) - [255, 255, 255]).max() <= 2, name


ERRORS = {
    "frames": ({"NumberOfFrames": 3}, None, "a.dcm: holds 3 frames; export the frame wanted to a file of its own"),
    "no pixels": ({"PixelData": None}, None, "a.dcm: no pixel data (cut short, or no image); remove it, or copy it again"),
    "bomb": ({"Rows": 20000, "Columns": 10000}, None, "a.dcm: 10000 x 20000 pixels are not between 1 and 89478485; remove it"),
    "no rows": ({"Rows": None}, None, "a.dcm: 3 x 0 pixels are not between 1 and"),
    "too few pixels": ({"Rows": 2}, None, "a.dcm: The number of bytes of pixel data is less than expected (6 vs 12 bytes)"),
    "too many pixels": ({"Columns": 1}, None, "a.dcm: more pixel data than 1 x 1; remove it, or copy it again"),
    "no kind": ({"PhotometricInterpretation": None}, None, "a.dcm: "),
    "odd kind": ({"PhotometricInterpretation": "HSV"}, None, "a.dcm: colours of the kind HSV are not supported; export the image as RGB"),
    "RGB of one channel": ({"PhotometricInterpretation": "RGB"}, None, "a.dcm: "),
    "odd kind, no colour": ({"PhotometricInterpretation": "MONOCHROME3"}, None, "a.dcm: "),
    "width 0": ({}, (40, 0), "a.dcm: the window (centre 40, width 0) needs a width of more than 0; give another window"),
    "width below 0": ({}, (40, -1), "a.dcm: the window (centre 40, width -1) needs a width of more than 0"),
    "width nan": ({}, (40, float("nan")), "a.dcm: the window (centre 40, width nan) needs a width"),
    "centre infinite": ({}, (float("inf"), 1), "a.dcm: the window (centre inf, width 1) needs"),
    "own width 0": ({"WindowCenter": 40, "WindowWidth": 0}, None, "a.dcm: the window (centre 40, width 0) needs a width of at least 1; give another window"),
    "own width 0.5": ({"WindowCenter": 40, "WindowWidth": 0.5}, None, "needs a width of at least 1; give another window"),
    "function": ({"WindowCenter": 40, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, None, "a.dcm: the VOI LUT function CUBIC is unknown; give a window (centre, width)"),
    "short table": ({"VOILUTSequence": [table([1, 2], 0, 8)]}, None, "a.dcm: a lookup table has 2 of its 9 entries; remove it"),
    "empty table": ({"ModalityLUTSequence": [Dataset()]}, None, "a.dcm: "),
    "slope nan": ({"RescaleSlope": "nan", "RescaleIntercept": 0}, None, "a.dcm: RescaleSlope is nan; remove it, or copy it again"),
    "slope": ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, None, "a.dcm: overflow encountered in multiply; remove it, or copy it again"),
}  # fmt: skip
ERRORS["short table"][0]["VOILUTSequence"][0].LUTDescriptor = [9, 0, 8]


def problem(file, window=None, read=load_dicom):
    with pytest.raises(DataError) as caught:
        read(file, window) if window else read(file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", ERRORS)
def test_errors(tmp_path, case) -> None:
    elements, window, words = ERRORS[case]
    assert words in problem(make(tmp_path / "a.dcm", u2(1, 2, 3), **elements), window)


def test_files_that_are_no_dicom(tmp_path) -> None:
    assert "no such file; correct the path" in problem(tmp_path / "none.dcm")
    assert "none.dcm: no such file" in problem(tmp_path / "none.dcm", read=read_header)
    for content in (b"", b"text", b"\0" * 500):
        (tmp_path / "a.dcm").write_bytes(content)
        assert "a.dcm: not a DICOM file (no DICM at byte 128); remove it, or copy it again" in problem(
            tmp_path / "a.dcm"
        )
        assert "not a DICOM file" in problem(tmp_path / "a.dcm", read=read_header)
    (tmp_path / "b.dcm").mkdir()
    assert "Is a directory" in problem(tmp_path / "b.dcm")


def test_the_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch) -> None:
    file = make(tmp_path / "a.dcm", u2(1, 2), Rows=65535, Columns=65535)
    monkeypatch.setattr("pydicom.pixels.decoders.base.get_decoder", lambda syntax: pytest.fail("decoded"))
    assert "65535 x 65535 pixels" in problem(file)


def test_missing_decoders(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pydicom.pixels.decoders.base.JPEGLSLosslessDecoder._available", {})
    found = problem(make(tmp_path / "a.dcm", u2(1, 2), JPEG_LS, b"nothing"))
    assert "a.dcm: no decoder for JPEG-LS Lossless Image Compression is installed; pip install " in found
    assert "'pylibjpeg>=2.0' 'pylibjpeg-libjpeg>=2.1'" in found
    found = problem(make(tmp_path / "b.dcm", u2(1, 2), MPEG2, b"nothing"))
    assert "b.dcm: MPEG2" in found
    assert "cannot be decoded; export the image uncompressed" in found
    available = pydicom.pixels.decoders.JPEGExtended12BitDecoder._available
    monkeypatch.delitem(available, "pylibjpeg", raising=False)
    found = problem(SAMPLES / "JPGExtended.dcm")
    assert "12-bit precision; remove it, or copy it again, or if it is whole pip install 'pylibjpeg>=2.0'" in found


def test_a_bomb_within_a_small_header(tmp_path, monkeypatch) -> None:
    """Pillow refuses it; pylibjpeg would unpack it first."""
    monkeypatch.delitem(pydicom.pixels.decoders.JPEGBaseline8BitDecoder._available, "pylibjpeg", raising=False)
    inner = encoded(Image.new("1", (20000, 10000)).convert("L"), "JPEG", quality=1)
    file = make(tmp_path / "a.dcm", u1(1, 2), BASELINE, inner)
    assert "decompression bomb" in problem(file)


@pytest.mark.parametrize("syntax", ["native", "JPEG", "deflated"])
def test_a_file_cut_short_anywhere(tmp_path, syntax) -> None:
    image = Image.fromarray(np.arange(256, dtype="u1").reshape(16, 16))
    if syntax == "JPEG":
        file = make(tmp_path / "a.dcm", image, BASELINE, encoded(image, "JPEG"))
    else:
        file = make(tmp_path / "a.dcm", image, "1.2.840.10008.1.2.1" + ".99" * (syntax == "deflated"))
    whole = file.read_bytes()
    load_dicom(file)
    for length in range(0, len(whole) - 20, 7):
        file.write_bytes(whole[:length])
        problem(file)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_is_an_image_or_a_data_error(place, junk) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder) / "a.dcm", i2(-2000, 0, 51), WindowCenter=[1, 2], WindowWidth=[3, 4], **RESCALED)
        content = bytearray(file.read_bytes())
        place = 132 + place % (len(content) - 132)
        content[place : place + len(junk)] = junk
        file.write_bytes(content)
        for read in (load_dicom, read_header):
            try:
                found = read(file)
            except DataError as error:
                found = error
            assert isinstance(found, DicomHeader) or str(file) in str(found) or found.mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_always_rgb_and_monotone_in_the_stored_value(data) -> None:
    kind = data.draw(st.sampled_from(["u1", "<u2", "<i2", "<u4"]))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    limits = np.iinfo(kind)
    values = st.lists(st.integers(limits.min, limits.max), min_size=height * width, max_size=height * width)
    pixels = np.array(data.draw(values), kind).reshape(height, width)
    number = st.floats(-5000, 5000).map(lambda value: round(value, 3))
    elements = data.draw(
        st.fixed_dictionaries(
            {"PhotometricInterpretation": st.sampled_from(["MONOCHROME1", "MONOCHROME2"])},
            optional={
                "RescaleSlope": number.filter(bool),
                "RescaleIntercept": number,
                "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
            },
        )
    )
    if data.draw(st.booleans()):
        elements |= {"WindowCenter": data.draw(number), "WindowWidth": 1 + abs(data.draw(number))}
    whole = st.tuples(st.integers(-5000, 5000), st.integers(1, 5000))
    window = data.draw(st.none() | whole | st.tuples(number, number.map(abs).filter(bool)))
    with tempfile.TemporaryDirectory() as folder:
        image = load_dicom(make(Path(folder) / "a.dcm", pixels, **elements), window)
    levels = np.asarray(image)
    assert (image.mode, image.size, levels.dtype) == ("RGB", (width, height), np.uint8)
    order = np.argsort(pixels, axis=None, kind="stable")
    steps = np.diff(levels[..., 0].astype(int).ravel()[order])
    falling = (elements["PhotometricInterpretation"] == "MONOCHROME1") != (elements.get("RescaleSlope", 1) < 0)
    assert ((steps <= 0) if falling else (steps >= 0)).all()


def test_header(tmp_path) -> None:
    file = make(tmp_path / "a.dcm", u2(1, 2, 3), PatientID="MRN-4711", BurnedInAnnotation="YES", NumberOfFrames=1)
    expected = blake2b(b"MRN-4711", digest_size=8).hexdigest()
    assert read_header(file) == DicomHeader(expected, True, "CT", (3, 1), 1)
    file = make(tmp_path / "b.dcm", u2(1, 2), Modality=None, BurnedInAnnotation="NO", NumberOfFrames=40)
    assert read_header(file) == DicomHeader(None, False, "", (2, 1), 40)
    file = make(
        tmp_path / "c.dcm", u2(1, 2), PatientID="  ", BurnedInAnnotation="", PixelData=None, Rows=None, Columns=None
    )
    assert read_header(file) == DicomHeader(None, None, "CT", (0, 0), 1)
    file = make(tmp_path / "d.dcm", u2(1, 2), BurnedInAnnotation="MAYBE")
    assert read_header(file).burned_in is None


def test_the_patient_is_a_hash_and_no_identifier(tmp_path) -> None:
    def patient(identifier, **elements):
        return read_header(make(tmp_path / "a.dcm", u2(1), PatientID=identifier, **elements)).patient

    assert (
        patient("MRN-4711")
        == patient(" MRN-4711 ")
        == patient(
            (
                "LO",
                "MRN-4711",
            )
        )
    )
    assert patient("MRN-4711") != patient("MRN-4712")
    assert len(patient("1")) == 16
    assert int(patient("MRN-4711"), 16)
    assert "4711" not in repr(read_header(tmp_path / "a.dcm"))
    # the same name in two character sets is one patient
    umlaut = patient("Jäger", SpecificCharacterSet="ISO_IR 192")
    assert umlaut == patient("Jäger", SpecificCharacterSet="ISO_IR 100")
    assert umlaut == blake2b("Jäger".encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize("wrong", [b"DS", b"DA", b"UI", b"IS", b"SH", b"UN"])
def test_no_message_shows_the_identifier(tmp_path, caplog, wrong) -> None:
    """A wrong value representation makes pydicom print the value that it cannot convert."""
    file = make(tmp_path / "a.dcm", u2(1), PatientID="MRN-4711")
    file.write_bytes(file.read_bytes().replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00" + wrong))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            shown = repr(read_header(file))
        except DataError as error:
            shown = str(error)
    shown += caplog.text + " ".join(str(warning.message) for warning in seen)
    assert "4711" not in shown
    if wrong != b"UN":  # has a longer length field, so that the rest is damaged
        assert blake2b(b"MRN-4711", digest_size=8).hexdigest() in shown


def test_is_dicom(tmp_path) -> None:
    content = make(tmp_path / "a.dcm", u2(1)).read_bytes()

    def found(name, content=content):
        (tmp_path / name).write_bytes(content)
        return is_dicom(tmp_path / name)

    assert found("b.DCM", b"")
    assert found("b.Dicom", b"")
    assert found("IM000001")
    assert found("1.2.840.113619.2.55")
    assert not found("b.png")
    assert not found("DICOMDIR")
    assert not found("IM000002", content[1:])
    assert not found("IM000003", content[:131])
    assert not found("IM000004", b"")
    assert not is_dicom(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    assert not is_dicom(tmp_path / "folder")


def test_importing_needs_no_pydicom() -> None:
    code = "import sys, pathlib, pfedst.data.dicom.reader as d; d.is_dicom(pathlib.Path('none')); sys.exit('pydicom' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("missing", ["pydicom", "pydicom.pixels.decoders"])
def test_pydicom_is_missing_or_old(tmp_path, monkeypatch, missing) -> None:
    file = make(tmp_path / "a.dcm", u2(1, 2))
    monkeypatch.setitem(sys.modules, missing, None)
    for read in (load_dicom, read_header):
        assert problem(file, read=read) == f"{file}: reading DICOM needs pip install 'pfedst[dicom]'"
    assert is_dicom(file)
