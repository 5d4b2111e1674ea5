"""What Hugging Face's `datasets` wrote or reads: the same images and labels as of folders, and clear errors."""

import shutil
import socket
from pathlib import Path

import pytest

from pfedst.data import FolderSites
from pfedst.data.sets.hugging_face import HuggingFaceSites
from pfedst.data.sets.recognise import recognise
from pfedst.data.sources import content_digest
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError, PfedstError
from tests.fake_data.image_folder.data import CLASSES, make, own_cache, rows, save

pytest.importorskip("datasets")
SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(monkeypatch, tmp_path) -> None:
    def refuse(*_):
        raise AssertionError("the network was asked")

    own_cache(monkeypatch, tmp_path / "hugging_face")
    monkeypatch.setattr(socket.socket, "connect", refuse)


def as_folders(root, target):
    """The same files as FolderSites has them."""
    for split in ("train", "test"):
        for row in rows(split):
            path = target / row["site"] / split / row["label"] / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / split / row["file_name"], path)
    return target


def seen(data):
    """Pixels and class of every image, by site and split."""
    data.prepare(SMALL)
    return {
        (site, split, image.numpy().tobytes()): data.class_names[label]
        for site in data.sites
        for split in ("train", "validation", "test")
        for batch, labels in data.evaluation_loader(site, split)
        for image, label in zip(batch, labels.tolist(), strict=True)
    }


def reading(kind, folder, **options):
    root = make(folder / "tree", table="jsonl" if kind == "jsonl" else "csv")
    if kind in ("class label", "text"):
        root = save(root, folder / "saved", CLASSES if kind == "class label" else None)
    return HuggingFaceSites(root, **options)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "class label", "text"])
def test_images_and_labels_are_those_of_folders(tmp_path, kind) -> None:
    data = reading(kind, tmp_path, validation_fraction=0.0)
    folders = FolderSites(as_folders(tmp_path / "tree", tmp_path / "folders"), validation_fraction=0.0)
    found = seen(data)
    assert found == seen(folders)
    assert len(found) == 24
    assert data.sites == folders.sites == ("north", "south")
    assert data.class_names == folders.class_names == CLASSES
    assert [data.class_counts(s, "train") for s in data.sites] == [[4, 4], [4, 4]]
    assert [data.class_counts(s, "test") for s in data.sites] == [[2, 2], [2, 2]]
    assert recognise(Path(data.root)) == ("HuggingFaceSites", {"root": str(data.root)})


@pytest.mark.parametrize("kind", ["csv", "class label"])
def test_digests_names_headers_and_groups(tmp_path, kind) -> None:
    found = reading(kind, tmp_path, validation_fraction=0.5).found()
    for site, split, part in found.parts():
        stored = "test" if split == "test" else "train"
        by_name = {row["file_name"]: row for row in rows(stored)}
        for index in range(len(part.labels)):
            name = next(name for name in by_name if name in part.source.name(index))
            row = by_name[name]
            assert (row["site"], row["label"], row["group"]) == (site, CLASSES[part.labels[index]], part.groups[index])
            content = (tmp_path / "tree" / stored / name).read_bytes()
            assert part.source.digest(index) == content_digest(content)
            assert (part.source.header(index).width, part.source.header(index).height) == (26, 20)
    for parts in found.splits.values():
        assert parts["validation"].labels
        assert not set(parts["train"].groups) & set(parts["validation"].groups)


def test_other_columns_and_an_order_of_classes(tmp_path) -> None:
    def rename(split, table):
        return [
            {"file_name": r["file_name"], "dx": r["label"], "clinic": r["site"], "patient": r["group"]} for r in table
        ]

    options = {"label_column": "dx", "site_column": "clinic", "class_names": CLASSES[::-1]}
    root = make(tmp_path / "tree", rename)
    plain = HuggingFaceSites(root, **options).found()
    named = HuggingFaceSites(root, group_column="patient", **options).found()
    assert list(plain.class_names) == ["malignant", "benign"]
    assert {g for _, _, part in plain.parts() for g in part.groups} == {None}
    assert {g for _, _, part in named.parts() for g in part.groups} == {
        r["group"] for s in ("train", "test") for r in rows(s)
    }
    assert plain.splits["north"]["train"].counts(2) == [4, 4]
    HuggingFaceSites(root, **options).prepare(SMALL)


