"""Whatever a file holds, it is read or refused with a typed error: named attacks, and the short form of the fuzzing."""

import importlib
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pfedst.data import ManifestSites
from pfedst.data.sources import FileSource
from pfedst.data.tables import read_table
from pfedst.encoders import FrozenCLIP
from pfedst.errors import DataError, WeightsError
from tests.fake_data.dicom.data import make

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("fuzz")
    for name in ("fuzz", "environment"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("seed", range(2))
def test_files_that_are_changed_at_random(fuzz, seed) -> None:
    rows = fuzz.measure(300, seed + 1000)
    assert set(rows) == set(fuzz.SHARES)
    assert {name: row["wrong"] for name, row in rows.items() if row["wrong"]} == {}
    assert sum(row["refused"] for row in rows.values()) > 150
    assert rows["image"]["read"] > 5


# -- images ------------------------------------------------------------------------------------------------------------


def read(path, content: bytes):
    path.write_bytes(content)
    return FileSource([path]).load(0)


def test_postscript_is_never_run(tmp_path) -> None:
    """Left to itself Pillow hands it to an interpreter, whatever the file is called."""
    with pytest.raises(DataError, match=r"a.png: not an image"):
        read(tmp_path / "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """All scans are empty: a few bytes each, and a pass over all pixels."""
    made = io.BytesIO()
    Image.new("RGB", (32, 32)).save(made, "jpeg", progressive=True)
    data = bytearray(made.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, side, side)
    first = data.index(b"\xff\xda")
    return bytes(data[:first]) + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00\x00" * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="5,000 scans"):
        read(tmp_path / "a.jpg", jpeg_of_scans(9000, 5000))


@pytest.mark.parametrize("kept", ["whole", "in fragments", "by an extended table"])
def test_so_is_one_within_a_dicom_file(tmp_path, kept) -> None:
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.uid import JPEGBaseline8Bit

    content = jpeg_of_scans(64, 5000)
    if kept == "by an extended table":
        pixels, offsets, lengths = encapsulate_extended([content])
        elements = {"PixelData": pixels, "ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        elements = {"PixelData": encapsulate([content], 999 if kept == "in fragments" else 1)}
    image = np.zeros((64, 64, 3), np.uint8)
    file = make(tmp_path / "a.dcm", image, JPEGBaseline8Bit, content, PhotometricInterpretation="YBR_FULL", **elements)
    with pytest.raises(DataError, match=r"a.dcm: a JPEG of 5,000 scans.*; remove it"):
        FileSource([file]).load(0)


@pytest.mark.parametrize("side", [12_000, 2**31 - 1])
def test_an_image_that_claims_to_be_huge_is_refused(tmp_path, side) -> None:
    made = io.BytesIO()
    Image.new("RGB", (4, 4)).save(made, "png")
    data = bytearray(made.getvalue())
    struct.pack_into(">II", data, 16, side, side)
    import zlib

    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    with pytest.raises(DataError, match=r"a.png"):
        read(tmp_path / "a.png", bytes(data))


def test_a_deflated_dicom_that_grows_beyond_measure_is_refused(tmp_path) -> None:
    import zlib

    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = make(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), DeflatedExplicitVRLittleEndian)
    content = file.read_bytes()
    pump = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(2**24)
    bomb = b"".join(pump.compress(block) for _ in range(40)) + pump.flush()
    pump = zlib.decompressobj(-zlib.MAX_WBITS)
    start = next(at for at in range(200, len(content)) if _inflates(content[at:]))
    with pytest.raises(DataError, match="once inflated"):
        read(tmp_path / "bomb.dcm", content[:start] + bomb)


def _inflates(content: bytes) -> bool:
    import zlib

    pump = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return b"PatientName" in (found := pump.decompress(content)) or (len(found) > 100 and pump.eof)
    except zlib.error:
        return False


# -- tables ------------------------------------------------------------------------------------------------------------


def test_parquet_with_lists_and_with_text_that_is_none(tmp_path) -> None:
    frame = pd.DataFrame({"path": [["a"], ["b"]], "label": "x", "site": "a", "split": "train"})
    frame.to_parquet(tmp_path / "lists.parquet")
    with pytest.raises(DataError, match='no column "path"'):
        ManifestSites(manifest=tmp_path / "lists.parquet").found()
    frame = pd.DataFrame({"path": ["aaaaaaaa", "b"], "label": "x"})
    frame.to_parquet(tmp_path / "text.parquet", compression=None)
    content = (tmp_path / "text.parquet").read_bytes()
    (tmp_path / "text.parquet").write_bytes(content.replace(b"aaaaaaaa", b"\xed\xa0\x80aaaaa"))
    with pytest.raises(DataError, match=r"text.parquet"):
        read_table(tmp_path / "text.parquet")


def test_what_pandas_says_of_itself_in_a_parquet_file_is_not_read(tmp_path) -> None:
    pd.DataFrame({"path": ["a"], "label": ["x"]}).to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    assert b'"name"' in content
    (tmp_path / "a.parquet").write_bytes(content.replace(b'"name"', b'"eman"'))
    assert read_table(tmp_path / "a.parquet")["path"].tolist() == ["a"]


@pytest.mark.parametrize("path", ["a\0b.png", "\udc80.png", "../../etc/passwd", "/dev/zero", "x" * 5000])
def test_paths_of_a_manifest_that_are_none(tmp_path, path) -> None:
    rows = [f'"{path}",x,a,train', "b.png,x,a,test"]
    text = "\n".join(["path,label,site,split", *rows])
    (tmp_path / "manifest.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"manifest.csv|missing"):
        ManifestSites(manifest=tmp_path / "manifest.csv").found()


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(76, 32), (3, 64), (0, 64), (10, 0), (5,), ()])
def test_positions_that_lie_on_no_square_are_refused(tmp_path, shape) -> None:
    for model, key in (("vit-nano", "positional_embedding"), ("timm/vit_tiny_patch16_224", "pos_embed")):
        positions = torch.zeros(shape)[None] if model.startswith("timm") and len(shape) == 2 else torch.zeros(shape)
        save_file({key: positions}, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=r"w.safetensors"):
            FrozenCLIP(model, str(tmp_path / "w.safetensors"), 64 if model.startswith("timm") else None)


@pytest.mark.parametrize("shape", [[0, 2**63], [2**40], [-1], ["x"]])
def test_shapes_beyond_measure_are_refused(tmp_path, shape) -> None:
    import json

    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(WeightsError, match=r"w.safetensors"):
        FrozenCLIP("vit-nano", str(tmp_path / "w.safetensors"))
