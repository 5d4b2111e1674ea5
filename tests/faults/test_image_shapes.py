"""Odd image files of every kind: each gives the pixel values that were written, or one error that names the file."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedst.data.sources import EncodedSource, FileSource
from pfedst.errors import DataError
from tests.fake_data.dicom.data import make as make_dicom
from tests.fake_data.tiff.data import PLANES
from tests.fake_data.tiff.data import make as make_tiff

HEIGHT, WIDTH = 6, 16
RAMP = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 255 // (HEIGHT * WIDTH - 1)
"""Grey levels 0 to 255 without symmetry."""
UNIT = RAMP / 255
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1).astype(np.uint8)
RED, BLUE = np.array([[[200, 60, 60]]], np.uint8), np.array([[[60, 60, 200]]], np.uint8)
LIKE_8_BITS = (RAMP * 257).astype(np.uint16)


def stretched(values):
    """By hand: the smallest value is black, the largest white."""
    values = values.astype(np.float64)
    return np.rint(255 * (values - values.min()) / (values.max() - values.min()))


def png(pixels, **options) -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG", **options)
    return made.getvalue()


def saved(pixels, form: str, *others, **options) -> bytes:
    made = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.fromarray(other) for other in others]} if others else {}
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(made, form, **more, **options)
    return made.getvalue()


def netpbm(kind: str, most: int, values) -> bytes:
    height, width = values.shape[:2]
    return f"{kind} {width} {height} {most}\n".encode() + values.astype(">u2" if most > 255 else "u1").tobytes()


def deep_png(values) -> bytes:
    """16 bits for each colour, chunk by chunk, as Pillow writes none."""
    height, width, samples = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[samples], 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned(pixels, form: str) -> bytes:
    """With the EXIF orientation of a camera that was turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(pixels, form, exif=exif)


