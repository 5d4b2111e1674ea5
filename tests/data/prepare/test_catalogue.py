"""What is there of a public data set: complete only if every row and every image is, and in plain words otherwise."""

import hashlib
import shutil

import pytest

from pfedst.cli import main
from pfedst.data.prepare import catalogue
from pfedst.data.prepare.catalogue import PUBLIC_DATA
from pfedst.data.sets.fed_drg import DEFAULT_DOMAINS, DOMAINS
from pfedst.data.sets.fed_isic import METADATA, SITE_NAMES
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic

WHOLE = "10 train and 5 test rows; every image is there"
PUBLISHED = catalogue.FLAMBY_SIZES, catalogue.GDRBENCH_SIZES
PREPROCESSED = "ISIC_2019_Training_Input_preprocessed"


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch) -> None:
    """Of the fake trees."""
    monkeypatch.setattr(catalogue, "GDRBENCH_SIZES", dict.fromkeys(DOMAINS, (10, 5)))
    monkeypatch.setattr(catalogue, "FLAMBY_SIZES", dict.fromkeys(range(6), (24, 8)))


def prepare(capsys, name, root):
    """Exit code, what was printed, and the error; line breaks of the terminal are undone."""
    code = main(["data", "prepare", name, "--root", str(root)])
    printed = capsys.readouterr()
    return code, " ".join(printed.out.split()), " ".join(printed.err.split())


def checks(name, root):
    return {check.what: check for check in PUBLIC_DATA[name].check(root)}


def test_published_sizes() -> None:
    """Of FLamby's train_test_split (23,247 rows), and of the sums that GDRBench's sets have."""
    flamby, gdrbench = PUBLISHED
    assert [sum(sizes) for sizes in zip(*flamby.values(), strict=True)] == [18597, 4650]
    sums = {domain: sum(sizes) for domain, sizes in gdrbench.items()}
    assert sums == {"APTOS": 3662, "DEEPDR": 2000, "FGADR": 1842, "IDRID": 516, "MESSIDOR": 1744, "RLDR": 1593, "DDR": 12521, "EYEPACS": 88697}  # fmt: skip
    for download in PUBLIC_DATA["fed_drg"].downloads[1:]:
        assert f"{sums[download.what]:,} images" in download.size


@pytest.mark.parametrize("mixed", [False, True])
def test_a_whole_gdrbench(tmp_path, capsys, mixed) -> None:
    make_fed_drg(tmp_path, DOMAINS, mixed)
    found = checks("fed_drg", tmp_path)
    assert list(found) == list(DOMAINS)
    assert {check.seen for check in found.values()} == {WHOLE}
    assert [check.what for check in found.values() if not check.needed] == ["DDR", "EYEPACS"]
    code, out, err = prepare(capsys, "fed_drg", tmp_path)
    assert (code, err) == (0, "")
    assert f"{tmp_path} is complete by names and counts" in out
    assert f"ok EYEPACS: {WHOLE}" in out
    assert "MISSING" not in out


def test_what_is_not_needed_is_told_and_is_no_fault(tmp_path, capsys) -> None:
    make_fed_drg(tmp_path)
    code, out, _ = prepare(capsys, "fed_drg", tmp_path)
    assert code == 0
    assert "incomplete, but not needed DDR: " in out
    assert "incomplete, but not needed EYEPACS: " in out
    assert "is complete" in out


def first_line_less(file):
    def damage(root):
        path = root / file
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))

    return damage


def emptied(file):
    return lambda root: (root / file).write_bytes(b"")


def aliased(root):
    """The first row of crossval becomes another way to write the first of train."""
    train, test = ((root / f"splits/APTOS_{split}.txt").read_text().splitlines() for split in ("train", "crossval"))
    lines = [train[0].replace(".png", ".PNG"), *test[1:]]
    (root / "splits/APTOS_crossval.txt").write_text("\n".join(lines) + "\n")


DRG = [
    (lambda r: (r / "images/APTOS/pdr/000c1434d8df.png").unlink(), "APTOS", "10 train and 5 test rows; 1 images are missing: 000c1434d8df.png"),
    (emptied("images/APTOS/pdr/000c1434d8df.png"), "APTOS", "10 train and 5 test rows; 1 images are empty: 000c1434d8df.png"),
    (first_line_less("splits/FGADR_train.txt"), "FGADR", "9 train and 5 test rows; published are 10 and 5; every image is there"),
    (first_line_less("splits/RLDR_crossval.txt"), "RLDR", "10 train and 4 test rows; published are 10 and 5; every image is there"),
    (lambda r: (r / "splits/IDRID_crossval.txt").unlink(), "IDRID", "splits/IDRID_crossval.txt missing; pfedst data prepare fed_drg"),
    (lambda r: (r / "splits/IDRID_crossval.txt").write_text("x"), "IDRID", 'IDRID_crossval.txt, line 1: "x" is not a path and a grade 0 to 4'),
    (lambda r: (r / "splits/IDRID_crossval.txt").write_text(""), "IDRID", 'site "IDRID" has no test image'),
    (lambda r: shutil.rmtree(r / "images/DEEPDR"), "DEEPDR", "images/DEEPDR missing"),
    (lambda r: shutil.rmtree(r / "images/DEEPDR/pdr"), "DEEPDR", "3 images are missing: 5_l1.jpg, 5_r1.jpg, 8_l1.jpg"),
    (lambda r: [p.unlink() for p in (r / "images/MESSIDOR").rglob("*.*")], "MESSIDOR", "15 images are missing: "),
    (lambda r: [p.unlink() for p in (r / "images/MESSIDOR").rglob("*.*")], "MESSIDOR", ", and 5 more"),
    (lambda r: shutil.move(r / "images/APTOS/pdr/000c1434d8df.png", r / "images/APTOS/pdr/000c1434d8df.png.part"), "APTOS", "1 images are missing"),
    (aliased, "APTOS", "already in"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "domain", "words"), DRG)
