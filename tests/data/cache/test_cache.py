"""The tap cache in use: what it refuses, what it computes, and that a run does not notice it."""

import functools
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.fedlora import FedLoRA
from pfedst_baselines.pooled import Pooled

import pfedst.data.cache.cache as taps_cache
from pfedst.data import FolderSites, SyntheticSites
from pfedst.data.cache.cache import remove_store, stores_in
from pfedst.data.cache.store import LINE_LENGTH, TapStore
from pfedst.encoders import FrozenCLIP, Pixels, StoredTaps
from pfedst.errors import ConfigurationError, DataError
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import data, encoder, fit
from tests.fake_data.folder.data import image
from tests.fake_data.folder.data import make as make_folder

CPU = torch.device("cpu")
SERVING = {"pooled": ("pooled", "tokens", "taps"), "tokens": ("tokens",), "taps": ("taps",), "images": ()}
NEEDS = tuple(SERVING)
KINDS = ("pooled", "tokens", "taps")
SPLITS = ("train", "validation", "test")
IMAGES = 24 + 18 + 15 + 3 * 12


@functools.cache
def gridded() -> FrozenCLIP:
    return FrozenCLIP("vit-nano", "random", token_grid=2)


def cached(folder: Path | None, need="taps", kind="auto", own=None, module=None, **options):
    """Prepared sites with a complete cache."""
    own, module = own or encoder(), module or data(cache=kind, cache_folder=folder, **options)
    module.prepare(own.preprocessing)
    module.complete_cache(own, need, CPU)
    return module


def uncached(own=None, **options):
    module = data(**options)
    module.prepare((own or encoder()).preprocessing)
    return module


@pytest.fixture
def counted(monkeypatch):
    """How many images pass the small encoder."""
    seen, own = [], encoder().encode

    def encode(images, needs):
        seen.append(len(images))
        return own(images, needs)

    monkeypatch.setattr(encoder(), "encode", encode)
    return seen


def same_batches(own, need, stored, plain) -> int:
    """Loaders give the same taps, bit for bit; number of images."""
    count = 0
    for (batch, labels), (images, own_labels) in zip(stored, plain, strict=True):
        assert isinstance(batch, StoredTaps)
        assert torch.equal(labels, own_labels)
        assert labels.dtype == own_labels.dtype
        check_taps(own, need, batch, images)
        count += len(labels)
    return count


def check_taps(own, need, batch, images) -> None:
    one, other = own.taps_of(batch, need), own.taps_of(images, need)
    assert len(batch) == len(one) == len(images)
    assert (one.correction is None) == (other.correction is None)
    for a, b in zip(one.tensors, other.tensors, strict=True):
        assert torch.equal(a, b)
    assert one.correction is None or torch.equal(one.correction, other.correction)


# -- which kind serves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("kind", [*KINDS, "images", "auto", "none"])
def test_a_kind_serves_or_is_refused_with_those_that_do(tmp_path, need, kind) -> None:
    folder = tmp_path / "cache"
    if kind in KINDS and kind not in SERVING[need]:
        with pytest.raises(ConfigurationError, match=rf"--data\.cache {kind}.*needs {need}") as caught:
            cached(folder, need, kind)
        offered = str(caught.value).rsplit("use ", 1)[1].split(" or ")
        assert offered == [*SERVING[need], "images", "auto", "none"]
        assert not folder.exists()
        return
    sites = cached(folder, need, kind)
    images, _ = next(iter(uncached().evaluation_loader("site_a", "test")))
    batch, _ = next(iter(sites.evaluation_loader("site_a", "test")))
    stores = list(stores_in(folder).values())
    assert [store.layout.kind for store in stores] == ([] if kind == "none" else [need if kind == "auto" else kind])
    assert [len(store) for store in stores] == [IMAGES] * len(stores)
    if kind == "none" or stores[0].layout.kind == "images":
        assert torch.equal(batch, images)
        return
    check_taps(encoder(), need, batch, images)


