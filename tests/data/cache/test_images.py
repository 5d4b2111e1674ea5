"""The store of decoded images: the bits of the files, whatever the source and the augmentation."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from pfedst.data import FolderSites
from pfedst.data.cache.cache import stores_in
from pfedst.data.cache.layout import PieceLayout
from pfedst.data.cache.store import WholeImageStore
from pfedst.data.sets.hugging_face import HuggingFaceSites
from pfedst.encoders import Pixels
from pfedst.encoders.spec import Preprocessing
from pfedst.errors import ConfigurationError
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import encoder, fit
from tests.data.cache.test_cache import IMAGES, SPLITS, bytes_of, cached, uncached
from tests.data.cache.test_cache import data as synthetic
from tests.fake_data.dicom.data import make as make_dicom
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import CLASSES, own_cache, save
from tests.fake_data.image_folder.data import make as make_image_folder

PREPROCESSINGS = [
    Preprocessing(24, (0.5,) * 3, (0.25,) * 3, interpolation, mode)
    for interpolation, mode in (("bicubic", "shortest"), ("bilinear", "longest"), ("bicubic", "squash"))
]


class Shapes(Pixels):
    """An encoder with any preprocessing."""

    def __init__(self, preprocessing) -> None:
        super().__init__(preprocessing.image_size)
        self.preprocessing = preprocessing


def batches(sites) -> list[torch.Tensor]:
    """All that loaders of a site and of all sites together give, over two epochs."""
    found = []
    for split in SPLITS:
        found += [tensor for batch in sites.evaluation_loader(sites.sites[0], split) for tensor in batch]
    for names in (sites.sites[0], list(sites.sites)):
        loader = sites.train_loader(names, 3)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            found += [tensor for batch in loader for tensor in batch]
    return found


def same(one, other) -> None:
    pairs = list(zip(batches(one), batches(other), strict=True))
    assert len(pairs) > 8
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def files(root: Path, monkeypatch):
    """JPEG and PNG, one that is turned by a quarter, and DICOM of 12 bits."""
    make_folder(root, train=4, test=2)
    turned = Image.new("RGB", (30, 44)).getexif()
    turned[0x0112] = 6
    file = root / "clinic_a/train/benign/0.jpg"
    with Image.open(file) as picture:
        picture.load()
    picture.save(file, exif=turned)
    make_dicom(root / "clinic_a/test/unclear/d.dcm", np.arange(32 * 40, dtype="u2").reshape(32, 40), BitsStored=12)
    return FolderSites, {"root": root, "pixel_range": (0, 1300)}


def table(root: Path, monkeypatch):
    """Encoded images in a table."""
    pytest.importorskip("datasets")
    own_cache(monkeypatch, root / "hugging_face")
    return HuggingFaceSites, {"root": save(make_image_folder(root / "tree"), root / "saved", CLASSES)}


def arrays(root: Path, monkeypatch):
    """Pixels in memory."""
    return synthetic, {}


@pytest.mark.parametrize(("number", "kind"), list(enumerate([files, table, arrays])))
def test_a_source_gives_the_same_bits_with_the_store_and_is_decoded_once(tmp_path, monkeypatch, number, kind) -> None:
    made, options = kind(tmp_path / "data", monkeypatch)
    options |= {"audit": "off", "validation_fraction": 0.3, "batch_size": 4} if made is not synthetic else {}
    own, cache = Shapes(PREPROCESSINGS[number]), {"cache": "images", "cache_folder": tmp_path / "cache"}
    plain = made(**options | {"cache": "none"})
    plain.prepare(own.preprocessing)
    sites = cached(None, "images", own=own, module=made(**options | cache))
    same(sites, plain)
    (store,) = stores_in(tmp_path / "cache").values()
    assert store.layout.row_bytes == 3 * 24 * 24
    assert not store.damaged()

    def refuse(self, index):
        raise AssertionError("decoded again")

    again = cached(None, "images", own=own, module=made(**options | cache))
    for dataset in again._datasets.values():
        monkeypatch.setattr(type(dataset.source), "load", refuse)
    assert len(batches(again)) == len(batches(sites))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "augmentation",
    ["flips", "crops", v2.RandAugment(), v2.Compose([v2.RandomRotation(10), v2.ColorJitter(0.2)])],
    ids=str,
)
def test_augmented_images_have_the_same_bits_with_the_store(tmp_path, augmentation, workers) -> None:
    options = {"augmentation": augmentation, "num_workers": workers}
    same(cached(tmp_path, "taps", **options), uncached(**options))
    same(cached(tmp_path, "images", "images", views=2, **options), uncached(views=2, **options))


def test_encoders_that_need_the_same_squares_share_a_store(tmp_path) -> None:
    one, other = (Shapes(Preprocessing(24, (mean,) * 3, (0.5,) * 3)) for mean in (0.4, 0.5))
    cached(tmp_path, "images", own=one)
    assert not torch.equal(*(batches(cached(tmp_path, "images", own=own))[0] for own in (one, other)))
    assert len(stores_in(tmp_path)) == 1
    cached(tmp_path, "images", own=Shapes(Preprocessing(24, (0.5,) * 3, (0.5,) * 3, "bilinear")))
    assert len(stores_in(tmp_path)) == 2


def test_auto_caches_images_where_taps_pass_the_budget(tmp_path, caplog) -> None:
    budget = IMAGES * 3 * 32 * 32
    assert budget < bytes_of("taps")
    with caplog.at_level(logging.WARNING, "pfedst"):
        sites = cached(tmp_path, "taps", cache_max_bytes=budget)
    assert "--data.cache auto caches decoded images, no taps: the cache would hold" in caplog.text
    assert sites.store.layout.kind == "images"
    assert sites.store.bytes == budget
    same(sites, uncached())
    caplog.clear()
    cached(tmp_path / "small", "images", cache_max_bytes=budget - 1)
    assert "--data.cache auto caches nothing" in caplog.text


def test_a_store_of_images_serves_no_adapter_in_place_of_taps(tmp_path) -> None:
    cached(tmp_path, "images")
    assert cached(tmp_path, "taps").store.layout.kind == "taps"
    assert encoder().preprocessing.image_size == 32


# -- whole images, from which crops are cut ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [files, table, arrays])
def test_random_crops_have_the_bits_of_the_files_and_decode_nothing(tmp_path, monkeypatch, kind) -> None:
    made, options = kind(tmp_path / "data", monkeypatch)
    options |= {"audit": "off", "validation_fraction": 0.3, "batch_size": 4} if made is not synthetic else {}
    options |= {"augmentation": "crops", "cache_folder": tmp_path / "cache"}
    own = Shapes(PREPROCESSINGS[0])
    plain = made(**options | {"cache": "none"})
    plain.prepare(own.preprocessing)
    same(cached(None, "images", own=own, module=made(**options | {"cache": "images"})), plain)
    again = cached(None, "images", own=own, module=made(**options | {"cache": "auto"}))
    for dataset in again._datasets.values():
        monkeypatch.setattr(type(dataset.source), "load", lambda self, index: pytest.fail("decoded again"))
    assert len(batches(again)) > 8
    whole = next(store for name, store in stores_in(tmp_path / "cache").items() if name.startswith("whole"))
    train = {part.source.digest(i) for (_, split), part in again._datasets.items() if split == "train"
             for i in range(len(part))}  # fmt: skip
    assert whole.images == len(train)
    assert not whole.damaged()


def pieces(tmp_path):
    """A store of whole images in pieces of 64 bytes, and what is in it."""
    store = WholeImageStore(tmp_path / "store", PieceLayout(64), {})
    sizes = ((1, 1), (4, 5), (18, 1), (19, 1), (1, 200), (7, 9))  # 54 + 8 bytes fill less than a piece, 57 + 8 two
    images = {f"{n:x}" * 32: torch.randint(256, (*size, 3), dtype=torch.uint8) for n, size in enumerate(sizes, 1)}
    with store.writing():
        store.append_images(list(images)[:4], list(images.values())[:4])
        store.append_images(list(images)[4:], list(images.values())[4:])
    return store, images


def test_whole_images_of_any_size_are_read_as_they_were(tmp_path) -> None:
    store, images = pieces(tmp_path)
    opened = WholeImageStore(tmp_path / "store", PieceLayout(64), {})
    assert len(store) == 1 + 2 + 1 + 2 + 10 + 4
    for one in (store, opened):
        assert one.images == 6
        assert all(torch.equal(one.read(one.row_of[key]), image) for key, image in images.items())


@pytest.mark.parametrize("kept", range(20))
def test_an_image_that_was_cut_off_is_written_again(tmp_path, kept) -> None:
    """A build was killed, or the disk was full, after any number of rows."""
    pieces(tmp_path)
    os.truncate(tmp_path / "store" / "piece.bin", kept * 64 + 7)
    store = WholeImageStore(tmp_path / "store", PieceLayout(64), {})
    _, images = pieces(tmp_path / "other")
    with store.writing():
        missing = [key for key in images if key not in store.row_of]
        store.append_images(missing, [images[key] for key in missing])
    opened = WholeImageStore(tmp_path / "store", PieceLayout(64), {})
    assert opened.images == 6
    assert {opened.read(opened.row_of[key]).shape for key in images} == {image.shape for image in images.values()}
    assert all(torch.equal(opened.read(opened.row_of[key]), images[key]) for key in missing)


def test_auto_decodes_images_that_would_not_fit(tmp_path, caplog) -> None:
    budget = IMAGES * 3 * 32 * 32
    options = {"augmentation": "crops", "cache_max_bytes": budget}
    with caplog.at_level(logging.WARNING, "pfedst"):
        sites = cached(tmp_path, "images", **options)
    assert "--data.cache auto: each epoch decodes the training images anew, as the cache would hold" in caplog.text
    same(sites, uncached(augmentation="crops"))
    with pytest.raises(ConfigurationError, match=r"--data.cache_max_bytes allows .* raise it to \d+, or choose"):
        cached(tmp_path, "images", "images", **options)


# -- rows in the memory of the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("need", "dtype"), [("images", "float32"), ("taps", "float32"), ("taps", "int8")])
def test_rows_that_fit_are_held_with_the_same_bits(tmp_path, caplog, need, dtype) -> None:
    options = {"augmentation": "flips", "views": 2, "cache_dtype": dtype}
    mapped = cached(tmp_path, need, **options)
    rows = IMAGES if need == "images" else len(mapped.store)
    cached(tmp_path, need, seed=1, **options)  # rows of other images, which this run does not hold
    size = rows * mapped.store.layout.row_bytes
    held = cached(tmp_path, need, cache_device_bytes=size, **options)
    assert (held.holds_rows, mapped.holds_rows, caplog.text) == (True, False, "")
    for one, other in zip(batches(held), batches(mapped), strict=True):
        for a, b in zip(*(getattr(of, "tensors", (of,)) for of in (one, other)), strict=True):
            assert torch.equal(a, b)
    assert cached(tmp_path, need, cache_device_bytes=2 * size, validation_fraction=0.0, **options).holds_rows
    shutil.rmtree(tmp_path / mapped.store.folder.name)
    assert len(batches(held)) > 8  # no file is read any more
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert not cached(tmp_path, need, cache_device_bytes=size - 1, **options).holds_rows
    assert f"take {size} bytes, and are read from files" in caplog.text


@pytest.mark.parametrize("option", [{"cache_device_bytes": 1}, {"cache_max_bytes": 1}, {"cache_dtype": "int8"}])
def test_options_of_a_cache_without_one_are_refused(option) -> None:
    with pytest.raises(ConfigurationError, match=rf"{next(iter(option))} has no effect with --data\.cache none"):
        uncached(**option, cache="none")


def test_bytes_of_an_evaluation_beside_its_size_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="evaluation_batch_bytes has no effect"):
        uncached(evaluation_batch_bytes=1, evaluation_batch_size=8)


# -- the batch of an evaluation ----------------------------------------------------------------------------------------


def test_an_evaluation_batch_follows_from_shapes_and_bytes_whatever_is_cached(tmp_path) -> None:
    spec = encoder().spec
    pixels, layer = 3 * 32 * 32, spec.tokens * spec.width
    taps = 4 * (pixels + max(spec.layers, 4) * layer)
    for cache in ("auto", "none"):
        sites = cached(tmp_path, "taps", cache, evaluation_batch_bytes=5 * taps - 1)
        assert [len(labels) for _, labels in sites.evaluation_loader("site_a", "test")] == [4, 4, 4]
        assert cached(tmp_path, "taps", cache, evaluation_batch_bytes=1).evaluation_batch_size == 1
        pooled = cached(tmp_path, "pooled", cache, evaluation_batch_bytes=3 * 4 * (pixels + 4 * layer))
        assert pooled.evaluation_batch_size == 3
        assert cached(tmp_path, "images", cache, evaluation_batch_bytes=1).evaluation_batch_size == 64
        assert cached(tmp_path, "taps", cache, evaluation_batch_size=7).evaluation_batch_size == 7
    for options in ({"evaluation_batch_size": 0}, {"evaluation_batch_bytes": 0}):
        with pytest.raises(ConfigurationError, match="must be 1 or more"):
            uncached(**options)


def test_another_evaluation_batch_moves_logits_by_rounding_alone(tmp_path) -> None:
    """And changes nothing of what is trained."""
    states, logits = [], []
    for name, options in {"whole": {}, "four": {"evaluation_batch_size": 4}}.items():
        fit(tmp_path / name, PFedST(), sites=synthetic(cache_folder=tmp_path / "cache", **options), rounds=1)
        states.append((tmp_path / name / "run/state/round-000001/server.safetensors").read_bytes())
        logits.append(load_file(tmp_path / name / "run/sites/site_a/predictions/test.safetensors")["logits.personal"])
    assert states[0] == states[1]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * logits[0].abs().max()