def test_a_gdrbench_that_is_not_whole(tmp_path, capsys, damage, domain, words) -> None:
    damage(make_fed_drg(tmp_path))
    found = checks("fed_drg", tmp_path)
    assert [what for what in DEFAULT_DOMAINS if not found[what].complete] == [domain]
    assert words in found[domain].seen
    code, out, err = prepare(capsys, "fed_drg", tmp_path)
    assert code == 3
    assert f"pfedst: error: {tmp_path} is not complete: {domain}" in err
    assert f"MISSING {domain}: " in out
    assert " complete" not in out.split("Once you have it:")[1].replace("not complete", "")


@pytest.mark.parametrize("lacking", ["images", "splits"])
def test_no_images_or_no_split_files_at_all(tmp_path, capsys, lacking) -> None:
    shutil.rmtree(make_fed_drg(tmp_path) / lacking)
    assert {check.complete for check in checks("fed_drg", tmp_path).values()} == {False}
    code, _, err = prepare(capsys, "fed_drg", tmp_path)
    assert code == 3
    assert f"is not complete: {', '.join(DEFAULT_DOMAINS)}" in err


@pytest.mark.parametrize("folder", [PREPROCESSED, "ISIC_2019_Training_Input", "ISIC_2019_Training_Input/ISIC_2019_Training_Input"])  # fmt: skip
def test_a_whole_fed_isic(tmp_path, capsys, monkeypatch, folder) -> None:
    make_fed_isic(tmp_path)
    if folder != PREPROCESSED:
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / PREPROCESSED).rename(tmp_path / folder)
    found = checks("fed_isic2019", tmp_path)
    assert list(found) == ["image folder", METADATA, "train_test_split", *SITE_NAMES]
    assert found["image folder"].seen == folder.partition("/")[0]
    assert {found[site].seen for site in SITE_NAMES} == {"24 train and 8 test rows; every image is there"}
    assert found["train_test_split"].seen.endswith("not FLamby's bytes (a subset, or a copy with tabs)")
    exact = hashlib.sha256((tmp_path / "train_test_split").read_bytes()).hexdigest()
    monkeypatch.setattr(catalogue, "FLAMBY_SPLIT", exact)
    assert checks("fed_isic2019", tmp_path)["train_test_split"].seen.endswith(
        "train_test_split: byte for byte FLamby's"
    )
    (tmp_path / METADATA).unlink()
    code, out, err = prepare(capsys, "fed_isic2019", tmp_path)
    assert (code, err) == (0, "")
    assert f"incomplete, but not needed {METADATA}" in out
    assert "is complete by names and counts" in out


ISIC = [
    (lambda r: (r / PREPROCESSED / "ISIC_0024307.jpg").unlink(), "bcn", "24 train and 8 test rows; 1 images are missing: ISIC_0024307.jpg"),
    (emptied(f"{PREPROCESSED}/ISIC_0024498.jpg"), "vienna_dias", "24 train and 8 test rows; 1 images are empty: ISIC_0024498.jpg"),
    (lambda r: (r / "train_test_split").write_text("\n".join((r / "train_test_split").read_text().splitlines()[:-1])), "vienna_dias", "24 train and 7 test rows; published are 24 and 8; every image is there"),
    (lambda r: (r / "train_test_split").unlink(), "train_test_split", "no file train_test_split; it is inside the FLamby package"),
    (lambda r: (r / "train_test_split").write_text("image,target\n"), "bcn", 'no column "center"'),
    (lambda r: (r / "train_test_split").write_text((r / "train_test_split").read_text().replace(",5,train", ",4,train")), "vienna_dias", 'site "vienna_dias" has no train image'),
    (lambda r: shutil.rmtree(r / PREPROCESSED), "image folder", f"none of {PREPROCESSED}, ISIC_2019_Training_Input"),
    (lambda r: (r / PREPROCESSED).rename(r / "ISIC_2019_Training_Input.zip"), "bcn", "ISIC_2019_Training_Input.zip is not unpacked"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "what", "words"), ISIC)
def test_a_fed_isic_that_is_not_whole(tmp_path, capsys, damage, what, words) -> None:
    damage(make_fed_isic(tmp_path))
    found = checks("fed_isic2019", tmp_path)
    assert not found[what].complete
    assert words in found[what].seen
    code, out, err = prepare(capsys, "fed_isic2019", tmp_path)
    assert code == 3
    lacking = [name for name, check in found.items() if check.needed and not check.complete]
    assert f"is not complete: {', '.join(lacking)}" in err
    assert f"MISSING {what}: " in out
    assert "is complete" not in out


def test_with_the_published_sizes_no_small_tree_is_complete(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.undo()
    code, out, err = prepare(capsys, "fed_drg", make_fed_drg(tmp_path))
    assert code == 3
    assert "published are 2,921 and 741" in out
    assert f"is not complete: {', '.join(DEFAULT_DOMAINS)}" in err


def test_a_folder_with_brackets_is_named_as_it_is(tmp_path, capsys) -> None:
    code, out, _ = prepare(capsys, "fed_drg", make_fed_drg(tmp_path / "gdr[old]"))
    assert code == 0
    assert "gdr[old] is complete" in out
