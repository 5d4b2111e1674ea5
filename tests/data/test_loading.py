"""Splits, orders and layouts: what comes out of good data."""

import itertools
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfedst.data import FedISIC2019, FolderSites, ManifestSites, SyntheticSites
from pfedst.data.sets.fed_isic import SITE_NAMES
from pfedst.data.sources import FileSource
from pfedst.data.splitting import drawn_order, split_groups
from pfedst.encoders import Preprocessing
from pfedst.seeds import generator
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import CLASSES, image
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "fedisic_ham4"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 8)), min_size=1, max_size=60),
    st.floats(0, 0.9),
    st.integers(0, 3),
)
def test_a_validation_cut_is_total_disjoint_and_splits_no_group(rows, fraction, seed) -> None:
    labels, groups = [label for label, _ in rows], [None if g is None else str(g) for _, g in rows]
    train, validation = split_groups(labels, groups, fraction, seed)
    assert sorted(train + validation) == list(range(len(rows)))
    of_train = {groups[i] for i in train} - {None}
    assert not of_train & {groups[i] for i in validation}
    assert (train, validation) == split_groups(labels, groups, fraction, seed)
    if not any(groups):
        assert {labels[i] for i in train} == set(labels)
        for label in set(labels):
            of_class = labels.count(label)
            cut = sum(labels[i] == label for i in validation)
            assert cut == min(round(fraction * of_class), of_class - 1)


def test_no_fraction_no_validation() -> None:
    assert split_groups([0, 0, 1], [None] * 3, 0.0, 0) == ([0, 1, 2], [])


@given(st.integers(0, 1300), st.integers(0, 2**63 - 1))
def test_the_drawn_order_is_that_of_torch(size, seed) -> None:
    """Splits of all runs were drawn with `torch.randperm`: another order would be another split."""
    assert drawn_order(size, seed) == torch.randperm(size, generator=generator(seed)).tolist()


def prepared(data):
    data.prepare(SMALL)
    return data


def test_a_site_of_few_units_gives_one_to_test_if_it_must() -> None:
    for labels, expected in (([0, 1, 2], 2), ([0, 0, 1], 2), ([0, 1], 1), ([0], 1), ([], 0)):
        groups = [None] * len(labels)
        kept, cut = split_groups(labels, groups, 0.2, 3, fewest=1)
        assert (len(kept), len(cut)) == (expected, len(labels) - expected)
        assert split_groups(labels, groups, 0.2, 3) == (list(range(len(labels))), [])
    kept, cut = split_groups([0, 1, 1], [None] * 3, 0.2, 3, fewest=1)
    assert 0 in kept  # the class of two images gives one
    assert split_groups([0, 1, 2], ["p", "p", "p"], 0.2, 3, fewest=1) == ([0, 1, 2], [])
    assert split_groups([0, 1, 2], ["p", "q", "q"], 0.2, 3, fewest=1)[1] in ([0], [1, 2])
    assert split_groups([0, 1, 2], ["p", "q", "r"], 0.2, 3, {"p": True}, fewest=1) == ([1, 2], [0])


def test_folders_that_a_mac_or_a_hasty_hand_named(tmp_path) -> None:
    """One class and one site in several ways, and splits under their common names."""
    make_folder(tmp_path / "clean")
    for path in (tmp_path / "clean").rglob("unclear"):
        path.rename(path.with_name("nävus"))
    (tmp_path / "clean/clinic_b").rename(tmp_path / "clean/Köln")
    expected = FolderSites(tmp_path / "clean").found()
    odd = Path(shutil.copytree(tmp_path / "clean", tmp_path / "odd"))
    (odd / "Köln").rename(odd / unicodedata.normalize("NFD", "Köln"))
    moved = odd / "Köln "
    shutil.copytree(odd / unicodedata.normalize("NFD", "Köln") / "test", moved / "test")
    shutil.rmtree(odd / unicodedata.normalize("NFD", "Köln") / "test")
    (odd / "clinic_a/train/nävus").rename(odd / "clinic_a/train" / unicodedata.normalize("NFD", "nävus "))
    (odd / "clinic_a/test").rename(odd / "clinic_a/Testing")
    for options in ({}, {"site_names": [" clinic_a", "Köln"], "class_names": ["benign", "malignant ", "nävus"]}):
        found = FolderSites(odd, **options).found()
        assert found.class_names == expected.class_names == ["benign", "malignant", "nävus"]
        counts = {(site, split): part.counts(3) for site, split, part in found.parts()}
        assert counts == {(site, split): part.counts(3) for site, split, part in expected.parts()}
        assert list(found.splits) == sorted(["clinic_a", "Köln"]) or options
        assert set(found.respelled) == {'site "Köln" (2 spellings)', 'class "nävus" (2 spellings)'}


