"""A manifest from any tree of folders, and which reader a path is for."""

import re
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedst.data.prepare.init import InitOptions, make_manifest
from pfedst.data.sets.manifest import ManifestSites
from pfedst.data.sets.recognise import recognise
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from tests.fake_data.dicom.data import make as make_dicom
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import image
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import make as make_image_folder
from tests.fake_data.manifest.data import make as make_manifest_data

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
COLUMNS = ["path", "label", "site", "split", "group"]


def tree(root, *names):
    """One small image a name; `{a,b}` stands for both and `*` for ten numbers."""
    for name in names:
        found = [name.replace("*", f"{number}") for number in range(10)] if "*" in name else [name]
        while (choice := re.search(r"\{(.*?)\}", found[0])) is not None:
            found = [re.sub(r"\{(.*?)\}", one, path, count=1) for path in found for one in choice[1].split(",")]
        for seed, path in enumerate(found):
            image(root / path, seed, 16)
    return root


def values(table, column):
    return sorted(set(table[column]))


LAYOUTS = [
    ("{a,b}/{train,test}/{x,y}/*.png", {}, "site/split/label", ["a", "b"], ["test", "train"]),
    ("{train,valid,test}/{x,y}/*.png", {}, "split/label", ["pool"], ["test", "train", "validation"]),
    ("{Training,TESTING}/{x,y}/*.png", {}, "split/label", ["pool"], ["test", "train"]),
    ("{train,test}/{a,b}/{x,y}/*.png", {}, "split/site/label", ["a", "b"], ["test", "train"]),
    ("{a,b}/{x,y}/{dev,test,train}/*.png", {}, "site/label/split", ["a", "b"], ["test", "train", "validation"]),
    ("{a,b}/{x,y}/*.png", {}, "site/label", ["a", "b"], ["test", "train"]),
    ("{x,y}/*.png", {}, "label", ["pool"], ["test", "train"]),
    ("{x,y}/{a,b}/*.png", {"layout": "label/site"}, "label/site", ["a", "b"], ["test", "train"]),
    ("{x,y}/{a,b,c,d,e}/*.png", {"layout": "label/group"}, "label/group", ["pool"], ["test", "train"]),
    ("{2019,2020}/{x,y}/raw/*.png", {"layout": "/-/label/-/"}, "-/label/-", ["pool"], ["test", "train"]),
]


@pytest.mark.parametrize(("names", "options", "levels", "sites", "splits"), LAYOUTS)
def test_layouts(tmp_path, names, options, levels, sites, splits) -> None:
    root = tree(tmp_path / "pool", names)
    table, found, _ = make_manifest(root, InitOptions(**options))
    assert "/".join(found) == levels
    assert list(table.columns) == COLUMNS
    assert sorted(table["path"]) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert (values(table, "site"), values(table, "split"), values(table, "label")) == (sites, splits, ["x", "y"])
    for row in table.to_dict("records"):
        parts = dict(zip(found, row["path"].split("/"), strict=False))
        assert row["label"] == parts["label"]
        assert row["site"] == parts.get("site", "pool")
        assert row["group"] == parts.get("group", "")
        if "split" in parts:
            assert row["split"][:2] == {"va": "va", "de": "va"}.get(parts["split"][:2], parts["split"][:2].lower())
    table.to_csv(root / "manifest.csv", index=False)
    data = ManifestSites(root / "manifest.csv")
    data.prepare(SMALL)
    assert (list(data.sites), list(data.class_names)) == (sites, ["x", "y"])


def test_hidden_files_and_files_that_are_no_images_are_left_out(tmp_path) -> None:
    root = tree(tmp_path, "{x,y}/*.png", "x/.hidden.png", ".git/y/1.png", "y/.thumbs/1.png")
    tree(tmp_path, "@eaDir/x/1.png", "x/@eaDir/1.png/{a,b}.png", "__MACOSX/y/1.png", "y/#recycle/1.png")
    for name in ("readme.txt", "x/notes.json", "labels.csv", "x/Thumbs.db"):
        (root / name).write_text("text")
    table, *_ = make_manifest(root, InitOptions())
    assert Counter(table["label"]) == {"x": 10, "y": 10}


def test_what_is_left_out_is_counted(tmp_path) -> None:
    root = tree(tmp_path, "{x,y}/*.png", "@eaDir/x/1.png")
    (root / "x/1.json").write_text("{}")
    (root / "letter.docx").write_text("text")
    (root / "empty").mkdir()
    left_out = make_manifest(root, InitOptions()).left_out
    folder = "folder without an image that is read (empty)"
    assert left_out == {"@eaDir": 1, ".json beside an image of the same name": 1, ".docx": 1, folder: 1}


