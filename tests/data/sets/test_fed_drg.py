"""FedDRG in GDRBench's layout: names whatever their case, patients that leave, and one clear error for what is wrong."""

import logging
import shutil

import pytest

from pfedst.data.sets.fed_drg import CLASS_NAMES, DEFAULT_DOMAINS, DOMAINS, FedDRG
from pfedst.data.sources import FileSource
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError, PfedstError
from tests.fake_data.fed_drg.data import make, rows

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def images(part):
    """Path below `images/<DOMAIN>/`, label and patient of every image."""
    names = ["/".join(path.parts[-2:]) for path in FileSource.paths_of(part.source)]
    return sorted(zip(names, part.labels, part.groups, strict=True))


def below(table):
    return sorted((path.partition("/")[2], grade) for path, grade in table)


@pytest.mark.parametrize("mixed", [False, True])
def test_every_domain_is_a_site_with_the_images_and_grades_of_its_split_files(tmp_path, mixed) -> None:
    data = FedDRG(make(tmp_path, DOMAINS[:-1], mixed), DOMAINS[:-1], validation_fraction=0)
    found = data.found()
    assert list(found.class_names) == list(CLASS_NAMES)
    assert data.ordinal
    assert list(found.splits) == list(DOMAINS[:-1])
    for domain, splits in found.splits.items():
        for split, name in (("train", "train"), ("test", "crossval")):
            assert [image[:2] for image in images(splits[split])] == below(rows(domain, name))
    data.prepare(SMALL)
    assert data.sites == DOMAINS[:-1]
    assert data.class_counts("IDRID", "train") == [2] * 5
    assert "APTOS" in data.label
    assert tmp_path.name in data.label


def test_an_image_is_known_by_its_path_and_not_by_its_name(tmp_path) -> None:
    found = FedDRG(make(tmp_path), ["idrid"], validation_fraction=0).found().splits["IDRID"]
    train, test = ({name.split("/")[1]: label for name, label, _ in images(found[s])} for s in ("train", "test"))
    assert set(train) & set(test) == {f"IDRiD_00{number}.jpg" for number in (3, 5, 7, 9)}
    assert all(train[name] != test[name] for name in set(train) & set(test))


def test_patients_are_the_numbers_before_the_underscore_where_names_have_them(tmp_path) -> None:
    found = FedDRG(make(tmp_path, DOMAINS), DOMAINS, validation_fraction=0).found().splits
    patients = {domain: {g for part in splits.values() for g in part.groups} for domain, splits in found.items()}
    assert patients["DEEPDR"] == {f"deepdr {number}" for number in range(1, 9)}
    assert {"kaggle 1", "kaggle 4", "kaggle 5", "kaggle 7394"} <= patients["RLDR"]
    for domain in ("APTOS", "FGADR", "IDRID", "MESSIDOR", "DDR"):
        assert patients[domain] == {None}
    make(tmp_path, ["DEEPDR"], train=4)
    validation = FedDRG(tmp_path, ["DEEPDR"], validation_fraction=0.5).found().splits["DEEPDR"]
    assert validation["validation"].labels
    assert not set(validation["train"].groups) & set(validation["validation"].groups)


def test_patients_of_rldr_leave_eyepacs_with_both_eyes_and_from_both_splits(tmp_path, caplog) -> None:
    make(tmp_path, ("RLDR", "EYEPACS"))
    kept = {}
    for domains in (["EYEPACS"], ["EYEPACS", "RLDR"], ["RLDR", "EYEPACS"]):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pfedst"):
            found = FedDRG(tmp_path, domains, validation_fraction=0).found().splits
        kept[len(domains)] = {s: {g for _, _, g in images(found["EYEPACS"][s])} for s in ("train", "test")}
        if len(domains) == 2:
            assert "6 images of EYEPACS are of RLDR's patients" in caplog.text
            assert [len(found["RLDR"][s].labels) for s in ("train", "test")] == [10, 5]
            assert [len(found["EYEPACS"][s].labels) for s in ("train", "test")] == [6, 3]
        else:
            assert "left out" not in caplog.text
    assert kept[1] == {"train": {f"kaggle {n}" for n in range(5)}, "test": {f"kaggle {n}" for n in (5, 6, 7)}}
    assert kept[2] == {"train": {f"kaggle {n}" for n in (0, 2, 3)}, "test": {f"kaggle {n}" for n in (6, 7)}}


