"""Every shipped config runs through the real command line, on fake trees with the real file names."""

import json
from pathlib import Path

import pytest

from pfedst.cli import main
from pfedst.evaluation.averages import CALIBRATION, GRADING_METRICS, METRICS
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import make as make_image_folder
from tests.fake_data.image_folder.data import own_cache
from tests.fake_data.manifest.data import make as make_manifest

CONFIGS = Path(__file__).parents[1] / "configs"
NANO = ["--model.encoder.model=vit-nano", "--model.encoder.weights=random", "--model.encoder.image_size=32"]
NANO += ["--model.encoder.token_grid=2"]  # it has 4x4 patches
SHORT = ["--coordinator.rounds=1", "--coordinator.evaluate_every=1", "--trainer.accelerator=cpu"]
ROOTS = {
    "demo.yaml": lambda folder: ["--data.samples_per_site=[12,10,8,8]", "--data.test_samples_per_site=[8,8,8,8]"],
    "fed_drg.yaml": lambda folder: [f"--data.root={make_fed_drg(folder, mixed=True)}"],
    "fed_isic2019.yaml": lambda folder: [f"--data.root={make_fed_isic(folder)}"],
    "fed_isic_ham4.yaml": lambda folder: [f"--data.root={make_fed_isic(folder)}"],
    "folder.yaml": lambda folder: [f"--data.root={make_folder(folder)}"],
    "image_folder.yaml": lambda folder: [f"--data.root={make_image_folder(folder)}"],
    "manifest.yaml": lambda folder: [f"--data.manifest={make_manifest(folder)}"],
}


def test_every_config_is_listed_here() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(ROOTS)


@pytest.mark.parametrize("name", ROOTS)
def test_it_runs_and_its_saved_config_runs_again(name, tmp_path, capsys, monkeypatch) -> None:
    own_cache(monkeypatch, tmp_path / "hub")
    common = [f"--runs_dir={tmp_path / 'runs'}", f"--data.cache_folder={tmp_path / 'cache'}"]
    code = main(
        ["fit", "--config", str(CONFIGS / name), *NANO, *SHORT, *ROOTS[name](tmp_path / "data"), *common, "--name=a"]
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "worst client" in printed
    assert ("quadratic kappa" in printed) == (name == "fed_drg.yaml")
    assert "data audit: " in printed
    assert "RANDOM WEIGHTS" in printed
    run = tmp_path / "runs" / "a"
    summary = json.loads((run / "summary.json").read_text())
    for model in ("personal", "generic"):
        assert set(summary[model]) == {"clients", "mean", "weighted_mean", "worst", "std", "counts"}
        graded = GRADING_METRICS if name == "fed_drg.yaml" else ()
        assert list(summary[model]["mean"]) == [*METRICS, *CALIBRATION, *graded]
    assert main(["fit", "--config", str(run / "config.yaml"), *common, "--name=b"]) == 0
    again = json.loads((run.parent / "b" / "summary.json").read_text())
    for key in ("personal", "generic", "best_on_validation", "trained", "protocol"):
        assert again[key] == summary[key]
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run)]) == 0
    tested = json.loads((run / "test.json").read_text())
    assert tested["personal"] == summary["personal"]
    assert tested["generic"] == summary["generic"]


def test_the_environment_gives_root_and_weights(tmp_path, monkeypatch, capsys) -> None:
    arguments = ["fit", "--config", str(CONFIGS / "fed_isic_ham4.yaml"), *SHORT, f"--runs_dir={tmp_path / 'runs'}"]
    arguments += ["--model.encoder.model=vit-nano", "--model.encoder.image_size=32"]
    assert main(arguments) == 3
    assert "PFEDST_DATA_ROOT" in capsys.readouterr().err
    monkeypatch.setenv("PFEDST_DATA_ROOT", str(make_fed_isic(tmp_path / "data")))
    assert main(arguments) == 4
    assert "--model.encoder.weights is not given" in capsys.readouterr().err
    monkeypatch.setenv("PFEDST_ENCODER_WEIGHTS", "random")
    assert main(arguments) == 0


def test_the_real_four_sites_run(tmp_path) -> None:
    real = Path(__file__).parents[2] / "shared" / "data" / "fedisic_ham4"
    if not real.is_dir():
        pytest.skip("the real images of four FedISIC centres are not on this machine")
    arguments = ["fit", "--config", str(CONFIGS / "fed_isic_ham4.yaml"), *NANO, *SHORT, "--data.verify_images=false"]
    arguments += [f"--data.root={real}", f"--data.split_file={real / 'train_test_split_tiny'}"]
    assert main([*arguments, f"--runs_dir={tmp_path}", "--name=real"]) == 0
    sites = json.loads((tmp_path / "real" / "summary.json").read_text())["personal"]["clients"]
    assert set(sites) == {"vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias"}