def test_an_encoder_that_is_none_has_images_alone_to_cache(tmp_path) -> None:
    pixels = Pixels(16)
    sites = cached(tmp_path, "images", "auto", pixels)
    assert list(stores_in(tmp_path)) == [sites.store.folder.name]
    assert sites.store.folder.name.startswith("16px-images-uint8-")
    assert next(iter(sites.evaluation_loader("site_a", "test")))[0].shape == (12, 3, 16, 16)


def test_a_need_for_embeddings_is_served_by_a_complete_store_of_taps(tmp_path, counted) -> None:
    cached(tmp_path, "taps")
    assert sum(counted) == IMAGES
    sites = cached(tmp_path, "pooled")
    assert sum(counted) == IMAGES
    assert [store.layout.kind for store in stores_in(tmp_path).values()] == ["taps"]
    plain = uncached()
    assert same_batches(
        encoder(), "pooled", sites.evaluation_loader("site_b", "test"), plain.evaluation_loader("site_b", "test")
    )
    cached(tmp_path, "tokens")  # which taps do not serve
    assert {store.layout.kind for store in stores_in(tmp_path).values()} == {"taps", "tokens"}


def test_a_store_of_taps_that_is_not_complete_does_not_serve_embeddings(tmp_path) -> None:
    cached(tmp_path, "taps")
    sites = cached(tmp_path, "pooled", samples_per_site=[25, 18, 15])
    kinds = {store.layout.kind: len(store) for store in stores_in(tmp_path).values()}
    assert kinds["taps"] == IMAGES
    assert kinds["pooled"] >= IMAGES
    loader = sites.evaluation_loader("site_a", "train")
    plain = uncached(samples_per_site=[25, 18, 15]).evaluation_loader("site_a", "train")
    assert same_batches(encoder(), "pooled", loader, plain) == sites.samples("site_a", "train")


def test_encoders_and_dtypes_have_stores_of_their_own(tmp_path, counted) -> None:
    other = FrozenCLIP("vit-nano", "random", last_block="whole")
    for own, options in ((encoder(), {}), (gridded(), {}), (other, {}), (encoder(), {"cache_dtype": "int8"})):
        cached(tmp_path, "taps", own=own, **options)
    stores = stores_in(tmp_path)
    assert len(stores) == 4
    assert {len(store) for store in stores.values()} == {IMAGES}
    assert all(name.startswith("vit-nano-32px-taps-") for name in stores)
    assert sum(counted) == IMAGES  # of the small encoder: int8 is made of what float32 has
    for own in (encoder(), gridded(), other):
        loader = cached(tmp_path, "taps", own=own).evaluation_loader("site_c", "train")
        assert same_batches(own, "taps", loader, uncached().evaluation_loader("site_c", "train"))


def test_a_tower_without_tokens_has_a_store_of_embeddings_alone(tmp_path) -> None:
    own = FrozenCLIP("timm/test_resnet", "random", 32)
    sites = cached(tmp_path, "pooled", own=own)
    assert [store.layout.kind for store in stores_in(tmp_path).values()] == ["pooled"]
    loader = sites.evaluation_loader("site_a", "test")
    assert same_batches(own, "pooled", loader, uncached(own).evaluation_loader("site_a", "test"))
    for kind in ("tokens", "taps"):
        with pytest.raises(
            ConfigurationError, match=rf"cache {kind}: .*is a ResNet.*use pooled or images or auto or none"
        ):
            cached(tmp_path, "pooled", kind, own=own)


def test_images_prepared_for_another_encoder_do_not_get_into_the_store_of_this_one(tmp_path) -> None:
    """Means and deviations differ, and a second `prepare` does nothing: either refused, or right."""
    timm = FrozenCLIP("timm/test_vit", "random", 32)
    assert timm.preprocessing.image_size == encoder().preprocessing.image_size
    assert timm.preprocessing != encoder().preprocessing
    sites = data(cache="auto", cache_folder=tmp_path)
    sites.prepare(encoder().preprocessing)
    try:
        cached(tmp_path, "taps", own=timm, module=sites)
    except ConfigurationError:
        assert stores_in(tmp_path) == {}
    fresh = cached(tmp_path, "taps", own=timm)
    loader, plain = (one.evaluation_loader("site_a", "test") for one in (fresh, uncached(timm)))
    assert same_batches(timm, "taps", loader, plain)


