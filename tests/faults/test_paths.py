"""No file outside of the folders that a user names is read, unless the user says so; and what is there is still read."""

import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from pfedst.cli import main
from pfedst.data import FedDRG, FedISIC2019, FolderSites, HuggingFaceSites, ManifestSites
from pfedst.data.files import look
from pfedst.errors import DataError
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import image
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import make as make_image_folder
from tests.fake_data.image_folder.data import own_cache, save
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows

ALLOW = "outside_files true"


def refused(data, words) -> None:
    with pytest.raises(DataError) as caught:
        data.found()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


def linked(path: Path, target: Path) -> Path:
    """A file or folder is moved to `target`, and a link is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    path.symlink_to(target)
    return target


# -- what leads out --------------------------------------------------------------------------------------------


def manifest_with(root: Path, path: str) -> Path:
    table = rows()
    table[3]["path"] = path
    return make_manifest(root, table)


OUT_OF_MANIFESTS = {
    "dots": lambda root: "../outside/secret.png",
    "dots within": lambda root: "images/../../outside/secret.png",
    "absolute": lambda root: str(root.parent / "outside/secret.png"),
    "a system file": lambda root: "/etc/passwd",
    "not there": lambda root: "../../no/such/file.png",
    "a neighbour whose name begins alike": lambda root: f"../{root.name}_2/secret.png",
}


@pytest.mark.parametrize("name", OUT_OF_MANIFESTS)
def test_a_row_that_leads_out(tmp_path, name) -> None:
    image(tmp_path / "outside/secret.png", 1)
    image(tmp_path / "data_2/secret.png", 1)
    file = manifest_with(tmp_path / "data", OUT_OF_MANIFESTS[name](tmp_path / "data"))
    refused(ManifestSites(file), [f"{file}, line 5: ", f"leads out of {tmp_path / 'data'}", "--data.root", ALLOW])


def test_the_option_allows_them(tmp_path) -> None:
    image(tmp_path / "outside/secret.png", 1)
    file = manifest_with(tmp_path / "data", "../outside/secret.png")
    assert ManifestSites(file, outside_files=True).found()
    file = manifest_with(tmp_path / "data", "../outside/none.png")
    refused(ManifestSites(file, outside_files=True), ["1 of 60 images are missing", "outside/none.png"])


@pytest.mark.parametrize("how", ["absolute", "dots that come back", "root given", "link to the root", "no root at all"])
def test_rows_that_stay_within(tmp_path, how, monkeypatch) -> None:
    root = tmp_path / "data"
    first = str(root / rows()[3]["path"]) if how == "absolute" else rows()[3]["path"]
    file = manifest_with(root, f"../data/{first}" if how == "dots that come back" else first)
    if how == "link to the root":
        (tmp_path / "link").symlink_to(root)
        assert ManifestSites(tmp_path / "link/manifest.csv").found()
    elif how == "root given":
        moved = shutil.move(file, tmp_path / "elsewhere.csv")
        refused(ManifestSites(moved), ["60 of 60 images are missing", "--data.root"])
        assert ManifestSites(moved, root=root).found()
    elif how == "no root at all":
        monkeypatch.chdir(root)
        assert ManifestSites("manifest.csv").found()
    else:
        assert ManifestSites(file).found()


def drg(root: Path) -> FedDRG:
    return FedDRG(make_fed_drg(root), ["APTOS"])


SETS = {
    "folder": (lambda root: FolderSites(make_folder(root)), "clinic_a/train/benign/1.png"),
    "manifest": (lambda root: ManifestSites(make_manifest(root)), "images/north_train_benign_0.png"),
    "fed_isic": (lambda root: FedISIC2019(make_fed_isic(root)), "ISIC_2019_Training_Input_preprocessed/ISIC_0024307.jpg"),
    "fed_drg": (drg, "images/APTOS/pdr/000c1434d8df.png"),
    "imagefolder": (lambda root: HuggingFaceSites(make_image_folder(root)), "train/north_benign_0.png"),
}  # fmt: skip


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("name", SETS)
def test_a_link_that_leads_out(tmp_path, name, what, monkeypatch) -> None:
    own_cache(monkeypatch, tmp_path / "cache")
    data, path = SETS[name][0](tmp_path / "data"), tmp_path / "data" / SETS[name][1]
    assert data.found()
    if what == "file":
        target = linked(path, tmp_path / "outside" / path.name)
    elif name == "imagefolder":
        target = linked(path.parent, tmp_path / "outside") / path.name
    else:
        target = linked(path.parent, tmp_path / "outside")
    told = [f"to {target}"] if what == "file" else [f"to {tmp_path / 'outside'}"]
    refused(data, [f"leads out of {tmp_path / 'data'}", *told, ALLOW])
    data.outside_files = True
    assert data.found()


def test_links_within_the_root_are_read(tmp_path) -> None:
    root = make_folder(tmp_path / "data")
    linked(root / "clinic_a/train/benign/1.png", root / ".originals/1.png")
    (tmp_path / "link").symlink_to(root)
    assert FolderSites(tmp_path / "link").found()
    # by way of another folder, and back
    other = root / "clinic_b/train/benign/1.png"
    (tmp_path / "way").symlink_to(linked(other, root / ".originals/2.png"))
    other.unlink()
    other.symlink_to("../../../../way")
    assert FolderSites(root).found()


def test_an_image_folder_that_is_named_may_be_anywhere(tmp_path) -> None:
    images = make_fed_isic(tmp_path / "data") / "ISIC_2019_Training_Input_preprocessed"
    shutil.move(images, tmp_path / "disk")
    assert FedISIC2019(tmp_path / "data", images=tmp_path / "disk").found()


def test_a_snapshot_of_the_hub_is_links_to_its_blobs(tmp_path) -> None:
    root = make_folder(tmp_path / "hub/datasets--a--b/snapshots/123abc/images")
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        linked(path, tmp_path / f"hub/datasets--a--b/blobs/{number}")
    assert FolderSites(root).found()
    linked(sorted(root.rglob("*.jpg"))[0], tmp_path / "hub/secret.jpg")
    refused(FolderSites(root), ["leads out of", "hub/secret.jpg"])


def test_saved_sets_of_hugging_face(tmp_path, monkeypatch) -> None:
    own_cache(monkeypatch, tmp_path / "cache")
    root = make_image_folder(tmp_path / "data")
    assert HuggingFaceSites(save(root, tmp_path / "saved")).found()


def test_archives_of_hugging_face(tmp_path, monkeypatch) -> None:
    """Old releases of the library unpack them into its cache, new ones leave them as they are."""
    own_cache(monkeypatch, tmp_path / "cache")
    root = make_image_folder(tmp_path / "data")
    with zipfile.ZipFile(root / "train/images.zip", "w") as archive:
        for path in sorted((root / "train").glob("*.[pc]*")):
            archive.write(path, path.name)
            path.unlink()
    told = ""
    try:
        HuggingFaceSites(root).found()
    except DataError as error:
        told = str(error)
    assert told == "" or "is in an archive; unpack it" in told


# -- what leads nowhere ----------------------------------------------------------------------------------------


def circle(path: Path) -> None:
    path.symlink_to(path.with_name("other.png"))
    path.with_name("other.png").symlink_to(path)


NOWHERE = {
    "itself": (lambda path: path.symlink_to(path), "a link that leads to no file"),
    "circle": (circle, "a link that leads to no file"),
    "dangling": (lambda path: path.symlink_to("none.png"), "a link that leads to no file"),
    "to a folder": (lambda path: path.symlink_to(path.parent), None),
    "to a pipe": (lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")), "no file"),
    "a folder": (Path.mkdir, None),
    "a pipe": (os.mkfifo, None),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_link_that_leads_nowhere(tmp_path, name) -> None:
    """A pipe would be waited for without an end."""
    make, told = NOWHERE[name]
    file = make_manifest(tmp_path / "table")
    folder = make_folder(tmp_path / "folder")
    for path in (tmp_path / "table" / rows()[0]["path"], folder / "clinic_a/train/benign/1.png"):
        path.unlink()
        make(path)
    refused(ManifestSites(file), ["images are missing", rows()[0]["path"], told or "no file"])
    if told:
        refused(FolderSites(folder), ["images are missing", "benign/1.png", told])
    else:  # in a folder only files are taken for images
        assert FolderSites(folder).found()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("images\\north_train_benign_3.png", ["write / in place of \\"]),
        ("..\\..\\secret.png", ["write / in place of \\"]),
        ("images/North_Train_benign_3.PNG", ["there is north_train_benign_3.png"]),
        ("images/a\0b.png", ["zero bytes"]),
        ("images", ["no file"]),
        (".", ["leads out of"]),
        ("images/" + "a" * 90_000 + ".png", ["images/aaaa", "...", "aaa.png"]),
        ("C:\\images\\a.png", ["write / in place of \\"]),
    ],
    ids=["windows", "windows out", "case", "zero byte", "folder", "root", "long", "drive"],
)
@pytest.mark.skipif(os.sep != "/", reason="there these are names of files")
def test_odd_rows(tmp_path, path, words) -> None:
    with pytest.raises(DataError) as caught:
        ManifestSites(manifest_with(tmp_path, path)).found()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert len(str(caught.value)) < 1000


# -- commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    """A manifest and its folder of images, one of which is a link that leads out."""
    file = make_manifest(tmp_path / "pool")
    linked(tmp_path / "pool" / rows()[0]["path"], tmp_path / "outside/secret.png")
    tree = tmp_path / "tree"
    make_folder(tree)
    linked(tree / "clinic_a/train/benign/1.png", tmp_path / "outside/1.png")
    return file


COMMANDS = {
    "audit": (["audit", "pool/manifest.csv", "--method=PFedST", "--audit.images_per_site=0"], "--data.outside_files"),
    "init": (["init", "tree"], "--outside_files"),
    "preprocess": (["preprocess", "pool/images", "small", "--shorter_side=16", "--workers=1"], "--outside_files"),
    "partition": (["partition", "pool/manifest.csv", "cut", "--by=features", "--sites=2"], "--outside_files"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_obey(tmp_path, pool, name, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, option = COMMANDS[name]
    assert main(["data", *arguments]) == 3
    message = capsys.readouterr().err
    assert [word for word in ("leads out of", "outside", f"{option} true") if word not in message] == [], message
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / "cut/manifest.csv").exists()
    assert main(["data", *arguments, f"{option}=false"]) == 3
    assert main(["data", *arguments, f"{option}=true"]) == 0


def test_a_folder_is_listed_once_and_no_file_is_asked_for(tmp_path, monkeypatch) -> None:
    """100,000 files on a network disk must not take 100,000 answers."""
    paths = [tmp_path / f"{number % 3}/{number}.png" for number in range(300)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    asked: Counter[str] = Counter()

    def counted(name):
        original = getattr(os, name)

        def call(*arguments, **options):
            asked[name] += 1
            return original(*arguments, **options)

        return call

    for name in ("scandir", "stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, counted(name))
    found = look(paths, [tmp_path])
    assert (found.missing, found.outside) == ({}, {})
    assert asked["scandir"] == 3
    assert sum(asked.values()) < 100
