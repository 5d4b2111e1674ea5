"""Wrong input gets one clear error that names the culprit and the remedy, before the first epoch."""

import dataclasses
import shutil

import pytest
from PIL import Image

from pfedst.data import FedISIC2019, FolderSites, ManifestSites, SyntheticSites
from pfedst.encoders import Preprocessing
from pfedst.errors import DataError, PfedstError
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def check(data, words) -> None:
    with pytest.raises(PfedstError) as caught:
        data().prepare(SMALL)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


FOLDER = [
    (lambda root: shutil.rmtree(root), {}, ["no such folder", "--data.root"]),
    (lambda root: shutil.rmtree(root / "clinic_a" / "test"), {}, ["clinic_a/test is missing", "train", "SITE/train/CLASS"]),
    (lambda root: shutil.rmtree(root / "clinic_b" / "test") or (root / "clinic_b" / "test").mkdir(), {}, ["images: ", "clinic_b", "no test image", "train"]),
    (lambda root: [shutil.rmtree(path) for path in root.iterdir()], {}, ["holds no folder", "SITE/train/CLASS"]),
    (lambda root: None, {"root": "clinic_a"}, ["train/test itself", "one folder per site"]),
    (lambda root: None, {"site_names": ["clinic_c"]}, ["clinic_c", "Did you mean", "clinic_a"]),
    (lambda root: None, {"class_names": ["benign", "maligant", "unclear"]}, ["malignant", 'Did you mean "maligant"', "rename"]),
    (lambda root: truncate(root / "clinic_a/train/benign/1.png"), {}, ["1 of 60", "clinic_a/train/benign/1.png", "copy them again"]),
    (lambda root: (root / "clinic_a/train/benign/1.png").write_text("text"), {}, ["not an image", "benign/1.png"]),
    (lambda root: (root / "clinic_a/train/benign/1.png").write_bytes(b""), {}, ["not an image", "benign/1.png"]),
    (lambda root: [truncate(path) for path in root.rglob("*.jpg")], {}, ["30 of 60", "and 20 more"]),
    (lambda root: Image.new("1", (20000, 10000)).save(root / "clinic_a/train/benign/1.png"), {}, ["benign/1.png", "decompression bomb"]),
    (lambda root: None, {"validation_fraction": 1.0}, ["validation_fraction 1.0"]),
    (lambda root: None, {"batch_size": 0}, ["batch sizes"]),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "options", "words"), FOLDER)
def test_folders(tmp_path, damage, options, words) -> None:
    root = make_folder(tmp_path / "images")
    damage(root)
    options = dict(options)
    folder = root / options.pop("root", "")
    check(lambda: FolderSites(folder, **options), words)


def test_no_root_given() -> None:
    check(FolderSites, ["--data.root is not given"])


def changed(**change):
    def change_first(table):
        table[0] |= change
        return table

    return change_first