def test_a_folder_val_is_the_validation(tmp_path) -> None:
    make_folder(tmp_path)
    image(tmp_path / "clinic_a/val/benign/1.png", 1)
    assert len(FolderSites(tmp_path).found().splits["clinic_a"]["validation"].labels) == 1


def test_a_folder(tmp_path) -> None:
    data = prepared(FolderSites(make_folder(tmp_path), validation_fraction=0.34))
    assert data.sites == ("clinic_a", "clinic_b")
    assert data.class_names == CLASSES
    assert [data.class_counts("clinic_a", s) for s in ("train", "validation", "test")] == [[4] * 3, [2] * 3, [4] * 3]
    images, targets = next(iter(data.evaluation_loader("clinic_b", "test")))
    assert images.shape == (12, 3, 16, 16)
    assert targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_folders_of_the_disk_are_no_sites_and_no_classes(tmp_path) -> None:
    """A Synology disk puts @eaDir with thumbnails into every folder, a zip file of a Mac __MACOSX beside the sites."""
    root = make_folder(tmp_path / "images")
    before = FolderSites(root).found()
    image = next(root.rglob("*.png"))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in ("@eaDir", "#recycle"):
            (folder / name / "1.png").mkdir(parents=True)
            shutil.copy(image, folder / name / "1.png" / "SYNOPHOTO_THUMB_M.png")
    (root / "__MACOSX" / "clinic_a" / "train").mkdir(parents=True)
    found = FolderSites(root).found()
    assert found.class_names == before.class_names
    assert {site: set(parts) for site, parts in found.splits.items()} == {s: set(p) for s, p in before.splits.items()}
    for site, split, part in found.parts():
        assert len(part.labels) == len(before.splits[site][split].labels)


def test_a_folder_with_chosen_sites_classes_and_validation(tmp_path) -> None:
    make_folder(tmp_path)
    image(tmp_path / "clinic_b" / "validation" / "unclear" / "a.png", 1)
    (tmp_path / "clinic_b" / "train" / "unclear" / "notes.txt").write_text("no image")
    data = prepared(FolderSites(tmp_path, site_names=["clinic_b"], class_names=["unclear", "malignant", "benign"]))
    assert data.sites == ("clinic_b",)
    assert data.class_counts("clinic_b", "validation") == [1, 0, 0]
    assert data.samples("clinic_b", "train") == 18


@pytest.mark.parametrize("suffix", [".gif", ".GIF", ".jp2", ".pgm", ".ppm", ".webp", ".tif"])
def test_files_of_every_format_that_is_read_are_listed(tmp_path, suffix) -> None:
    for site, split in itertools.product("ab", ("train", "test")):
        for number in range(3):
            file = image(tmp_path / site / split / "benign" / f"{number}.png", 10 * "ab".index(site) + number)
            with Image.open(file) as picture:
                picture.convert("L").save(file.with_suffix(suffix))
            file.unlink()
    data = prepared(FolderSites(tmp_path, audit="off"))
    assert [data.samples(site, "test") for site in data.sites] == [3, 3]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_manifest_never_splits_a_patient(tmp_path, separator) -> None:
    data = prepared(ManifestSites(make_manifest(tmp_path, separator=separator), validation_fraction=0.4))
    assert data.sites == ("north", "south")
    for site in data.sites:
        # three patients of two images a class; one of them is cut
        assert data.class_counts(site, "validation") == [2, 2, 2]
        assert data.class_counts(site, "train") == [4, 4, 4]