def test_by_default_of_six_what_is_there_and_the_others_are_told(tmp_path, caplog) -> None:
    make(tmp_path, ("APTOS", "FGADR", "DDR"))
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert list(FedDRG(tmp_path).found().splits) == ["APTOS", "FGADR"]
    told = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in told] == ["DEEPDR", "IDRID", "MESSIDOR", "RLDR"]
    assert all("--data.domains" in text and str(tmp_path) in text for text in told)


@pytest.mark.parametrize("lacking", ["images", "splits"])
def test_images_alone_or_split_files_alone_are_a_missing_domain(tmp_path, lacking) -> None:
    make(tmp_path, ("APTOS", "DEEPDR"))
    if lacking == "images":
        shutil.rmtree(tmp_path / "images" / "DEEPDR")
    else:
        [path.unlink() for path in (tmp_path / "splits").glob("DEEPDR*")]
    assert list(FedDRG(tmp_path).found().splits) == ["APTOS"]
    with pytest.raises(DataError, match=f"{lacking}/DEEPDR.*missing.*leave DEEPDR out"):
        FedDRG(tmp_path, ["APTOS", "DEEPDR"]).found()


def test_the_tables_alone_are_read_without_any_image(tmp_path) -> None:
    shutil.rmtree(make(tmp_path) / "images")
    found = FedDRG(tmp_path, validation_fraction=0).found(files=False)
    assert list(found.splits) == list(DEFAULT_DOMAINS)
    assert {len(splits["train"].labels) for splits in found.splits.values()} == {10}
    with pytest.raises(DataError, match="90 of 90 images are missing"):
        FedDRG(tmp_path).found()


def line(old, new, file="APTOS_train", encoding="utf-8"):
    """Change a split file of APTOS; 4.png stands for its first image of grade 4."""
    first = "APTOS/pdr/000c1434d8df.png"

    def change(root):
        path = root / "splits" / f"{file}.txt"
        text = path.read_text().replace(old.replace("4.png", first), new.replace("4.png", first))
        path.write_bytes(text.encode(encoding))

    return change


def renamed(suffix, new, keep=False):
    def change(root):
        path = root / "images/APTOS/pdr" / f"000c1434d8df{suffix}"
        (shutil.copy if keep else shutil.move)(path, path.with_name(new))

    return change


@pytest.mark.parametrize(
    "change",
    [
        line("\n", "\r\n"),
        line("\n", "\n\n  \n"),
        line("4.png 4", "4.png   4 "),
        line("APTOS", "APTOS", encoding="utf-8-sig"),
        line("APTOS", "aptos"),
        line("/pdr/", "\\pdr\\"),
        line(".png", ".JPG"),
        renamed(".png", "000c1434d8df.PNG"),
        renamed(".png", "000C1434D8DF.jpg"),
        renamed(".png", "000c1434d8df.jpg", keep=True),
        renamed(".png", "000C1434D8DF.png", keep=True),
        lambda root: (root / "images/APTOS/pdr").rename(root / "images/APTOS/PDR"),
        lambda root: (root / "images").rename(root / "Images") and (root / "splits").rename(root / "Splits"),
        lambda root: (root / "splits/APTOS_train.txt").rename(root / "splits/aptos_TRAIN.TXT"),
    ],
)
def test_what_differs_only_in_writing_is_read_alike(tmp_path, change) -> None:
    expected = below(rows("APTOS", "train"))
    change(make(tmp_path, ("APTOS",)))
    found = FedDRG(tmp_path, ["Aptos"], validation_fraction=0).found().splits["APTOS"]["train"]
    assert sorted((name.lower().rpartition(".")[0], label) for name, label, _ in images(found)) == [
        (name.rpartition(".")[0], label) for name, label in expected
    ]