# -- what is refused ---------------------------------------------------------------------------------------------------


def bytes_of(kind, images=IMAGES) -> int:
    spec = encoder().spec
    layers = {"pooled": 0, "tokens": 1, "taps": spec.layers}[kind]
    return images * 4 * (spec.embedding + layers * spec.tokens * spec.width)


@pytest.mark.parametrize("kind", KINDS)
def test_an_explicit_kind_past_the_budget_is_refused_with_the_bytes(tmp_path, kind) -> None:
    folder, needed = tmp_path / "cache", bytes_of(kind)
    with pytest.raises(ConfigurationError, match=r"--data\.cache_max_bytes") as caught:
        cached(folder, kind, kind, cache_max_bytes=needed - 1)
    assert str(needed) in str(caught.value)
    assert "--data.cache none" in str(caught.value)
    assert not folder.exists()
    cached(folder, kind, kind, cache_max_bytes=needed)
    cached(folder, kind, kind, cache_max_bytes=0)  # nothing is to be written any more
    with pytest.raises(ConfigurationError, match=str(bytes_of(kind, 2 * IMAGES))):
        cached(folder, kind, kind, cache_max_bytes=2 * needed - 1, seed=1)  # what is there counts too
    assert [len(store) for store in stores_in(folder).values()] == [IMAGES]


def test_auto_past_the_budget_warns_caches_nothing_and_the_run_is_the_same(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "pfedst"):
        run(tmp_path, "small", FedAvg, cache_folder=tmp_path / "cache", cache="auto", cache_max_bytes=1000)
    assert "--data.cache auto caches nothing" in caplog.text
    assert "--data.cache_max_bytes allows" in caplog.text
    assert not (tmp_path / "cache").exists()
    run(tmp_path, "plain", FedAvg)
    assert states(tmp_path / "small") == states(tmp_path / "plain")


@pytest.mark.parametrize("kind", ["taps", "auto"])
def test_a_disk_that_is_too_full_is_told_before_anything_is_written(tmp_path, monkeypatch, caplog, kind) -> None:
    usage, asked = namedtuple("usage", "total used free"), []

    def disk_usage(path):
        asked.append(Path(path))
        return usage(10**9, 10**9, IMAGES * 3 * 32 * 32 - 1)  # too few for images, and so for taps

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    folder = tmp_path / "not" / "yet"
    if kind == "taps":
        with pytest.raises(ConfigurationError, match=r"are free.*--data\.cache_folder"):
            cached(folder, "taps", kind)
    else:
        with caplog.at_level(logging.WARNING, "pfedst"):
            sites = cached(folder, "taps", kind)
        assert "caches nothing" in caplog.text
        assert isinstance(next(iter(sites.evaluation_loader("site_a", "test")))[0], torch.Tensor)
    assert set(asked) == {tmp_path}
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("augmentation", ["flips", "crops"])
def test_taps_of_images_that_each_epoch_draws_anew_are_refused_and_auto_caches_images(tmp_path, augmentation) -> None:
    folder = tmp_path / "cache"
    words = rf"--data\.augmentation {augmentation}.*each epoch draws new.*--data\.views.*--data\.cache images"
    with pytest.raises(ConfigurationError, match=words):
        cached(folder, "taps", "taps", augmentation=augmentation)
    assert not folder.exists()
    cached(folder, "taps", "none", augmentation=augmentation)
    assert not folder.exists()
    for need in ("taps", "images"):
        assert cached(folder, need, "auto", augmentation=augmentation).store.layout.kind == "images"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": 2}, "--data.views 2"),
        ({"views": -1, "augmentation": "flips"}, "--data.views -1"),
        ({"cache_max_bytes": -1}, "cache_max_bytes"),
    ],
)
def test_options_out_of_range_are_refused(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        data(**options)


def test_numbers_that_are_not_finite_are_refused_with_the_option(tmp_path, monkeypatch) -> None:
    own = encoder().encode

    def encode(images, needs):
        found = own(images, needs)
        found["taps"].tensors[0][0, 0, 0] = 1e30
        return found

    with monkeypatch.context() as patched:
        patched.setattr(encoder(), "encode", encode)
        with pytest.raises(DataError, match=r"float16.*--data\.cache_dtype"):
            cached(tmp_path, "taps", cache_dtype="float16")
    sites = cached(tmp_path, "taps", cache_dtype="float16")
    assert len(sites.store) == IMAGES
    assert sites.store.damaged() == []


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"--data\.cache_folder"):
        cached(tmp_path / "file" / "cache", "taps")