def test_names_in_several_ways_are_one(tmp_path) -> None:
    nfd = unicodedata.normalize("NFD", "Nävus")
    root = tree(tmp_path, "{a,b }/{Nävus,y}/*.png", f"b/{nfd}/*.png")
    table = make_manifest(root, InitOptions()).table
    assert (values(table, "label"), values(table, "site")) == (["Nävus", "y"], ["a", "b"])
    assert set(table.groupby("site").size()) == {20, 30}


def test_a_site_of_three_images_keeps_one_for_test(tmp_path) -> None:
    table = make_manifest(tree(tmp_path, "a/{x,y,z}/1.png", "b/{x,y,z}/*.png"), InitOptions()).table
    assert Counter(table[table["site"] == "a"]["split"]) == {"train": 2, "test": 1}


def test_names_that_a_table_must_quote_are_read_back(tmp_path) -> None:
    odd = ("1,2;3.png", '"q".png', "ü \u200b.png", " a .png", "#1.png", "NA.png", "'.png", "a\tb.png")
    root = tree(tmp_path, *[f"{name}/{file}" for name in ("NA", "1", "x;y") for file in odd])
    table, *_ = make_manifest(root, InitOptions(test_fraction=0.5))
    table.to_csv(root / "manifest.csv", index=False)
    data = ManifestSites(root / "manifest.csv", audit="off")
    data.prepare(SMALL)
    assert data.class_names == ("1", "NA", "x;y")
    assert data.class_counts(data.sites[0], "test") == [4, 4, 4]


def test_a_class_called_nan(tmp_path) -> None:
    make_manifest(tree(tmp_path, "{nan,y}/*.png"), InitOptions())[0].to_csv(tmp_path / "manifest.csv", index=False)
    assert list(ManifestSites(tmp_path / "manifest.csv").found().class_names) == ["nan", "y"]


def test_dicom_files_name_their_patients_and_need_no_suffix(tmp_path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for label in "xy":
        for number in range(12):
            suffix = ".dcm" if number % 2 else ""
            make_dicom(tmp_path / label / f"IM{number}{suffix}", pixels + number, PatientID=f"{label}{number // 3}")
    table, *_ = make_manifest(tmp_path, InitOptions(test_fraction=0.25))
    groups = table.groupby("group")
    assert (len(groups), set(groups.size()), set(groups["split"].nunique())) == (8, {3}, {1})
    assert not {f"{label}{number}" for label in "xy" for number in range(4)} & set(table["group"])
    assert Counter(table["split"]) == {"train": 18, "test": 6}
    table.to_csv(tmp_path / "manifest.csv", index=False)
    ManifestSites(tmp_path / "manifest.csv", audit="off").prepare(SMALL)


def test_dicom_files_name_their_patients_with_a_pattern_too(tmp_path) -> None:
    for number in range(12):
        make_dicom(tmp_path / "x" / f"IM{number}.dcm", np.full((8, 8), number, np.uint8), PatientID=f"{number // 6}")
    assert len(set(make_manifest(tmp_path, InitOptions(group_pattern=r"(p\d+)_"))[0]["group"])) == 2


def test_a_pattern_finds_the_group_in_the_path(tmp_path) -> None:
    root = tree(tmp_path, "{x,y}/*_{left,right}.png", "x/odd.png")
    table, *_ = make_manifest(root, InitOptions(group_pattern=r"/(\d+)_(?:left|right)"))
    for row in table.to_dict("records"):
        assert row["group"] == row["path"].split("/")[1].partition("_")[0].replace("odd.png", "")
    assert set(table[table["group"] != ""].groupby(["site", "group"])["split"].nunique()) == {1}


trees = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees, st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 3))
def test_no_group_lies_in_both_splits_and_no_class_leaves_train(tmp_path_factory, names, fraction, seed) -> None:
    root = tmp_path_factory.mktemp("tree")
    for index, (site, label, group) in enumerate(names):
        (root / site / label).mkdir(parents=True, exist_ok=True)
        (root / site / label / f"p{group}_{index}.png").write_bytes(b"")
    options = InitOptions(layout="site/label", group_pattern=r"(p\d+)_", test_fraction=fraction, seed=seed)
    table, *_ = make_manifest(root, options)
    assert len(table) == len(names)
    assert set(table.groupby(["site", "group"])["split"].nunique()) == {1}
    assert set(table["split"]) <= {"train", "test"}
    assert set(table[table["split"] == "train"]["site"]) == set(table["site"])
    pd.testing.assert_frame_equal(table, make_manifest(root, options)[0])


def test_a_patient_of_two_sites_lies_in_one_split(tmp_path) -> None:
    root = tree(tmp_path, "{a,b}/{x,y}/p*_{1,2}.png")
    table, *_ = make_manifest(root, InitOptions(group_pattern=r"(p\d+)_"))
    assert set(table.groupby("group")["split"].nunique()) == {1}


