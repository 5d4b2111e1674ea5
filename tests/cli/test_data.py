"""`pfedst data prepare | init | partition | preprocess`, and a run on every kind of data, through the command line."""

import json
import logging
import shlex
import shutil

import pandas as pd
import pytest

import pfedst.data
from pfedst.cli import main
from tests.data.prepare.test_init import tree
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import make as make_image_folder
from tests.fake_data.image_folder.data import own_cache, save
from tests.fake_data.manifest.data import make as make_manifest

RUN = ["fit", "--method=PFedST", "--model.encoder.model=vit-nano", "--model.encoder.weights=random"]
RUN += [
    "--model.encoder.image_size=32",
    "--model.encoder.token_grid=2",
    "--model.anchors=prototypes",
    "--coordinator.rounds=1",
]
RUN += ["--trainer.accelerator=cpu", "--name=run", "--data.audit=off"]
ISIC = "ISIC_2019_Training_Input"


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path) -> None:
    own_cache(monkeypatch, tmp_path / "hugging_face")
    monkeypatch.delenv("PFEDST_DATA_ROOT", raising=False)
    monkeypatch.setattr(logging.getLogger("pfedst"), "handlers", [])  # those write to another test's standard error
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def called(capsys, *arguments):
    """Exit code, output and error."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


# -- runs ------------------------------------------------------------------------------------------------------


def isic(folder, nested=False):
    make_fed_isic(folder)
    target = folder / ISIC / ISIC if nested else folder / ISIC
    target.parent.mkdir(exist_ok=True)
    (folder / f"{ISIC}_preprocessed").rename(target)
    return folder


def initialised(folder):
    assert main(["data", "init", str(tree(folder, "{a,b}/{x,y}/*_1.png")), "--group_pattern", r"(\d+)_1"]) == 0
    return folder / "manifest.csv"


CENTRES = {"bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias"}
RUNS = {
    "ISIC's own folder": (isic, "FedISIC2019", "root", [], CENTRES),
    "ISIC's own folder, nested": (lambda f: isic(f, True), "FedISIC2019", "root", ["--data.centers=[1,4]"], {"vidir_molemax", "msk"}),
    "FLamby's folder": (make_fed_isic, "FedISIC2019", "root", ["--data.centers=[0,5]"], {"bcn", "vienna_dias"}),
    "lesions": (isic, "FedISIC2019", "root", ["--data.split=lesion_grouped", "--data.test_fraction=0.4"], CENTRES),
    "GDRBench": (lambda f: make_fed_drg(f, ("APTOS", "DEEPDR", "IDRID", "MESSIDOR"), mixed=True), "FedDRG", "root", [], {"APTOS", "DEEPDR", "IDRID", "MESSIDOR"}),
    "folders": (make_folder, "FolderSites", "root", [], {"clinic_a", "clinic_b"}),
    "init": (initialised, "ManifestSites", "manifest", [], {"a", "b"}),
    "imagefolder": (make_image_folder, "HuggingFaceSites", "root", [], {"north", "south"}),
    "save_to_disk": (lambda f: save(make_image_folder(f), f.with_name("saved")), "HuggingFaceSites", "root", [], {"north", "south"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run(tmp_path, capsys, name) -> None:
    maker, reader, option, options, sites = RUNS[name]
    given = [f"--data={reader}", f"--data.{option}={maker(tmp_path / 'data')}", *options]
    code, out, err = called(capsys, *RUN, *given, f"--runs_dir={tmp_path / 'runs'}")
    assert code == 0, err
    assert "worst client" in out
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert set(summary["personal"]["clients"]) == set(summary["generic"]["clients"]) == sites
    assert 0 <= summary["personal"]["mean"]["accuracy"] <= 1
    protocol = json.dumps(summary["protocol"])
    assert ("lesion-grouped split, 0.4 to test" in protocol) == (name == "lesions")
    assert ("kappa" in json.dumps(summary["personal"])) == (reader == "FedDRG")


def test_every_reader_is_known_by_its_name() -> None:
    assert {"FedDRG", "HuggingFaceSites"} <= set(pfedst.data.__all__) == set(pfedst.data.MODULES)
    for name in pfedst.data.__all__:
        assert name == "Split" or getattr(pfedst.data, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'pfedst.data' has no attribute 'FedDGR'"):
        _ = pfedst.data.FedDGR


# -- commands --------------------------------------------------------------------------------------------------


def test_help(capsys) -> None:
    for arguments in ([], ["--help"], ["help"]):
        code, out, _ = called(capsys, "data", *arguments)
        assert code == 0
        assert out.startswith("usage: pfedst data prepare NAME")
    for command in ("prepare", "init", "audit", "partition", "preprocess"):
        code, out, _ = called(capsys, "data", command, "--help")
        assert code == 0
        assert f"usage: pfedst data {command}" in out
    code, out, _ = called(capsys, "data", "audit", "none", "-h")
    assert code == 0
    assert all(word in out for word in ("--audit.folder", "--audit.images_per_site", "see pfedst fit --help"))


@pytest.mark.parametrize(("name", "words"), [("fed_isic2019", ["FLamby", "25,331 JPEG", "CC BY-NC 4.0"]), ("fed_drg", ["FGADR", "on request", "3,662"])])  # fmt: skip
def test_prepare_says_what_to_get(capsys, name, words) -> None:
    code, out, err = called(capsys, "data", "prepare", name)
    assert (code, err) == (0, "")
    for word in [*words, "pfedst downloads nothing", "https://", f"pfedst data prepare {name} --root ROOT", "--data.root ROOT"]:  # fmt: skip
        assert word in out


def test_init_writes_a_manifest_and_its_own_words_go_on(tmp_path, capsys) -> None:
    root = tree(tmp_path / "my pool", "{a,b}/{x,y}/*_{1,2}.png")
    code, out, _ = called(capsys, "data", "init", root, "--group_pattern", r"(\d+)_", "--seed", 3)
    assert code == 0
    assert f"{root / 'manifest.csv'}: 80 images, folders read as site/label, train and test drawn with seed 3" in out
    assert "10 groups (patients, lesions) known\n" in out
    table = pd.read_csv(root / "manifest.csv")
    assert list(table.columns) == ["path", "label", "site", "split", "group"]
    assert table["split"].value_counts().to_dict() == {"train": 64, "test": 16}
    before = (root / "manifest.csv").read_bytes()
    for again in ([], ["--seed", 4], ["--manifest", root / "manifest.csv"]):
        code, _, err = called(capsys, "data", "init", root, *again)
        assert code == 3
        assert f"{root / 'manifest.csv'} exists and is not overwritten; remove it, or give --manifest" in err
    assert (root / "manifest.csv").read_bytes() == before
    code, out, _ = called(capsys, "data", "init", root, "--manifest", tmp_path / "b.csv", "--group_pattern", r"(\d+)_", "--seed", 3)  # fmt: skip
    assert code == 0
    assert (tmp_path / "b.csv").read_bytes() == before
    assert f"--data.manifest {tmp_path / 'b.csv'} --data.root '{root}'" in out
    assert "pfedst fit --config manifest" in out


def test_the_command_that_init_prints_can_be_pasted(tmp_path, capsys) -> None:
    root = tree(tmp_path / "my pool", "{a,b}/{x,y}/*.png")
    _, out, _ = called(capsys, "data", "init", root)
    assert str(root / "manifest.csv") in shlex.split(out.splitlines()[-1])


def test_init_says_that_a_split_is_empty(tmp_path, capsys) -> None:
    _, out, err = called(
        capsys, "data", "init", tree(tmp_path / "pool", "{a,b}/{train,test}/x/1.png", "c/train/x/1.png")
    )
    assert 'site "c" has no test image' in out + err


def test_init_proposes_a_pattern_and_says_what_it_leaves_out(tmp_path, capsys) -> None:
    root = tree(tmp_path / "pool", "{x,y}/P{1,2,3}_{L,R}.png", "@eaDir/x/1.png")
    (root / "report.pdf").write_text("text")
    _, out, _ = called(capsys, "data", "init", root)
    assert "data set: not used: 1 .pdf, 1 @eaDir" in out
    assert "12 images look like several images of 3 patients (P1_L.png and P1_R.png)" in out
    proposed = shlex.split(next(line for line in out.splitlines() if "  --group_pattern" in line))
    (root / "manifest.csv").unlink()
    _, out, _ = called(capsys, "data", "init", root, *proposed)
    assert "3 groups (patients, lesions) known" in out
    assert "look like" not in out


def test_an_audit_without_an_embedding(tmp_path, capsys) -> None:
    arguments = ["data", "audit", make_folder(tmp_path / "images"), "--model.encoder=Pixels"]
    code, out, err = called(capsys, *arguments, f"--audit.folder={tmp_path / 'audit'}")
    assert (code, "0 errors" in out) == (0, True)
    assert "the comparison of sites by the encoder is skipped: Pixels has no embedding" in err
    assert "site_shift" not in json.loads((tmp_path / "audit/audit.json").read_text())["figures"]


def test_columns_are_named_on_the_command_line(tmp_path, capsys) -> None:
    file = make_manifest(tmp_path)
    table = (
        pd.read_csv(file).rename(columns={"path": "Datei", "label": "Diagnose", "site": "Klinik"}).drop(columns="split")
    )
    table.to_csv(file, index=False, sep=";", encoding="utf-16")
    given = ["--data.columns.path=Datei", "--data.columns={path: Datei, label: Diagnose, site: Klinik}"]
    code, out, err = called(
        capsys, "data", "audit", file, given[1], "--audit.images=false", f"--audit.folder={tmp_path}"
    )
    assert code == 0, err
    assert "no column split: 0.2 of the groups drawn to test" in out + err
    code, _, err = called(capsys, "data", "audit", file, given[0], "--audit.images=false")
    assert (code, 'no column "label"' in err) == (3, True)


def test_partition_and_preprocess_lead_to_a_run(tmp_path, capsys) -> None:
    pool = make_manifest(tmp_path / "pool")
    code, out, _ = called(capsys, "data", "preprocess", pool.parent / "images", tmp_path / "small/images", "--shorter_side", 16)  # fmt: skip
    assert code == 0
    assert f"{tmp_path / 'small/images'}: 60 images written, 0 were there" in out
    _, out, _ = called(capsys, "data", "preprocess", pool.parent / "images", tmp_path / "small/images", "--shorter_side", 16)  # fmt: skip
    assert "0 images written, 60 were there" in out
    shutil.copy(pool, tmp_path / "small/manifest.csv")
    arguments = ["data", "partition", tmp_path / "small/manifest.csv", tmp_path / "cut", "--by=quantity", "--sites=2"]
    code, out, _ = called(capsys, *arguments)
    assert code == 0
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"manifest.csv", "partition.json", "partition.png"}
    code, _, err = called(capsys, *arguments)
    assert code == 3
    assert "is not overwritten; give another folder" in err
    program, command, option, config, *rest = shlex.split(out.splitlines()[-1])
    assert (program, command, option) == ("pfedst", "fit", "--config")
    code, _, err = called(capsys, "fit", option, config, *rest, *RUN[1:], f"--runs_dir={tmp_path}")
    assert code == 0, err
    assert set(json.loads((tmp_path / "run/summary.json").read_text())["personal"]["clients"]) == {"site_a", "site_b"}


# -- wrong input -----------------------------------------------------------------------------------------------


WRONG = [
    (["data", "inti"], 2, ['no command "inti"', 'Did you mean "init"', "usage: pfedst data prepare"]),
    (["data", "prepare"], 2, ["pfedst data prepare", "required: name"]),
    (["data", "prepare", "fed_dgr"], 2, ['no public data "fed_dgr"', 'Did you mean "fed_drg"']),
    (["data", "prepare", "fed_drg", "--root", "none"], 3, ["--root none: no such folder"]),
    (["data", "prepare", "fed_drg", "--roots=."], 2, ["--roots", "--help"]),
    (["data", "prepare", "fed_isic2019", "--root", "."], 3, [". is not complete: image folder, train_test_split"]),
    (["data", "prepare", "fed_drg", "--root", "."], 3, [". is not complete: APTOS, DEEPDR"]),
    (["data", "init"], 2, ["pfedst data init", "required: folder"]),
    (["data", "init", "none"], 3, ["none: no such folder", "give the folder with the images"]),
    (["data", "init", "."], 3, ["no image in it or below it"]),
    (["data", "init", "FLAT"], 3, ["cannot be guessed", "--layout"]),
    (["data", "init", "GOOD", "--layout", "site/clas"], 2, ["--layout", '"clas" is none of']),
    (["data", "init", "GOOD", "--layout", "label"], 3, ["--layout label has 1 levels"]),
    (["data", "init", "GOOD", "--test_fraction", "2"], 2, ["--test_fraction 2.0"]),
    (["data", "init", "GOOD", "--seed", "x"], 2, ["pfedst data init", "seed", "int"]),
    (["data", "init", "GOOD", "--group_pattern", "("], 2, ["--group_pattern ("]),
    (["data", "init", "GOOD", "--manifest", "none/a.csv"], 3, ["none/a.csv cannot be written", "give another --manifest"]),
    (["data", "init", "BYTES"], 3, ["BYTES"]),
    (["data", "preprocess", "none", "there"], 3, ["SOURCE none: no such folder"]),
    (["data", "preprocess", ".", "GOOD/x"], 3, ["would be read as source images"]),
    (["data", "preprocess", "GOOD", "t", "--shorter_side", "4"], 2, ["--shorter_side 4: must be 8 or more"]),
    (["data", "preprocess", "GOOD", "t", "--crop", "round"], 2, ["crop", "round"]),
    (["data", "preprocess", "GOOD", "t", "--workers", "-1"], 2, ["--workers -1"]),
    (["data", "preprocess", "GOOD"], 2, ["required: target"]),
    (["data", "partition", "none.csv", "t", "--by=labels"], 3, ["none.csv: no such file", ".csv or .parquet"]),
    (["data", "partition", "T.csv", "t"], 2, ["required: by"]),
    (["data", "partition", "T.csv", "t", "--by=lables"], 2, ["by", "labels", "lables"]),
    (["data", "partition", "T.csv", "t", "--by=column"], 2, ["--column None", "needs a column"]),
    (["data", "partition", "T.csv", "t", "--by=labels", "--alpha=0"], 2, ["--alpha 0.0: must be above 0"]),
    (["data", "partition", "T.csv", "t", "--by=labels"], 3, ['no column "path"', "Found: a, b"]),
    ([*RUN, "--data=FedDRG", "--data.root=none"], 3, ["--data.root none: no such folder"]),
    ([*RUN, "--data=FedDRG", "--data.root=GOOD"], 3, ["GOOD holds no folder splits"]),
    ([*RUN, "--data=FedDRG"], 3, ["--data.root is not given", "PFEDST_DATA_ROOT"]),
    ([*RUN, "--data=FedDRG", "--data.domains=[APTSO]"], 2, ["--data.domains", 'Did you mean "APTOS"']),
    ([*RUN, "--data=FedDRG", "--data.domain=[APTOS]"], 2, ["--data.domain", 'Did you mean "domains"']),
    ([*RUN, "--data=FedDRG", "--data.ordinal=false"], 2, ["--data.ordinal", "known:"]),
    ([*RUN, "--data=FedISIC2019", "--data.split=lesions"], 2, ["--data.split", "lesion_grouped", "lesions"]),
    ([*RUN, "--data=FedISIC2019", "--data.test_fraction=1"], 2, ["--data.test_fraction 1.0"]),
    ([*RUN, "--data=FedISIC2019", "--data.root=GOOD"], 3, ["no file train_test_split"]),
    ([*RUN, "--data=HuggingFaceSites", "--data.root=GOOD"], 3, ["neither train/ and test/", "save_to_disk"]),
    ([*RUN, "--data=HuggingFaceSites", "--data.root=GOOD", "--data.site_colum=x"], 2, ['Did you mean "site_column"']),
    ([*RUN, "--data=ManifestSites", "--data.manifest=T.csv"], 3, ['no column "path" (found: a, b)']),
    ([*RUN, "--data=FolderSites", "--data.root=GOOD"], 3, ["GOOD/a/train is missing", "SITE/train/CLASS"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG)
def test_one_clear_error_and_nothing_is_written(tmp_path, capsys, arguments, code, words) -> None:
    here = tmp_path / "here"
    (here / "T.csv").write_text("a,b\n1,2\n")
    if "GOOD" in " ".join(arguments):
        tree(here / "GOOD", "{a,b}/{x,y}/1.png")
    if "FLAT" in arguments:
        tree(here / "FLAT", "1.png")
    if "BYTES" in arguments:
        tree(here / "BYTES", "{x,y}/1.png")
        (here / "BYTES/x/1.png").rename(here / "BYTES/x/\udcff.png")
    before = sorted(here.rglob("*"))
    found, _, err = called(capsys, *arguments)
    assert found == code, err
    message = err[err.index("pfedst: error: ") :]
    assert [word for word in words if word not in message] == [], message
    assert sorted(here.rglob("*")) == before