def test_a_validation_folder_is_used_and_a_changed_table_is_read_anew(tmp_path) -> None:
    root = make(tmp_path / "tree")
    shutil.copytree(root / "test", root / "validation")
    found = HuggingFaceSites(root).found()
    assert [len(found.splits["south"][split].labels) for split in ("train", "validation", "test")] == [8, 4, 4]
    for split in ("train", "validation", "test"):
        file = root / split / "metadata.csv"
        file.write_text(file.read_text().replace(",south,", ",north,"))
    assert list(HuggingFaceSites(root).found().splits) == ["north"]


def test_images_may_lie_in_folders_below(tmp_path) -> None:
    root = make(tmp_path / "tree", lambda s, table: [r | {"file_name": f"{r['site']}/{r['file_name']}"} for r in table])
    for path in sorted(root.rglob("*.png")):
        (path.parent / path.name.partition("_")[0]).mkdir(exist_ok=True)
        path.rename(path.parent / path.name.partition("_")[0] / path.name)
    assert len(seen(HuggingFaceSites(root))) == 24


def test_a_saved_set_may_say_its_classes_in_another_order_in_each_split(tmp_path) -> None:
    one = save(make(tmp_path / "tree"), tmp_path / "one")
    two = save(tmp_path / "tree", tmp_path / "two", CLASSES[::-1])
    shutil.rmtree(one / "test")
    shutil.copytree(two / "test", one / "test")
    expected = seen(HuggingFaceSites(tmp_path / "tree", validation_fraction=0.0))
    assert seen(HuggingFaceSites(one, validation_fraction=0.0)) == expected


def first(**values):
    return lambda split, table: [table[0] | values, *table[1:]] if split == "train" else table


def without(column):
    return lambda split, table: [{key: value for key, value in row.items() if key != column} for row in table]


def write(name, text):
    return lambda root: (root / name).write_text(text)


def truncate(root):
    path = root / "train" / "north_benign_0.png"
    path.write_bytes(path.read_bytes()[:-300])


TREES = [
    (make, {"change": without("site")}, None, {}, ['no column "site"', "Found: image, label, group", "--data.site_column", "pfedst data init"]),
    (make, {"change": without("label")}, None, {}, ['no column "label"', "--data.label_column"]),
    (make, {"change": without("file_name")}, None, {}, ["cannot read it", "file_name", "make it again"]),
    (make, {}, None, {"image_column": "picture"}, ['no column "picture"', "--data.image_column"]),
    (make, {}, None, {"group_column": "gruop"}, ["tree, train: ", "--data.group_column", 'Did you mean "group"']),
    (make, {}, None, {"class_names": ["benign", "maligant"]}, ["train row 4", 'unknown class "malignant"', 'Did you mean "maligant"']),
    (make, {"change": first(label="")}, None, {}, ["train row 0", "the label is empty"]),
    (make, {"change": first(label=None), "table": "jsonl"}, None, {}, ["train row 0", "the label is empty"]),
    (make, {"change": first(label=""), "table": "jsonl"}, None, {}, ["train row 0", "the label is empty"]),
    (make, {"change": lambda s, t: [row | {"site": "" if row["site"] == "south" else "north"} for row in t]}, None, {}, ["row 8", "site", "empty"]),
    (make, {"change": first(file_name="")}, None, {}, ["train row 0"]),
    (make, {"change": first(file_name="none.png")}, None, {}, ["none.png", "1 of 24 images"]),
    (make, {}, truncate, {}, ["1 of 24 images cannot be read", "north_benign_0.png", "truncated"]),
    (make, {}, write("train/north_benign_0.png", "text"), {}, ["north_benign_0.png", "not an image"]),
    (make, {}, write("train/north_benign_0.png", ""), {}, ["north_benign_0.png", "not an image"]),
    (make, {}, lambda root: shutil.rmtree(root / "test"), {}, ["tree: ", "no test image"]),
    (make, {}, lambda root: [shutil.rmtree(path) for path in root.iterdir()], {}, ["neither train/ and test/", "save_to_disk"]),
    (make, {}, shutil.rmtree, {}, ["--data.root", "no such folder"]),
    (make, {"train": "training"}, None, {}, ["training", "rename"]),
    (make, {}, lambda root: shutil.copytree(root / "test", root / "valid"), {}, ["valid", "rename"]),
    (make, {}, lambda root: (root / "train/metadata.csv").unlink(), {}, ["metadata", "train"]),
    (make, {}, None, {"batch_size": 0}, ["batch sizes"]),
    (save, {"splits": ("train", "tset")}, None, {}, ["split tset is unknown", "train, validation, test"]),
    (save, {"change": lambda s, c: c["label"].__setitem__(0, None)}, None, {}, ["train row 0", "the label is empty"]),
    (save, {"change": lambda s, c: c["label"].__setitem__(0, -1)}, None, {}, ["train row 0", "label"]),
    (save, {"names": None, "change": lambda s, c: c["label"].__setitem__(0, "")}, None, {}, ["train row 0", "the label is empty"]),
    (save, {"change": lambda s, c: c["image"].__setitem__(0, None)}, None, {}, ["train row 0"]),
    (save, {"change": lambda s, c: c["image"].__setitem__(0, {"path": "odd.png", "bytes": b"x"})}, None, {}, ["2 of 24", "train row 0", "test row 0", "odd.png", "not an image"]),
    (save, {"change": lambda s, c: c.pop("site")}, None, {}, ['no column "site"', "--data.site_column"]),
    (make, {"change": lambda s, t: [row | {"label": [row["label"], "other"]} for row in t], "table": "jsonl"}, None, {}, ["train row 0", "multi-label"]),
    (make, {"change": first(label=" ")}, None, {}, ["train row 0", "the label is empty"]),
    (save, {}, None, {"image_column": "label"}, ["--data.image_column"]),
    (save, {}, write("dataset_dict.json", "{}"), {}, ["cannot read it"]),
    (save, {}, write("dataset_dict.json", "x"), {}, ["cannot read it", "make it again"]),
    (save, {}, lambda root: shutil.rmtree(root / "train"), {}, ["cannot read it", "train"]),
    (save, {}, lambda root: next(root.glob("train/*.arrow")).write_bytes(b"ARROW1"), {}, ["cannot read it", "make it again"]),
    (save, {}, lambda root: next(root.glob("train/*.arrow")).unlink(), {}, ["cannot read it", ".arrow"]),
    (save, {}, lambda root: (root / "dataset_dict.json").unlink() or shutil.copytree(root / "train", root, dirs_exist_ok=True), {}, ["one split only", "DatasetDict"]),
]  # fmt: skip