CASES = [
    (line("4.png 4", "4.png 3"), {}, ["APTOS_train.txt, line 9", "folder of grade 4", "label is 3"]),
    (line("4.png 4", "4.png 5"), {}, ["line 9", "grade 0 to 4"]),
    (line("4.png 4", "4.png"), {}, ["line 9", "grade 0 to 4"]),
    (line("4.png 4", "4.png,4"), {}, ["line 9", "grade 0 to 4"]),
    (line("4.png 4", "4"), {}, ["line 9", "is not a path"]),
    (line("4.png 4", "DDR/pdr/x.png 4"), {}, ["line 9", "DDR/pdr/x.png", "APTOS/"]),
    (line("4.png 4", "/etc/passwd 4"), {}, ["line 9", "/etc/passwd", "APTOS/"]),
    (line("4.png 4", "../secret.png 4"), {}, ["line 9", "../secret.png"]),
    (line("4.png 4", "APTOS/../../secret.png 4"), {}, ["line 9", "APTOS/../../secret.png"]),
    (line("4.png 4", "APTOS\\..\\..\\secret.png 4"), {}, ["line 9", "secret.png"]),
    (line("4.png 4", "APTOS/../../secret.png 4"), {}, ["leads out of"]),
    (line("4.png 4", "4.png 4\n4.png 4"), {}, ["line 10", "already in", "line 9", "keep one"]),
    (line("APTOS/nodr", "4.png 4\nAPTOS/nodr", "APTOS_crossval"), {}, ["APTOS_crossval.txt, line 1", "already in", "APTOS_train.txt, line 9"]),
    *[(line("4.png 4", f"4.png 4\n{again} 4"), {}, ["line 10", "already in"]) for again in ("APTOS/pdr/000C1434D8DF.png", "APTOS/pdr/000c1434d8df.jpg", "aptos/pdr/000c1434d8df.png", "APTOS/./pdr/000c1434d8df.png", "APTOS//pdr/000c1434d8df.png")],
    (renamed(".png", "other.png"), {}, ["1 of 15 images are missing", "000c1434d8df.png", "pfedst data prepare fed_drg --root"]),
    (renamed(".png", "000c1434d8df.png.part"), {}, ["1 of 15 images are missing"]),
    (lambda root: renamed(".png", "000C1434D8DF.png")(root) or shutil.copy(root / "images/APTOS/pdr/000C1434D8DF.png", root / "images/APTOS/pdr/000C1434D8df.png"), {}, ["line 9", "may be", " or ", "rename or remove one"]),
    (lambda root: renamed(".png", "000c1434d8df.jpg")(root) or renamed(".jpg", "000c1434d8df.tif", keep=True)(root), {}, ["line 9", "may be", "df.tif", "df.jpg"]),
    (line("APTOS", "ä", encoding="latin-1"), {}, ["APTOS_train.txt", "not a readable text file"]),
    (lambda root: (root / "splits/APTOS_crossval.txt").write_text(""), {}, ["splits/APTOS_crossval.txt lists no image", "APTOS", "no test image"]),
    (lambda root: (root / "splits/APTOS_crossval.txt").unlink(), {}, ["splits/APTOS_crossval.txt missing"]),
    (lambda root: (root / "splits/APTOS_crossval.txt").unlink(), {"domains": None}, ["splits/APTOS_crossval.txt missing"]),
    (lambda root: shutil.rmtree(root / "images"), {}, ["15 of 15 images are missing", "complete ", "--data.domains"]),
    (lambda root: shutil.rmtree(root / "splits"), {"domains": None}, ["no folder splits", "holds images/ and splits/"]),
    (lambda root: shutil.rmtree(root / "images/APTOS"), {"domains": None}, ["none of APTOS, DEEPDR", "is there"]),
    (lambda root: shutil.rmtree(root), {}, ["--data.root", "no such folder"]),
    (lambda root: None, {"domains": ["APTOS", "IDRID"]}, ["images/IDRID, splits/IDRID_train.txt, splits/IDRID_crossval.txt missing", "leave IDRID out"]),
    (lambda root: None, {"domains": ["MESIDOR"]}, ["--data.domains", 'Did you mean "MESSIDOR"', "EYEPACS"]),
    (lambda root: None, {"domains": ["APTOS", "aptos"]}, ["--data.domains", "each domain once"]),
    (lambda root: None, {"domains": []}, ["--data.domains", "at least one"]),
    (lambda root: None, {"validation_fraction": 2}, ["--data.validation_fraction 2"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "words"), CASES)
def test_one_clear_error(tmp_path, change, options, words) -> None:
    change(make(tmp_path, ("APTOS",)))
    with pytest.raises(PfedstError) as caught:
        FedDRG(tmp_path, **{"domains": ["APTOS"], **options}).found()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
    of_options = words[0].startswith("--data") and words[0] != "--data.root"
    assert type(caught.value) is (ConfigurationError if of_options else DataError)


def test_damage_is_told_before_training_and_no_root_too(tmp_path, monkeypatch) -> None:
    (make(tmp_path, ("APTOS",)) / "images/APTOS/pdr/000c1434d8df.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"1 of 15 images cannot be read(.|\n)*000c1434d8df.png: not an image"):
        FedDRG(tmp_path).prepare(SMALL)
    monkeypatch.delenv("PFEDST_DATA_ROOT", raising=False)
    with pytest.raises(DataError, match="--data.root is not given"):
        FedDRG().found()