def test_the_order_of_rows_changes_nothing(tmp_path) -> None:
    one = prepared(ManifestSites(make_manifest(tmp_path)))
    other = prepared(ManifestSites(make_manifest(tmp_path, rows()[::-1])))
    for a, b in zip(one.train_loader("north", 5), other.train_loader("north", 5), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_a_manifest_with_indices_and_its_own_validation(tmp_path) -> None:
    table = [row | {"label": str(CLASSES.index(row["label"]))} for row in rows()]
    table[0]["split"] = "validation"
    data = prepared(ManifestSites(make_manifest(tmp_path, table), class_names=CLASSES, validation_fraction=0.4))
    assert data.samples("north", "validation") == 1
    assert data.samples("south", "validation") > 1


def test_a_parquet_manifest(tmp_path) -> None:
    pd, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    file = make_manifest(tmp_path)
    pd.read_csv(file).to_parquet(file.with_suffix(".parquet"))
    assert prepared(ManifestSites(file.with_suffix(".parquet"))).samples("north", "test") == 12


@pytest.mark.parametrize(("separator", "folder"), [(",", "."), ("\t", "a/b")])
def test_fed_isic(tmp_path, separator, folder) -> None:
    data = prepared(FedISIC2019(make_fed_isic(tmp_path, separator=separator, split_folder=folder)))
    assert data.sites == SITE_NAMES
    assert data.class_counts("msk", "test") == [1] * 8
    assert "lesion ids known" in data.label


def test_fed_isic_with_some_centres_and_without_lesions(tmp_path) -> None:
    make_fed_isic(tmp_path)
    (tmp_path / "ISIC_2019_Training_Metadata.csv").unlink()
    data = prepared(FedISIC2019(tmp_path, centers=[5, 0], split_file=tmp_path / "train_test_split"))
    assert data.sites == ("vienna_dias", "bcn")
    assert "no lesion ids" in data.label


def test_the_real_four_sites() -> None:
    if not REAL.is_dir():
        pytest.skip("the real images of four FedISIC centres are not on this machine")
    data = FedISIC2019(REAL, centers=[1, 2, 3, 5], verify_images=False, validation_fraction=0.0)
    data.prepare(SMALL)
    found = {site: (data.samples(site, "train"), data.samples(site, "test")) for site in data.sites}
    assert found == {
        "vidir_molemax": (2516, 643),
        "vidir_modern": (1075, 271),
        "rosendahl": (1008, 251),
        "vienna_dias": (174, 46),
    }
    assert data.class_counts("vidir_molemax", "test") == [3, 605, 0, 0, 21, 7, 7, 0]
    assert data.class_counts("vienna_dias", "test") == [5, 38, 0, 0, 2, 0, 1, 0]


def test_synthetic_sites_are_seeded_and_differ() -> None:
    one, again, other = (prepared(SyntheticSites(sites=2, seed=seed)) for seed in (0, 0, 1))
    batches = [next(iter(d.evaluation_loader("site_a", "test")))[0] for d in (one, again, other)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    colour = [next(iter(one.evaluation_loader(s, "test")))[0].mean((0, 2, 3)) for s in one.sites]
    assert (colour[0] - colour[1]).abs().max() > 0.1
    assert all(min(one.class_counts(site, "test")) == 30 for site in one.sites)
    assert "SYNTHETIC" in one.label


def test_without_heterogeneity_synthetic_sites_look_alike() -> None:
    data = prepared(SyntheticSites(sites=2, heterogeneity=0.0, noise=0.0))
    colour = [next(iter(data.evaluation_loader(s, "test")))[0].mean((0, 2, 3)) for s in data.sites]
    assert (colour[0] - colour[1]).abs().max() < 0.1


@pytest.mark.parametrize("augmentation", ["none", "flips", "crops"])
def test_training_batches_are_a_function_of_the_seed_whatever_loads_them(augmentation) -> None:
    batches = []
    for workers in (0, 2):
        data = prepared(SyntheticSites(sites=1, samples_per_site=[24], augmentation=augmentation, num_workers=workers))
        loader = data.train_loader("site_a", 3)
        epochs = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            torch.manual_seed(epoch * workers)  # the global generator is nobody's API
            epochs.append(torch.cat([images for images, _ in loader]))
        batches.append(epochs)
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert not torch.equal(*batches[0])


def test_augmentation_changes_training_images_only() -> None:
    plain, flipped = (prepared(SyntheticSites(sites=1, augmentation=a)) for a in ("none", "flips"))
    assert torch.equal(*(next(iter(d.evaluation_loader("site_a", "test")))[0] for d in (plain, flipped)))
    assert not torch.equal(*(next(iter(d.train_loader("site_a", 0)))[0] for d in (plain, flipped)))


def test_no_training_image_is_dropped() -> None:
    data = prepared(SyntheticSites(sites=1, samples_per_site=[41], batch_size=8, validation_fraction=0.0))
    assert sum(len(targets) for _, targets in data.train_loader("site_a", 0)) == 41


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode) -> None:
    grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    deep = mode == "I;16"
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if deep else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.tif")
    loaded = np.asarray(FileSource([tmp_path / "a.tif"]).load(0))
    assert loaded.shape == (8, 8, 3)
    assert loaded.max() > 200
    if mode in ("L", "I;16"):
        assert np.abs(loaded[..., 0].astype(int) - grey).max() <= 1


def test_exif_rotation_is_honoured(tmp_path) -> None:
    picture = Image.new("RGB", (10, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert FileSource([tmp_path / "a.jpg"]).load(0).size == (4, 10)


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(0, 5))
def test_a_sampler_gives_every_sample_once(size, epoch) -> None:
    from pfedst.data.sampling import InOrder, SeededSampler

    shuffled, ordered = SeededSampler(size, 7, 1), InOrder(size, 7)
    shuffled.set_epoch(epoch)
    for sampler in (shuffled, ordered):
        batches = [draws.positions for draws in sampler]
        assert [len(batch) for batch in batches] == [7] * (size // 7) + [size % 7] * (size % 7 > 0)
        positions = [position for batch in batches for position in batch]
        assert sorted(positions) == list(range(size))
        assert len(sampler) == len(batches)
    assert positions == list(range(size))