# -- what is computed --------------------------------------------------------------------------------------------------


def test_no_image_passes_the_encoder_twice_over_clients_methods_and_runs(tmp_path, counted) -> None:
    root = make_folder(tmp_path / "images", train=4, test=2)
    shutil.copy(root / "clinic_a/train/benign/0.jpg", root / "clinic_b/train/unclear/copy.jpg")
    shutil.copy(root / "clinic_a/train/benign/1.png", root / "clinic_b/test/benign/copy.png")
    shutil.copy(root / "clinic_a/train/unclear/1.png", root / "clinic_a/test/unclear/copy.png")
    files = {path.read_bytes() for path in root.rglob("*.*g") if path.is_file()}
    assert len(files) == 2 * 3 * (4 + 2)
    options = {
        "root": root,
        "batch_size": 8,
        "validation_fraction": 0.3,
        "cache": "auto",
        "cache_folder": tmp_path / "c",
    }
    fit(tmp_path / "one", PFedST(), sites=FolderSites(**options))
    assert sum(counted) == len(files)
    fit(tmp_path / "two", FedAvg(), sites=FolderSites(**options))
    fit(tmp_path / "three", PFedST(), sites=FolderSites(**options), seed=1)
    fit(tmp_path / "four", FedCLIP(), sites=FolderSites(**options))
    assert sum(counted) == len(files)
    image(root / "clinic_a" / "train" / "benign" / "new.png", 1000)
    fit(tmp_path / "five", PFedST(), sites=FolderSites(**options))
    assert sum(counted) == len(files) + 1
    image(root / "clinic_a" / "train" / "benign" / "new.png", 1001)  # another image in a file of the same name
    sites = cached(tmp_path / "c", "taps", module=FolderSites(**options))
    assert sum(counted) == len(files) + 2
    plain = FolderSites(**(options | {"cache": "none"}))
    plain.prepare(encoder().preprocessing)
    for site in plain.sites:
        for split in SPLITS:
            pair = (one.evaluation_loader(site, split) for one in (sites, plain))
            assert same_batches(encoder(), "taps", *pair) == plain.samples(site, split)