def test_shares_and_seeds(tmp_path) -> None:
    root = tree(tmp_path, "{a,b}/{x,y}/*.png")
    found = {}
    for seed in range(3):
        table, *_ = make_manifest(root, InitOptions(test_fraction=0.3, seed=seed))
        counts = Counter(zip(table["site"], table["label"], table["split"], strict=True))
        assert {n for (_, _, split), n in counts.items() if split == "test"} == {3}
        assert {n for (_, _, split), n in counts.items() if split == "train"} == {7}
        found[seed] = tuple(table["split"])
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ((), {}, ["no image in it or below it", "give the folder"]),
        (("{x,y}/*.png", "x/deep/1.png"), {}, ["different depths", "x/deep/1.png", "move them to the same depth"]),
        (("{a,b}/{x,y}/{p,q}/*.png",), {}, ["cannot be guessed", "a/x/p", "--layout", "site/split/label"]),
        (("train/test/*.png",), {}, ["cannot be guessed", "train/test", "--layout"]),
        (("*.png",), {}, ["cannot be guessed", "no folder", "--layout"]),
        (("{x,y}/*.png",), {"layout": "site/label"}, ["--layout site/label has 2 levels", "has 1 folders"]),
        (("{x,y}/{train,tset}/*.png",), {"layout": "label/split"}, ["tset is no split", "train, validation, test"]),
    ],
)
def test_trees_that_do_not_fit(tmp_path, names, options, words) -> None:
    with pytest.raises(DataError) as caught:
        make_manifest(tree(tmp_path, *names), InitOptions(**options))
    assert [word for word in [str(tmp_path), *words] if word not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_fraction": 0.0}, ["--test_fraction 0.0", "above 0 and below 1"]),
        ({"test_fraction": 1.0}, ["--test_fraction 1.0"]),
        ({"test_fraction": float("nan")}, ["--test_fraction nan"]),
        ({"layout": ""}, ["--layout"]),
        ({"layout": "site/clas"}, ["--layout", '"clas"', "site, split, label, group, -"]),
        ({"layout": "site/split"}, ["--layout site/split", "label once"]),
        ({"layout": "label/label"}, ["label once"]),
        ({"layout": "site/label/site"}, ["no other level twice"]),
        ({"group_pattern": "("}, ["--group_pattern (", "unterminated"]),
        ({"group_pattern": "p"}, ["needs one group in parentheses"]),
        ({"group_pattern": "(p)(q)"}, ["needs one group in parentheses"]),
        ({"group_pattern": ""}, ["needs one group in parentheses"]),
    ],
)
def test_options_that_cannot_be(options, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        InitOptions(**options)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("maker", "below", "name"),
    [
        (make_fed_isic, "", "FedISIC2019"),
        (lambda root: tree(root, "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0000000.jpg"), "", "FedISIC2019"),
        (lambda root: make_fed_drg(root, ["APTOS"]), "", "FedDRG"),
        (lambda root: (make_fed_drg(root, ["APTOS"]) / "splits").rename(root / "Splits"), "", "FedDRG"),
        (make_image_folder, "", "HuggingFaceSites"),
        (lambda root: make_image_folder(root, table="jsonl"), "", "HuggingFaceSites"),
        (lambda root: (root / "dataset_dict.json").write_text("{}"), "", "HuggingFaceSites"),
        (make_folder, "", "FolderSites"),
        (make_manifest_data, "", "ManifestSites"),
        (make_manifest_data, "manifest.csv", "ManifestSites"),
        (lambda root: make_manifest_data(root).rename(root / "x.CSV"), "x.CSV", "ManifestSites"),
        (lambda root: tree(root, "{splits,b}/{train,test}/{x,y}/*.png"), "", "FolderSites"),
        (lambda root: tree(root, "{a,b}/{Train,Test}/{x,y}/*.png"), "", "FolderSites"),
    ],
)  # fmt: skip
def test_every_layout_has_its_reader(tmp_path, maker, below, name) -> None:
    maker(tmp_path)
    path = tmp_path / below
    found, options = recognise(path)
    expected = path if path.is_file() else path / "manifest.csv" if name == "ManifestSites" else path
    assert (found, options) == (name, {"manifest" if name == "ManifestSites" else "root": str(expected)})


def test_what_is_not_known_comes_with_the_remedy(tmp_path) -> None:
    tree(tmp_path, "{x,y}/*.png")
    (tmp_path / "notes.txt").write_text("text")
    for path, words in (
        (tmp_path, ["its layout is not known", "SITE/train/CLASS", f"pfedst data init {tmp_path}"]),
        (tmp_path / "notes.txt", ["notes.txt", "no table", ".csv or .parquet"]),
        (tmp_path / "none", ["none: no such file or folder"]),
    ):
        with pytest.raises(DataError) as caught:
            recognise(path)
        assert [word for word in words if word not in str(caught.value)] == [], caught.value
