"""`pfedst calibrate`: from the kept predictions of a real run, without its images."""

import json
import shutil

import pytest

from pfedst.cli import main
from pfedst.client.calibration_file import FILE, load_calibration

RUN = [
    "fit", "--method=PFedST", "--model.encoder.model=vit-nano", "--model.encoder.weights=random",
    "--model.anchors=prototypes", "--data=SyntheticSites", "--data.sites=2", "--data.samples_per_site=[150,10]",
    "--data.test_samples_per_site=[20,8]", "--data.audit=off", "--data.image_size=32", "--coordinator.rounds=1",
    "--trainer.accelerator=cpu", "--trainer.limit_train_batches=1", "--name=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: site_a has enough validation images, site_b has none."""
    folder = tmp_path_factory.mktemp("finished")
    assert main([*RUN, f"--runs_dir={folder}"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run."""
    return shutil.copytree(finished, tmp_path / "run")


def test_it_writes_what_fit_has_written(run, capsys) -> None:
    file = run / "sites/site_a" / FILE
    before = file.read_bytes()
    file.unlink()
    assert main(["calibrate", str(run), "--site", "site_a"]) == 0
    assert file.read_bytes() == before
    found = json.loads((run / "summary.json").read_text())["calibration"]["site_a"]
    printed = capsys.readouterr().out
    for text in (
        f"T = {found['temperature']:.2f}, {found['images']} validation images, {found['errors']} errors",
        f"{found['test']['after']['nll']:.3f}",
        f"{100 * found['test']['selective']['coverage']:.1f} % on test",
        str(file),
    ):
        assert text in printed


def test_another_coverage_is_kept_and_shown(run, capsys) -> None:
    before = load_calibration(run / "sites/site_a", 1)
    assert main(["calibrate", str(run), "--site", "site_a", "--coverage", "0.3"]) == 0
    after = load_calibration(run / "sites/site_a", 1)
    assert (after.coverage, after.temperature) == (0.3, before.temperature)
    assert after.threshold > before.threshold
    assert "coverage 30.0 % asked for" in capsys.readouterr().out


def test_too_few_validation_images_are_an_error_that_changes_nothing(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.evaluation.calibration.FEWEST_IMAGES", 10**6)
    file = run / "sites/site_a" / FILE
    before = file.read_bytes()
    assert main(["calibrate", str(run), "--site", "site_a", "--coverage", "0.3"]) == 3
    assert file.read_bytes() == before
    told = capsys.readouterr()
    assert "site site_a: nothing was fitted: fewer than" in told.err
    assert not told.out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["RUN", "--site", "sitea"], 2, 'has no such site. Did you mean "site_a"?'),
        (["RUN", "--site", "site_b"], 2, "the site has no validation images"),
        (["RUN", "--site", "site_a", "--coverage", "1"], 2, "--coverage 1: must be above 0 and below 1"),
        (["RUNN", "--site", "site_a"], 2, 'no folder. Did you mean "run"?'),
        (["RUN/sites", "--site", "site_a"], 2, "holds no summary.json"),
    ],
)
def test_what_is_wrong_is_told(run, capsys, arguments, code, told) -> None:
    given = [word.replace("RUNN", str(run.with_name("runn"))).replace("RUN", str(run)) for word in arguments]
    assert main(["calibrate", *given]) == code
    assert told in capsys.readouterr().err


def test_predictions_that_are_missing_damaged_or_of_another_round_are_told(run, capsys) -> None:
    site, call = run / "sites/site_a", ["calibrate", str(run), "--site", "site_a"]
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluated"]["round"] = 7
    whole = (run / "summary.json").read_text()
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(call) == 5
    assert "holds the predictions after round 1, not after round 7" in capsys.readouterr().err
    (run / "summary.json").write_text(whole)
    (site / "predictions/validation.safetensors").write_bytes(b"x")
    assert main(call) == 5
    assert "validation.safetensors is missing or damaged" in capsys.readouterr().err
    shutil.rmtree(site)
    assert main(call) == 2
    assert "are kept at the site; run the command there" in capsys.readouterr().err