MANIFEST = [
    (changed(split="tarin"), {}, ["line 2", "tarin", 'Did you mean "train"']),
    (changed(split=""), {}, ["line 2", '"split" is empty']),
    (changed(label=""), {}, ["line 2", '"label" is empty']),
    (changed(path="images/none.png"), {}, ["1 of 60 images are missing", "none.png", "correct the paths in", "--data.root"]),
    (changed(path="../../secret.png"), {}, ["line 2", "leads out of"]),
    (changed(path="/etc/passwd"), {}, ["line 2", "leads out of"]),
    (changed(label="bening"), {"class_names": ["benign", "malignant", "unclear"]}, ["line 2", 'Did you mean "benign"']),
    (changed(label="3"), {"class_names": ["benign", "malignant", "unclear"]}, ["line 2", "3 is out of range 0 to 2"]),
    (changed(label="-1"), {"class_names": ["benign", "malignant", "unclear"]}, ["line 2", "out of range"]),
    (lambda t: [*t, t[0]], {}, ["line 62", "already on line 2", "keep one"]),
    (lambda t: [{k: v for k, v in row.items() if k != "site"} for row in t], {}, ['no column "site"', "path, label"]),
    (lambda t: [row for row in t if (row["site"], row["split"]) != ("north", "test")], {}, ["manifest.csv: ", "north", "no test image"]),
    (lambda t: [row for row in t if (row["site"], row["split"]) != ("south", "train")], {}, ["manifest.csv: ", "south", "no train image"]),
    (lambda t: t, {"class_names": ["benign", "malignant", "unclear", "benign"]}, ["manifest.csv: ", "benign is named twice"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "words"), MANIFEST)
def test_manifests(tmp_path, change, options, words) -> None:
    file = make_manifest(tmp_path, change(rows()))
    check(lambda: ManifestSites(file, **options), words)


def test_other_manifests(tmp_path) -> None:
    file = make_manifest(tmp_path)
    file.write_text(file.read_text().splitlines()[0] + "\n")
    check(lambda: ManifestSites(file), ["no rows"])
    check(lambda: ManifestSites(tmp_path / "none.csv"), ["none.csv", "no such file"])
    check(lambda: ManifestSites(None), ["--data.manifest: give the table"])
    (tmp_path / "bad.parquet").write_text("text")
    check(lambda: ManifestSites(tmp_path / "bad.parquet"), ["bad.parquet", "not a readable table"])
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    check(lambda: ManifestSites(tmp_path / "bad.csv"), ["bad.csv", "not a readable table"])


def replace(old, new):
    def damage(root):
        file = root / "train_test_split"
        file.write_text(file.read_text().replace(old, new, 1))

    return damage


def replace_all(root, old, new):
    file = root / "train_test_split"
    file.write_text(file.read_text().replace(old, new))


FED_ISIC = [
    (lambda root: (root / "train_test_split").unlink(), {}, ["no file train_test_split", "FLamby", "--data.split_file"]),
    (lambda root: shutil.rmtree(root / "ISIC_2019_Training_Input_preprocessed"), {}, ["ISIC_2019_Training_Input_preprocessed", "give their parent"]),
    (lambda root: (root / "ISIC_2019_Training_Input_preprocessed/ISIC_0024307.jpg").unlink(), {}, ["1 of 192 images are missing", "ISIC_0024307.jpg", "complete", "--data.centers"]),
    (replace("center", "centre"), {}, ['no column "center"', "FLamby"]),
    (replace(",train,", ",tarin,"), {}, ["line 2", "tarin", "train or test"]),
    (replace(",0,0,train", ",8,0,train"), {}, ["line 2", "target 8"]),
    (replace(",0,0,train", ",0,7,train"), {}, ["line 2", "center 7"]),
    (replace(",0,0,train", ",x,0,train"), {}, ["line 2", "must be numbers"]),
    (lambda root: replace_all(root, ",5,test", ",5,train"), {}, ["train_test_split: ", "no test image (it has: train)"]),
    (lambda root: None, {"centers": [6]}, ["[6]", "0 to 5"]),
    (lambda root: None, {"centers": []}, ["0 to 5"]),
    (lambda root: None, {"centers": [1, 1]}, ["different numbers"]),
    (lambda root: None, {"split_file": "none"}, ["--data.split_file none", "no such file"]),
    (lambda root: None, {"metadata": "none.csv"}, ["--data.metadata none.csv", "no such file"]),
    (lambda root: (root / "ISIC_2019_Training_Metadata.csv").write_text("image\n"), {}, ["lesion_id"]),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "options", "words"), FED_ISIC)
def test_fed_isic(tmp_path, damage, options, words) -> None:
    damage(make_fed_isic(tmp_path))
    check(lambda: FedISIC2019(tmp_path, **options), words)


@pytest.mark.parametrize(
    "options",
    [{"sites": 0}, {"classes": 1}, {"image_size": 8}, {"samples_per_site": [9]}, {"noise": -1.0}, {"label_skew": 0.0}],
    ids=str,
)
def test_synthetic_options(options) -> None:
    check(lambda: SyntheticSites(**options), ["--data"])


def test_an_unverified_image_is_told_when_it_is_read(tmp_path) -> None:
    root = make_folder(tmp_path)
    truncate(root / "clinic_a/test/benign/1.png")
    data = FolderSites(root, verify_images=False)
    data.prepare(SMALL)
    with pytest.raises(PfedstError, match=r"benign/1.png"):
        list(data.evaluation_loader("clinic_a", "test"))


def test_a_site_that_is_written_in_two_ways_is_named_with_the_other_one() -> None:
    found = SyntheticSites(sites=2, samples_per_site=[4, 4], test_samples_per_site=[4, 4]).found()
    whole, other = found.splits.values()
    twice = dataclasses.replace(found, splits={"Nord": whole, "nord": {"test": other["test"]}})
    with pytest.raises(DataError, match='site "nord" has no train image.*Is it "Nord", written in another way?'):
        twice.check_splits()
