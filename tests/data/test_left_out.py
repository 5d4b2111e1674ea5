"""What a reader does not use is counted, by kind."""

import shutil

from pfedst.data import FedDRG, FedISIC2019, FolderSites, ManifestSites
from pfedst.data.left_out import left_out, left_out_line
from tests.data.test_wrong_input import SMALL
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import image, make
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows


def filled(root):
    """Images of two sites, and everything that lies among images of a hospital."""
    make(root)
    site = root / "clinic_a"
    for name in ("report.pdf", "letter.DOCX", "train/benign/0.json", "train/benign/1.png.xml", "train/benign/notes"):
        (site / name).write_text("text")
    for name in (".DS_Store", "train/Thumbs.db", "train/._benign"):
        (site / name).write_text("text")
    for name in ("train/rare", "test/@eaDir/0.png"):
        (site / name).mkdir(parents=True)
    shutil.copy(site / "train/benign/1.png", site / "test/@eaDir/0.png/thumb.png")
    image(site / "train/benign/P1/0.png", 1)
    image(site / "train/beside.png", 2)
    (root / "__MACOSX" / "clinic_a").mkdir(parents=True)
    (root / "readme.txt").write_text("text")
    return root


EXPECTED = {
    ".pdf": 1,
    ".docx": 1,
    ".json beside an image of the same name": 1,
    ".xml beside an image of the same name": 1,
    "without suffix": 1,
    "hidden": 2,
    "Thumbs.db": 1,
    "@eaDir": 1,
    "images outside the folders of classes": 2,
    "folder without an image that is read (train/rare)": 1,
    "folder without an image that is read (train/benign/P1)": 1,
}


def test_folders(tmp_path, caplog) -> None:
    data = FolderSites(filled(tmp_path))
    assert data.read().left_out == {"": {"__MACOSX": 1, ".txt": 1}, "clinic_a": EXPECTED}
    data.prepare(SMALL)
    lines = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(lines) == 2  # one for each site, and one for the data set
    assert lines[0] == "data set: not used: 1 .txt, 1 __MACOSX"
    assert lines[1].startswith('site "clinic_a": not used: 2 hidden, 2 images outside the folders of classes, 1 .docx')


def test_nothing_is_left_out_of_clean_folders(tmp_path, caplog) -> None:
    assert FolderSites(make(tmp_path)).read().left_out == {}


def test_links_to_folders_are_followed_where_they_are_used(tmp_path) -> None:
    make(tmp_path / "real")
    (tmp_path / "real/clinic_a/train/benign/x.pdf").write_text("text")
    root = tmp_path / "linked"
    root.mkdir()
    for site in ("clinic_a", "clinic_b"):
        (root / site).symlink_to(tmp_path / "real" / site)
    (root / "clinic_b/test/loop").symlink_to(root / "clinic_b")
    used = {path for site in ("a", "b") for path in (root / f"clinic_{site}").rglob("*.*g")}
    assert left_out([root], used) == {".pdf": 1}


def test_a_manifest_counts_images_that_it_does_not_list(tmp_path) -> None:
    file = make_manifest(tmp_path, rows()[2:])
    (tmp_path / "images/north_train_benign_3.json").write_text("{}")
    (tmp_path / "images/deep").mkdir()
    image(tmp_path / "images/deep/1.png", 1)  # a manifest is often beside many other images
    expected = {"images that the table does not list": 2, ".json beside an image of the same name": 1}
    assert ManifestSites(file).read().left_out == {"": expected}


def test_a_manifest_lists_no_folder_outside_its_root(tmp_path) -> None:
    make_manifest(tmp_path / "other")
    (tmp_path / "other/images/secret.pdf").write_text("text")
    table = [row | {"path": f"../other/{row['path']}"} for row in rows()]
    assert ManifestSites(make_manifest(tmp_path / "own", table)).read().left_out == {}


def test_fed_isic_takes_no_sidecar_for_an_image(tmp_path) -> None:
    images = make_fed_isic(tmp_path) / "ISIC_2019_Training_Input_preprocessed"
    expected = FedISIC2019(tmp_path).found()
    for path in list(images.iterdir())[:3]:
        path.with_suffix(".json").write_text("{}")
        shutil.copy(path, path.with_name(f"._{path.name}"))
    (images / "LICENSE.txt").write_text("text")
    image(images / "ISIC_9999999_downsampled.jpg", 1)
    found = FedISIC2019(tmp_path, centers=[0]).found()
    assert found.splits["bcn"]["test"].source == expected.splits["bcn"]["test"].source
    beside = ".json beside an image of the same name"
    assert found.left_out[""] == {beside: 3, "hidden": 3, ".txt": 1, "images that the split file does not list": 1}


def test_fed_drg(tmp_path) -> None:
    root = make_fed_drg(tmp_path, ["APTOS", "MESSIDOR"])
    assert FedDRG(root).read().left_out == {}
    folder = next((root / "images/APTOS").iterdir())
    image(folder / "other.png", 1)
    (folder / "Thumbs.db").write_text("")
    assert FedDRG(root).read().left_out == {"APTOS": {"images that the split files do not list": 1, "Thumbs.db": 1}}


def test_a_line() -> None:
    assert left_out_line("a", {".pdf": 1, "@eaDir": 1200}) == 'site "a": not used: 1,200 @eaDir, 1 .pdf'
    assert left_out_line("", {".pdf": 1}) == "data set: not used: 1 .pdf"
