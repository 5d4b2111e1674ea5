"""`pfedst explain` and `pfedst export --onnx` on a finished run."""

import json

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from pfedst.cli import main
from pfedst.data.transforms import evaluation_transform
from pfedst.inference.artefact import load_model
from tests.inference.models import pictures


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one round, and a folder with two images."""
    folder = tmp_path_factory.mktemp("explain")
    arguments = ["fit", "--method=PFedST", "--model.encoder=FrozenCLIP", "--model.encoder.model=vit-nano"]
    arguments += ["--model.encoder.weights=random", "--model.anchors=prototypes", "--trainer.accelerator=cpu"]
    arguments += ["--data=SyntheticSites", "--data.sites=2", "--data.classes=3", "--data.samples_per_site=[18,15]"]
    arguments += ["--data.test_samples_per_site=[6,6]", "--data.audit=off", "--coordinator.rounds=1"]
    arguments += ["--model.loss=CrossEntropy", "--coordinator.share_class_counts=true"]
    assert main([*arguments, f"--runs_dir={folder}", "--name=run"]) == 0
    (folder / "images").mkdir()
    pictures(folder / "images", 8)
    return folder / "run", folder / "images"


def explained(run, images, out, *options) -> int:
    files = sorted(images.iterdir())[:2] if images.is_dir() else [images]
    return main(["explain", str(run), *map(str, files), f"--out={out}", *options])


def test_a_site_is_shown_beside_the_generic_model(finished, tmp_path, capsys) -> None:
    run, images = finished
    assert explained(run, images, tmp_path / "maps", "--site=site_a", "--generic", "--stride=16") == 0
    content = json.loads((tmp_path / "maps" / "explain.json").read_text())
    assert [(model["which"], model["site"]) for model in content["models"]] == [
        ("personal", "site_a"),
        ("generic", None),
    ]
    assert content["grid"]["stride"] == 16
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    printed = capsys.readouterr().out
    assert [summary["verdict"] for summary in content["summary"]] == printed.splitlines()[:2]


def test_the_generic_model_alone_and_a_named_class(finished, tmp_path) -> None:
    run, images = finished
    names = json.loads((run / "summary.json").read_text())["protocol"]["classes"]
    options = ("--generic", f"--class={names[2]}", "--stride=16", "--window=32")
    assert explained(run, images / "1.png", tmp_path / "maps", *options) == 0
    content = json.loads((tmp_path / "maps" / "explain.json").read_text())
    assert [image["class"] for image in content["images"]] == [names[2]]
    assert [single["model"] for single in content["images"][0]["maps"]] == ["generic"]


def test_figures_of_another_time_are_not_mixed_in(finished, tmp_path, capsys) -> None:
    (tmp_path / "0001-old.png").touch()
    assert explained(*finished, tmp_path, "--generic") == 2
    assert "holds files already; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--site=site_x",), 2, 'run has no site "site_x".'),
        (("--generic", "--stride=7"), 2, "--stride 7: must divide the side of the input"),
        (("--generic", "--class=nevi"), 2, "--class nevi: the model has no such class"),
        (("--generic", "--prior=site"), 2, "--prior site: the generic model has no class frequencies of a site"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(finished, tmp_path, capsys, options, code, words) -> None:
    assert explained(*finished, tmp_path / "maps", *options) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


# -- ONNX --------------------------------------------------------------------------------------------------------------


def test_an_exported_model_has_an_onnx_file_with_its_probabilities(finished, tmp_path, capsys) -> None:
    run, images = finished
    folder = tmp_path / "model"
    options = ["--site=site_b", "--onnx", str(images), "--prior=balanced"]
    assert main(["export", str(run), str(folder), *options]) == 0
    assert "model.onnx: " in capsys.readouterr().out
    model = load_model(folder)
    files = sorted(images.iterdir())[:3]
    transform = evaluation_transform(model.encoder.preprocessing)
    pixels = np.stack([transform(Image.open(file)).numpy() for file in files])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(["probabilities"], {"images": pixels})
    table = model.predict(files, "balanced")
    assert np.abs(found - table[[f"probability {name}" for name in model.class_names]].to_numpy()).max() < 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert about["prior"].startswith("balanced")
    assert str(tmp_path) not in str(about)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--generic", "--prior=balanced"), "--prior balanced: is for --onnx"),
        # of two sites each would learn the other's class frequencies from the difference of the priors
        (
            ("--generic", "--prior=balanced", "--onnx", "IMAGES"),
            "the class frequencies that the generic model has learned",
        ),
        (("--generic", "--onnx", "IMAGES/0.png"), "ONNX: the check needs 8 images or more, and 1 are given"),
    ],
)
def test_what_cannot_be_exported_leaves_no_folder(finished, tmp_path, capsys, options, words) -> None:
    run, images = finished
    options = [option.replace("IMAGES", str(images)) for option in options]
    assert main(["export", str(run), str(tmp_path / "model"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