def test_a_cache_changes_no_random_number(tmp_path) -> None:
    before = torch.get_rng_state()
    cached(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_fill_the_same_store(tmp_path) -> None:
    one, other = cached(tmp_path / "0"), cached(tmp_path / "2", num_workers=1)
    assert one.store.row_of == other.store.row_of
    rows = torch.arange(IMAGES)
    pairs = zip(one.store.read(rows, "taps").tensors, other.store.read(rows, "taps").tensors, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_interruption_keeps_what_was_written(tmp_path, monkeypatch, counted) -> None:
    own, calls = encoder().encode, []

    def encode(images, needs):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(images, needs)

    with monkeypatch.context() as patched:
        patched.setattr(encoder(), "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path)
    (store,) = stores_in(tmp_path).values()
    assert len(store) == sum(calls[:2]) > 0
    counted.clear()
    sites = cached(tmp_path)
    assert sum(counted) == IMAGES - len(store)
    check_against_one_build(sites, tmp_path)


# -- several processes -------------------------------------------------------------------------------------------------

MANY = {"sites": 1, "samples_per_site": [180], "test_samples_per_site": [12], "batch_size": 8, "image_size": 16}


def many(folder) -> SyntheticSites:
    return SyntheticSites(**MANY, cache="taps", cache_folder=folder)


@functools.cache
def many_at_once() -> TapStore:
    """The store of these images, built at once; one for all tests."""
    return cached(None, module=many(Path(tempfile.mkdtemp(prefix="at-once-", dir=os.environ["PFEDST_CACHE"])))).store


def check_against_one_build(sites, folder, make=None) -> None:
    """The same rows for the same keys as in a store that was built at once; no key twice."""
    make = make or functools.partial(data, cache="auto")
    whole = many_at_once() if make is many else cached(None, module=make(cache_folder=folder / "at_once")).store
    store = TapStore(sites.store.folder, sites.store.layout, sites.store.manifest["identity"])
    assert set(store.row_of) == set(whole.row_of)
    keys = list(whole.row_of)
    rows, own = (torch.tensor([one.row_of[key] for key in keys]) for one in (store, whole))
    for need in ("taps", "pooled"):
        for a, b in zip(store.read(rows, need).tensors, whole.read(own, need).tensors, strict=True):
            assert torch.equal(a, b)
    assert store.damaged() == []
    lines = (store.folder / "index.txt").read_text().splitlines()
    assert len(lines) == len({line.split()[0] for line in lines}) == len(whole)


HANGS = 600
"""Seconds after which a process that does not end is taken to hang."""


def build(folder: Path, pause: float, log: Path, kill_at: int = 0, stop_at: int = 0) -> None:
    """In a process of its own: a slow build, one that dies after its n-th write, or one that stops before its n-th."""
    torch.set_num_threads(1)
    own, sync, calls = encoder().encode, os.fsync, []

    def encode(images, needs):
        time.sleep(pause)
        with log.open("a") as file:
            file.write(f"{len(images)}\n")
        return own(images, needs)

    def fsync(descriptor):
        if len(calls) + 1 == stop_at:
            time.sleep(HANGS)
        sync(descriptor)
        calls.append(descriptor)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    encoder().encode, os.fsync = encode, fsync
    cached(None, module=many(folder))


def started(*arguments):
    process = multiprocessing.get_context("fork").Process(target=build, args=arguments)
    process.start()
    return process


def lines_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/index.txt")) // LINE_LENGTH


def test_a_build_that_is_killed_is_completed_with_what_is_missing(tmp_path, counted) -> None:
    folder = tmp_path / "cache"
    process = started(folder, 0.0, tmp_path / "log", 0, 9)
    while lines_in(folder) < 64:
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join(HANGS)
    assert process.exitcode == -signal.SIGKILL
    written = lines_in(folder)
    assert 64 <= written < 192
    sites = cached(None, module=many(folder))
    assert sum(counted) == 192 - written
    check_against_one_build(sites, tmp_path, many)


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 6, 7])
def test_a_build_that_dies_right_after_any_write_is_completed(tmp_path, counted, kill_at) -> None:
    """The manifest, then of each append: embeddings, taps, index."""
    folder = tmp_path / "cache"
    process = started(folder, 0.0, tmp_path / "log", kill_at)
    process.join(HANGS)
    assert process.exitcode == -signal.SIGKILL
    written = 32 * ((kill_at - 1) // 3)
    assert lines_in(folder) == written
    sites = cached(None, module=many(folder))
    assert sum(counted) == 192 - written
    check_against_one_build(sites, tmp_path, many)


def test_two_processes_that_build_the_same_store_share_the_work(tmp_path) -> None:
    folder = tmp_path / "cache"
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [started(folder, 0.02, log) for log in logs]
    for process in processes:
        process.join(HANGS)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sum(int(line) for log in logs if log.exists() for line in log.read_text().split()) == 192
    check_against_one_build(cached(None, module=many(folder)), tmp_path, many)


def test_a_store_that_is_being_written_is_not_removed(tmp_path) -> None:
    store = cached(tmp_path).store
    other = next(iter(stores_in(tmp_path).values()))
    with store.writing(), pytest.raises(TimeoutError):
        remove_store(other)
    assert len(next(iter(stores_in(tmp_path).values()))) == IMAGES
    remove_store(other)
    assert list(tmp_path.iterdir()) == []


# -- loaders -----------------------------------------------------------------------------------------------------------

LOADERS = {
    "train": lambda sites: sites.train_loader("site_a", 3),
    "joined": lambda sites: sites.train_loader(["site_c", "site_a", "site_b"], 4),
    **{split: lambda sites, split=split: sites.evaluation_loader("site_b", split) for split in SPLITS},
}
AUGMENTED = [{}, {"augmentation": "crops", "views": 3}, {"augmentation": "flips", "views": 2}]


@pytest.mark.parametrize("options", AUGMENTED[:2], ids=["plain", "crops"])
@pytest.mark.parametrize(("need", "grid"), [("pooled", False), ("tokens", True), ("taps", False), ("taps", True)])
def test_loaders_of_a_cache_give_the_same_taps_bit_for_bit(tmp_path, need, options, grid) -> None:
    own = gridded() if grid else encoder()
    options = options | {"validation_fraction": 0.3, "evaluation_batch_size": 4}
    sites, plain = cached(tmp_path, need, own=own, **options), uncached(own, **options)
    for loader in LOADERS.values():
        one, other = loader(sites), loader(plain)
        count = same_batches(own, need, one, other)
        assert count == len(one.dataset) == len(other.dataset)
        assert count > 4
    one, other = LOADERS["joined"](sites), LOADERS["joined"](plain)
    for loader in (one, other):
        loader.sampler.set_epoch(1)
    same_batches(own, need, one, other)


@pytest.mark.parametrize("options", AUGMENTED, ids=["plain", "crops", "flips"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_unlabelled_batches_of_a_cache_are_the_same_bit_for_bit(tmp_path, split, options) -> None:
    options = options | {"validation_fraction": 0.4}
    sites, plain = cached(tmp_path, "pooled", **options), uncached(**options)
    one, other = sites.unlabelled("site_a", split, 7), plain.unlabelled("site_a", split, 7)
    for _ in range(3 * (plain.samples("site_a", split) // 8 + 1)):
        check_taps(encoder(), "pooled", next(one), next(other))


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_loader_gives_embeddings_whatever_is_cached(tmp_path, kind) -> None:
    options = {"augmentation": "crops", "views": 2}
    sites, plain = cached(tmp_path, kind, **options), uncached(**options)
    loader = sites.evaluation_loader("site_a", "train", need="pooled")
    assert same_batches(encoder(), "pooled", loader, plain.evaluation_loader("site_a", "train", need="pooled")) == 21
    assert next(iter(loader))[0].kind == "pooled"
    assert next(iter(sites.evaluation_loader("site_a", "train")))[0].kind == kind


def test_a_site_without_validation_images_has_an_empty_loader(tmp_path) -> None:
    sites = cached(tmp_path, validation_fraction=0.0)
    assert list(sites.evaluation_loader("site_a", "validation")) == []
    with pytest.raises(DataError):
        sites.unlabelled("site_a", "validation", 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_smaller_dtypes_are_near_and_decoded_to_float32(tmp_path, dtype) -> None:
    sites, plain = cached(tmp_path, "taps", cache_dtype=dtype), uncached()
    batch, _ = next(iter(sites.train_loader("site_a", 1)))
    images, _ = next(iter(plain.train_loader("site_a", 1)))
    found = encoder().taps_of(batch, "taps").tensors
    for one, other in zip(found, encoder().extract(images, "taps").tensors, strict=True):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).abs().max() < 0.01 * other.abs().max()


# -- views -------------------------------------------------------------------------------------------------------------

EPOCHS = 32


def views_seen(loader, epochs=EPOCHS) -> dict[int, set[bytes]]:
    """Position of a training image -> all that the epochs show of it."""
    seen: dict[int, set[bytes]] = {}
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        positions = [position for draws in loader.sampler for position in draws.positions]
        shown = [row for batch, _ in loader for row in _rows(batch)]
        for position, row in zip(positions, shown, strict=True):
            seen.setdefault(position, set()).add(row.numpy().tobytes())
    return seen


def test_an_image_has_so_many_views_over_all_epochs_and_runs_and_is_evaluated_as_it_is(tmp_path) -> None:
    options = {"augmentation": "crops", "views": 3, "sites": 1, "samples_per_site": [9], "test_samples_per_site": [3]}
    options |= {"validation_fraction": 0.0}
    plain, sites = uncached(**options), cached(tmp_path, "pooled", **options)
    seen = views_seen(plain.train_loader("site_a", 1))
    assert {len(views) for views in seen.values()} == {3}
    assert len(seen) == 9
    assert len(set().union(*seen.values())) == 27
    assert views_seen(plain.train_loader("site_a", 2)) == seen
    of_cache = views_seen(sites.train_loader("site_a", 1))
    assert {len(views) for views in of_cache.values()} == {3}
    assert views_seen(sites.train_loader("site_a", 2)) == of_cache
    assert len(sites.store) == 9 * 4 + 3
    expected = {
        position: {encoder().extract(_image(view), "pooled").tensors[0][0].numpy().tobytes() for view in views}
        for position, views in seen.items()
    }
    assert of_cache == expected
    for one, views in ((plain, seen), (sites, of_cache)):
        for split in ("train", "test"):
            shown = [row for batch, _ in one.evaluation_loader("site_a", split) for row in _rows(batch)]
            assert not {row.numpy().tobytes() for row in shown} & set().union(*views.values())


def _image(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.float32).view(1, 3, 32, 32)


def _rows(batch):
    return batch if isinstance(batch, torch.Tensor) else batch.tensors[0]


def test_fewer_views_are_the_first_of_more_and_each_augmentation_has_its_own(tmp_path, counted) -> None:
    options = {"sites": 1, "samples_per_site": [9], "test_samples_per_site": [3], "validation_fraction": 0.0}
    for augmentation, views, new in (("crops", 2, 12 + 18), ("crops", 3, 9), ("flips", 3, 27), ("none", 0, 0)):
        counted.clear()
        cached(tmp_path, "pooled", augmentation=augmentation, views=views, **options)
        assert sum(counted) == new, (augmentation, views)


def test_without_views_each_epoch_draws_new_ones() -> None:
    options = {"augmentation": "crops", "sites": 1, "samples_per_site": [9], "test_samples_per_site": [3]}
    seen = views_seen(uncached(**options).train_loader("site_a", 1), 5)
    assert {len(views) for views in seen.values()} == {5}


# -- whole runs --------------------------------------------------------------------------------------------------------


def run(folder: Path, name: str, method, precision="32-true", **options):
    """Summary of a run, without its costs in time."""
    few = {"sites": 2, "samples_per_site": [16, 12], "test_samples_per_site": [6, 6], "cache": "none"}
    sites = data(**(few | options))
    summary = fit(folder / name, method(), sites=sites, trainer_options={"precision": precision})
    summary.pop("cost")
    return summary


def states(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "run/state").rglob("*.safetensors")}
    assert len(found) >= 3  # of the best round and of each round kept
    return found


UNLABELLED = functools.partial(FACMIC, target="own_unlabelled")
RUNS = [
    pytest.param(PFedST, "taps", {}, id="PFedST"),
    pytest.param(FedAvg, "taps", {}, id="FedAvg"),
    pytest.param(FedCLIP, "pooled", {}, id="FedCLIP"),
    pytest.param(Pooled, "taps", {}, id="Pooled"),
    pytest.param(FACMIC, "pooled", {}, id="FACMIC"),
    pytest.param(UNLABELLED, "pooled", {"validation_fraction": 0.4}, id="FACMIC-unlabelled"),
    pytest.param(
        UNLABELLED, "pooled", {"validation_fraction": 0.4, "augmentation": "flips", "views": 2}, id="FACMIC-views"
    ),
    pytest.param(FedLoRA, "images", {}, id="FedLoRA"),
    pytest.param(PFedST, "images", {"augmentation": "flips"}, id="PFedST-new-flips"),
    pytest.param(PFedST, "taps", {"augmentation": "flips", "views": 2}, id="PFedST-flips"),
    pytest.param(Pooled, "taps", {"augmentation": "crops", "views": 2}, id="Pooled-crops"),
    pytest.param(PFedST, "taps", {"precision": "bf16-mixed"}, id="PFedST-bf16-mixed"),
]


@pytest.mark.parametrize(("method", "kind", "options"), RUNS)
def test_a_run_with_a_cache_is_the_run_without_byte_for_byte(tmp_path, method, kind, options) -> None:
    plain = run(tmp_path, "plain", method, **options)
    for name in ("filling", "reading")[: 2 if (method, options) == (PFedST, {}) else 1]:
        with_cache = run(tmp_path, name, method, cache="auto", cache_folder=tmp_path / "cache", **options)
        found = [store.layout.kind for store in stores_in(tmp_path / "cache").values()]
        assert found == [kind]
        assert states(tmp_path / name) == states(tmp_path / "plain")
        for key in plain:
            if key not in ("protocol", "environment"):  # the latter has the minute of the run
                assert with_cache[key] == plain[key], key


def numbers(tree) -> list[float]:
    if isinstance(tree, dict):
        return [number for part in tree.values() for number in numbers(part)]
    if isinstance(tree, list):
        return [number for part in tree for number in numbers(part)]
    return [tree] if isinstance(tree, float) else []


@pytest.mark.parametrize("method", [PFedST, FedCLIP])
def test_a_run_on_int8_works_and_its_metrics_are_finite(tmp_path, method) -> None:
    folder = tmp_path / "cache"
    summary = run(tmp_path, "int8", method, cache="auto", cache_dtype="int8", cache_folder=folder)
    assert len(numbers(summary["personal"])) > 10
    assert all(math.isfinite(number) for number in numbers(summary))
    assert [store.layout.dtype for store in stores_in(folder).values()] == ["int8" if method is PFedST else "float32"]


def test_a_run_on_averaged_patches_and_int8_starts_as_the_encoder(tmp_path) -> None:
    """Before the first round the side network predicts what prototypes predict of the embeddings themselves."""
    sites = cached(tmp_path, "taps", own=gridded(), cache_dtype="int8")
    batch, _ = next(iter(sites.train_loader("site_a", 1)))
    taps = gridded().taps_of(batch, "taps")
    images, _ = next(iter(uncached().train_loader("site_a", 1)))
    own = gridded().extract(images, "pooled").tensors[0]
    assert (gridded().finish(taps.tensors[-1], taps.correction) - own).abs().max() < 0.05 * own.abs().max()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_another_dtype_is_made_of_the_float32_store_without_the_encoder(tmp_path, counted, dtype) -> None:
    direct = cached(None, module=data(cache="taps", cache_folder=tmp_path / "direct", cache_dtype=dtype)).store
    cached(tmp_path / "both", kind="taps")
    counted.clear()
    converted = cached(None, module=data(cache="taps", cache_folder=tmp_path / "both", cache_dtype=dtype)).store
    assert not counted
    assert converted.folder.name == direct.folder.name
    assert not converted.damaged()
    assert converted.row_of.keys() == direct.row_of.keys()
    for key, row in direct.row_of.items():
        for need in ("taps", "pooled"):
            one, other = (
                direct.read(torch.tensor([row]), need),
                converted.read(torch.tensor([converted.row_of[key]]), need),
            )
            assert all(
                torch.equal(a, b) for a, b in zip(one.tensors + one.scales, other.tensors + other.scales, strict=True)
            )


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 2), (3600.0, 1)])
def test_a_log_file_learns_the_time_left_again_and_again(tmp_path, monkeypatch, capsys, seconds, lines) -> None:
    """93 images in steps of 32: after the first step and after the second one; after the last nothing is left."""
    monkeypatch.setattr(taps_cache, "REPORT_SECONDS", seconds)
    cached(tmp_path)
    log = capsys.readouterr().err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)  # no control character but the end of a line
    left = [line for line in log.splitlines() if "left" in line]
    assert [line.split(" of ")[0] for line in left] == ["cache: 32", "cache: 64"][:lines]


def test_without_filling_nothing_is_computed_and_what_is_missing_is_counted(tmp_path, counted) -> None:
    module = uncached(cache="taps", cache_folder=tmp_path)
    module.complete_cache(encoder(), "taps", CPU, fills=False)
    kind, images, size = module.missing
    assert (images, counted, module.store) == (IMAGES, [], None)
    assert size > 0
    assert not list(tmp_path.rglob("*.bin"))
    full = cached(tmp_path)
    assert full.missing == (kind, images, size)
    assert full.store.bytes == size
    module.complete_cache(encoder(), "taps", CPU, fills=False)
    assert module.missing == ("images", 0, 0)
    assert module.store is not None