def with_palette(transparent: bool) -> Image.Image:
    image = Image.fromarray((RAMP // 64).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    if transparent:
        image.info["transparency"] = 1
    return image


def cut_tiff(path: Path) -> None:
    """The directory is whole, and the values that it names behind itself are not there."""
    make_tiff(path, np.zeros((4, 4), "u2"), tags={273: 500})


PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[RAMP // 64]
ALPHA = RAMP[::-1].astype(np.uint8)
NUMBERS = {
    "u1": (RAMP.astype("u1"), RAMP),
    "u2": ((RAMP * 200).astype("u2"), RAMP * 200 // 256),
    "u4": ((RAMP * 16_000_000).astype("u4"), stretched(RAMP)),  # beyond the largest signed number
    "i1": ((RAMP - 128).astype("i1"), RAMP),
    "i2": ((RAMP * 200 - 20_000).astype("i2"), stretched(RAMP)),
    "i4": ((RAMP * 10_000_000 - 10**9).astype("i4"), stretched(RAMP)),
    "f2": (UNIT.astype("f2"), np.rint(255 * UNIT.astype("f2").astype("f8"))),
    "f4": (UNIT.astype("f4"), RAMP),
    "f8": (UNIT, RAMP),
    "f4 z-scores": (((UNIT - 0.5) * 6).astype("f4"), stretched(((UNIT - 0.5) * 6).astype("f4"))),
    "f4 of 16 bits": ((UNIT * 65535).astype("f4"), stretched(UNIT)),
    "f4 half as bright": ((UNIT / 2).astype("f4"), np.rint(255 * (UNIT / 2).astype("f4").astype("f8"))),
}
READ = {
    # name of the file -> content or writer, expected pixels (grey or colours)
    **{
        f"{name} {order} {'deflated' if deflated else 'plain'}{' planes' * (planes == 2)}.tif": (
            lambda path, values=values, order=order, deflated=deflated, planes=planes: make_tiff(
                path, values, order=order, deflated=deflated, tags={PLANES: planes}
            ),
            expected,
        )
        for (name, (values, expected)), order, deflated, planes in itertools.product(
            NUMBERS.items(), "<>", (False, True), (1, 2)
        )
    },
    **{
        f"{name} {order} zero is white.tif": (
            lambda path, values=values, order=order: make_tiff(path, values, order=order, tags={262: 0}),
            255 - expected,
        )
        for (name, (values, expected)), order in itertools.product(NUMBERS.items(), "<>")
        if name in ("u1", "u2", "i2", "f4")
    },
    **{
        f"{name} {order} {'deflated' if deflated else 'plain'}{' planes' * (planes == 2)}.tif": (
            lambda path, values=values, order=order, deflated=deflated, planes=planes: make_tiff(
                path, values, order=order, deflated=deflated, tags={PLANES: planes}
            ),
            COLOURS,
        )
        for (name, values), order, deflated, planes in itertools.product(
            {"rgb": COLOURS, "rgb 16": COLOURS.astype("u2") * 257}.items(), "<>", (False, True), (1, 2)
        )
    },
    "smaller copy.tif": (
        lambda path: make_tiff(path, RAMP.astype("u1"), RAMP[:3].astype("u1"), tags={1_000_254: 1}),
        RAMP,
    ),
    "mask.tif": (lambda path: make_tiff(path, RAMP.astype("u1"), RAMP.astype("u1"), tags={1_000_254: 4}), RAMP),
    **{
        f"{name} turned {place}.tif": (
            lambda path, values=values, place=place: make_tiff(path, values, order=">", tags={274: place}),
            expected,
        )
        for name, values in {"8": RAMP.astype("u1"), "16": LIKE_8_BITS, "float": UNIT.astype("f4")}.items()
        for place, expected in enumerate(
            [
                *(RAMP, RAMP[:, ::-1], RAMP[::-1, ::-1], RAMP[::-1]),
                *(RAMP.T, RAMP[::-1].T, RAMP[::-1, ::-1].T, RAMP[:, ::-1].T),
            ],
            start=1,
        )
    },
    "lzw 16.tif": (saved(Image.fromarray(LIKE_8_BITS), "TIFF", compression="tiff_lzw"), RAMP),
    "float black.tif": (lambda path: make_tiff(path, np.zeros((4, 4), "f4")), np.zeros((4, 4))),
    "float flat.tif": (lambda path: make_tiff(path, np.full((4, 4), 7, "f4")), np.zeros((4, 4))),
    "black 16.png": (png(np.zeros((4, 4), np.uint16)), np.zeros((4, 4))),
    "grey 16.png": (png(LIKE_8_BITS), RAMP),
    "turned 16.png": (turned(LIKE_8_BITS, "PNG"), np.rot90(RAMP, -1)),
    "turned.png": (turned(COLOURS, "PNG"), np.rot90(COLOURS, -1)),
    "lossless.webp": (saved(COLOURS, "WEBP", lossless=True), COLOURS),
    "rgb 16.png": (deep_png(COLOURS.astype("u2") * 257), COLOURS),
    "rgba 16.png": (deep_png(np.dstack([COLOURS, ALPHA]).astype("u2") * 257), COLOURS),
    "grey alpha 16.png": (deep_png(np.dstack([RAMP, ALPHA]).astype("u2") * 257), RAMP),
    "grey multiplied by alpha.tif": (
        lambda path: make_tiff(path, np.dstack([RAMP, np.full_like(RAMP, 255)]).astype("u1"), tags={338: 1}),
        RAMP,
    ),
    "grey and alpha.tif": (lambda path: make_tiff(path, np.dstack([RAMP, ALPHA]).astype("u1"), order=">"), RAMP),
    "big.tif": (saved(RAMP.astype("u1"), "TIFF", big_tiff=True), RAMP),
    "alpha.png": (png(np.dstack([COLOURS, ALPHA])), COLOURS),
    "bits.png": (saved(Image.fromarray(RAMP > 99), "PNG"), 255 * (RAMP > 99)),
    "palette.png": (saved(with_palette(False), "PNG"), PALETTE),
    "palette.gif": (saved(with_palette(False), "GIF"), PALETTE),
    "transparent.gif": (saved(with_palette(True), "GIF"), PALETTE),
    "palette.bmp": (saved(with_palette(False), "BMP"), PALETTE),
    "8.pgm": (netpbm("P5", 255, RAMP), RAMP),
    "12.pgm": (netpbm("P5", 4095, RAMP * 16), np.rint(RAMP * 16 / 4095 * 65535).astype(int) >> 8),
    "16.pgm": (netpbm("P5", 65535, RAMP * 257), RAMP),
    "16.ppm": (netpbm("P6", 65535, COLOURS.astype("u2") * 257), COLOURS),
    "float.pfm": (
        b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + UNIT[::-1].astype("<f4").tobytes(),
        RAMP,
    ),
    "8.jp2": (saved(COLOURS, "JPEG2000"), COLOURS),
    "16.jp2": (saved(LIKE_8_BITS, "JPEG2000"), RAMP),
    "flat.jpg": (saved(np.full((8, 8, 3), 128, np.uint8), "JPEG"), np.full((8, 8, 3), 128)),
    "with a preview.jpg": (
        saved(np.full((8, 8), 99, np.uint8), "MPO", np.zeros((4, 4), np.uint8)),
        np.full((8, 8), 99),
    ),
    "png named.jpg": (png(COLOURS), COLOURS),
    "tiff named.png": (lambda path: make_tiff(path, LIKE_8_BITS, order=">"), RAMP),
    "100 times as long.png": (png(np.full((100, 1), 9, np.uint8)), np.full((100, 1), 9)),
    "no window.dcm": (lambda path: make_dicom(path, (RAMP * 16).astype("u2"), BitsStored=12, HighBit=11), RAMP),
    "signed.dcm": (lambda path: make_dicom(path, (RAMP * 16 - 1000).astype("i2")), RAMP),
}
DARK = (RAMP * 16).astype(np.uint16)
DARK_COLOURS = COLOURS.astype(np.uint16) * 16
SEVERAL = "holds 3 pages; export the page wanted to a file of its own"
ALMOST_BLACK = r"its values reach 4080 of 65535.*--data\.pixel_range.*'\[0, 4095\]' or '\[0, 65535\]'"
BLACK_COLOURS = "at most 12 of their 16 bits.*8 bits a colour"
PAGES = [np.full((8, 8, 3), level, np.uint8) for level in (0, 128, 255)]
THIN = "a side is more than 100 times as long"
REFUSED = {
    "pages.tif": (lambda path: make_tiff(path, *PAGES), SEVERAL),
    "pages after a mask.tif": (lambda path: make_tiff(path, *PAGES, tags={254: 4}), SEVERAL),
    "a page that is not read.tif": (
        lambda path: make_tiff(path, RAMP.astype("u1"), UNIT.astype("c16")),
        "holds 2 pages",
    ),
    "animated.gif": (saved(PAGES[0], "GIF", *PAGES[1:]), SEVERAL),
    "animated.png": (saved(PAGES[0], "PNG", *PAGES[1:]), SEVERAL),
    "animated.webp": (saved(PAGES[0], "WEBP", *PAGES[1:]), SEVERAL),
    "frames.dcm": (
        lambda path: make_dicom(path, np.zeros((4, 4), "u1"), NumberOfFrames=3, PixelData=bytes(48)),
        "holds 3 frames",
    ),
    "12 in 16 <.tif": (lambda path: make_tiff(path, DARK), ALMOST_BLACK),
    "12 in 16 >.tif": (lambda path: make_tiff(path, DARK, order=">"), ALMOST_BLACK),
    "12 in 16 zero is white.tif": (lambda path: make_tiff(path, DARK, tags={262: 0}), ALMOST_BLACK),
    "12 in 16.png": (png(DARK), ALMOST_BLACK),
    "12 in 16.pgm": (netpbm("P5", 65535, DARK), ALMOST_BLACK),
    "12 in 16.jp2": (saved(DARK, "JPEG2000"), ALMOST_BLACK),
    "colours 12 in 16.tif": (lambda path: make_tiff(path, DARK_COLOURS), BLACK_COLOURS),
    "colours 12 in 16 >.tif": (lambda path: make_tiff(path, DARK_COLOURS, order=">", deflated=True), BLACK_COLOURS),
    "planes 12 in 16.tif": (lambda path: make_tiff(path, DARK_COLOURS, tags={PLANES: 2}), BLACK_COLOURS),
    "colours 12 in 16.png": (deep_png(DARK_COLOURS), BLACK_COLOURS),
    "alpha 12 in 16.png": (deep_png(np.dstack([DARK_COLOURS, LIKE_8_BITS])), BLACK_COLOURS),
    "colours 12 in 16.ppm": (netpbm("P6", 65535, DARK_COLOURS), BLACK_COLOURS),
    "dark floats.tif": (lambda path: make_tiff(path, (UNIT / 50).astype("f4")), r"its values reach 0\.02 of 1"),
    "not a number.tif": (
        lambda path: make_tiff(path, np.where(RAMP > 9, UNIT, np.nan).astype("f4")),
        "infinite or not a number; replace them",
    ),
    "infinite.tif": (lambda path: make_tiff(path, np.where(RAMP > 9, UNIT, np.inf)), "infinite or not a number"),
    "complex.tif": (lambda path: make_tiff(path, UNIT.astype("c8")), "1 complex values of 64 bits.*save it as"),
    "64 bits.tif": (lambda path: make_tiff(path, RAMP.astype("u8")), "1 unsigned values of 64 bits.*save it as"),
    "float colours.tif": (
        lambda path: make_tiff(path, (COLOURS / 255).astype("f4"), order=">"),
        "3 floating-point values of 32 bits.*save it as",
    ),
    "float.dcm": (
        lambda path: make_dicom(path, RAMP.astype("u1"), PixelData=None, FloatPixelData=bytes(24)),
        "floating-point numbers, which are not read; export",
    ),
    "strip.png": (png(np.zeros((250_000, 1), np.uint8)), f"1 x 250,000 pixels; {THIN}"),
    "line.png": (png(np.zeros((1, 250_000), np.uint8)), f"250,000 x 1 pixels; {THIN}"),
    "strip.gif": (saved(np.zeros((60_000, 1), np.uint8), "GIF"), THIN),
    "strip.tif": (lambda path: make_tiff(path, np.zeros((9000, 2), "u2"), deflated=True), THIN),
    "strip.jpg": (saved(np.zeros((1616, 16), np.uint8), "JPEG"), THIN),
    "strip.dcm": (lambda path: make_dicom(path, np.zeros((1, 101), "u1")), THIN),
    "huge.pgm": (b"P5 90000 90000 255\n" + bytes(99), "exceeds limit"),
    "huge.dcm": (
        lambda path: make_dicom(path, np.zeros((4, 4), "u1"), Rows=60_000, Columns=60_000),
        "60000 x 60000 pixels are not",
    ),
    "empty.png": (b"", "not an image; remove it, or copy it again"),
    "empty.tif": (b"", "not an image"),
    "empty.dcm": (b"", "not a DICOM file"),
    "a page of the web.jpg": (b"<html>404</html>", "not an image"),
    "dicom named.png": (
        lambda path: make_dicom(path, RAMP.astype("u1")),
        "a DICOM file by its content; rename it to .dcm",
    ),
    "photograph of a telephone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC photograph; save it as JPEG or PNG"),
    "12 bits.jpg": (
        saved(RAMP.astype("u1"), "JPEG").replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc0\x00\x0b\x0c"),
        "a JPEG that is damaged, or lossless, or of 12 bits",
    ),
    "scan.png": (b"%PDF-1.7\n" + bytes(99), "a PDF document; export its image as PNG"),
    "packed.png": (gzip.compress(png(COLOURS)), "a compressed file; unpack it"),
    "cut short.png": (png(COLOURS)[:-30], "remove it, or copy it again"),
    "cut short.jpg": (saved(np.full((64, 64), 99, np.uint8), "JPEG")[:-80], "remove it, or copy it again"),
    "cut short.tif": (cut_tiff, "remove it, or copy it again"),
    "no directory.tif": (b"II*\0\x08\0\0\0", "not an image"),
}


def written(path: Path, content) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def sources(path: Path):
    """The file itself and, but for DICOM, its bytes in a table."""
    yield FileSource([path])
    if path.suffix != ".dcm":
        yield EncodedSource(lambda _: path.read_bytes(), [str(path)])


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", READ)
def test_the_pixels_are_those_that_were_written(tmp_path, name) -> None:
    content, expected = READ[name]
    for source in sources(written(tmp_path / name, content)):
        image = source.load(0)
        assert (image.mode, image.size) == ("RGB", (np.shape(expected)[1], np.shape(expected)[0]))
        assert np.array_equal(np.asarray(image), expected if np.ndim(expected) == 3 else np.dstack([expected] * 3))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", REFUSED)
def test_or_one_error_names_the_file(tmp_path, name) -> None:
    content, words = REFUSED[name]
    for source in sources(written(tmp_path / name, content)):
        with pytest.raises(DataError, match=words) as caught:
            source.load(0)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
