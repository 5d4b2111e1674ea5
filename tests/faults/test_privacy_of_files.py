"""Neither what a run leaves nor what it says holds the name of an image, or a patient."""

import logging

import pytest

from pfedst.cli import main
from tests.fake_data.folder.data import image
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows

RUN = ["fit", "--method=PFedST", "--model.encoder.model=vit-nano", "--model.encoder.weights=random"]
RUN += ["--model.encoder.image_size=32", "--model.anchors=prototypes", "--coordinator.rounds=1"]
RUN += ["--trainer.accelerator=cpu", "--name=run", "--data=ManifestSites"]
FILE, PATIENT = "zqxjfile", "zqxjpatient"


def table(root):
    """Distinctive names; a patient in train and test, and a file that is there twice, so that the audit has much to say."""
    found = rows()
    for number, row in enumerate(found):
        row["path"] = f"{row['site']}/{FILE}_{number}.png"
        row["group"] = f"{PATIENT}_{number // 2}"
        image(root / row["path"], number)
    found[0]["group"] = found[-1]["group"]
    (root / found[1]["path"]).write_bytes((root / found[-1]["path"]).read_bytes())
    return make_manifest(root, found)


def leaks(folder):
    secret = (FILE.encode(), PATIENT.encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = [path for path in files if FILE in str(path) or PATIENT in str(path)]
    return len(files), named + [path for path in files if any(word in path.read_bytes() for word in secret)]


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("pfedst"), "handlers", [])


@pytest.mark.parametrize("verify", ["true", "false"])
def test_a_run(tmp_path, capfd, caplog, verify) -> None:
    file = table(tmp_path / "data")
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    caplog.set_level(logging.DEBUG)
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={runs / 'run_of_logger'}"]
    options = [f"--data.manifest={file}", f"--data.verify_images={verify}", "--data.cache=auto", *logger]
    options += [f"--runs_dir={runs}", f"--data.cache_folder={cache}"]
    assert main([*RUN, *options]) == 0
    config = str(runs / "run/config.yaml")
    assert main(["test", "--config", config, f"--ckpt_path={runs / 'run'}"]) == 0
    count, found = leaks(runs)
    assert count > 5
    assert list(runs.rglob("metrics.csv"))
    assert found == []
    count, found = leaks(cache)
    assert count > 1
    assert found == []
    said = capfd.readouterr()
    assert "data audit: " in said.out
    for text in (said.out, said.err, caplog.text):
        assert FILE not in text
        assert PATIENT not in text


def test_an_audit_that_is_asked_for_names_files_and_no_patient(tmp_path, capfd) -> None:
    file = table(tmp_path / "data")
    options = [f"--data.cache_folder={tmp_path / 'cache'}", "--audit.images_per_site=0"]
    assert main(["data", "audit", str(file), f"--audit.folder={tmp_path / 'audit'}", *options]) == 0
    said = capfd.readouterr()
    told = said.out + said.err + "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    assert FILE in told
    assert PATIENT not in told


def test_a_strict_audit_refuses_without_names(tmp_path, capfd) -> None:
    file = table(tmp_path / "data")
    options = [f"--data.manifest={file}", "--data.audit=strict", f"--data.cache_folder={tmp_path / 'cache'}"]
    assert main([*RUN, *options, f"--runs_dir={tmp_path / 'runs'}"]) == 3
    said = capfd.readouterr()
    assert "--data.audit strict: " in said.err
    assert FILE not in said.out + said.err
    assert PATIENT not in said.out + said.err