@pytest.mark.parametrize(("writer", "how", "damage", "options", "words"), TREES)
def test_one_clear_error_before_training(tmp_path, writer, how, damage, options, words) -> None:
    root = (
        make(tmp_path / "tree", **how) if writer is make else save(make(tmp_path / "tree"), tmp_path / "saved", **how)
    )
    if damage:
        damage(root)
    with pytest.raises(PfedstError) as caught:
        HuggingFaceSites(root, **options).prepare(SMALL)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
    assert type(caught.value) is (ConfigurationError if "batch_size" in options else DataError)


def test_the_cache_is_that_of_these_tests(tmp_path) -> None:
    HuggingFaceSites(make(tmp_path / "tree")).found()
    assert list((tmp_path / "hugging_face" / "datasets").rglob("*.arrow"))


def test_a_class_is_given_once(tmp_path) -> None:
    with pytest.raises(PfedstError, match="benign"):
        HuggingFaceSites(make(tmp_path / "tree"), class_names=["malignant", "benign", "benign"]).found()


def test_numbers_are_sorted_as_numbers(tmp_path) -> None:
    root = make(tmp_path / "tree", lambda s, t: [r | {"label": 10 if r["label"] == "benign" else 2} for r in t])
    assert list(HuggingFaceSites(root).found().class_names) == ["2", "10"]


def test_sites_may_be_a_class_label(tmp_path) -> None:
    from datasets import ClassLabel, load_from_disk

    root = save(make(tmp_path / "tree"), tmp_path / "saved")
    load_from_disk(str(root)).cast_column("site", ClassLabel(names=["north", "south"])).save_to_disk(
        str(tmp_path / "x")
    )
    assert list(HuggingFaceSites(tmp_path / "x").found().splits) == ["north", "south"]


def test_names_in_several_ways_are_one(tmp_path) -> None:
    def odd(split, table):
        return [table[0] | {"label": " benign", "site": "north\u00a0", "group": f"{table[0]['group']} "}, *table[1:]]

    expected = HuggingFaceSites(make(tmp_path / "clean"), validation_fraction=0.0).found()
    data = HuggingFaceSites(make(tmp_path / "odd", odd), validation_fraction=0.0, class_names=["benign ", "malignant"])
    found = data.found()
    assert found.class_names == list(expected.class_names) == ["benign", "malignant"]
    for site, split, part in expected.parts():
        own = found.splits[site][split]
        assert (own.labels, own.groups) == (part.labels, part.groups)
    assert found.respelled == ['class "benign" (2 spellings)', 'site "north" (2 spellings)']
