"""Predictions: one row an image, whatever the image is; an image that cannot be read does not stop the others."""

import hashlib
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfedst import load
from pfedst.cli import main
from pfedst.errors import ConfigurationError, DataError
from pfedst.inference.images import items_of
from pfedst.inference.predict import PROBABILITY, predict
from pfedst.inference.site_model import Abstention, SiteModel
from pfedst.methods.priors import TargetPrior
from tests.fake_data.dicom.data import make


@pytest.fixture(scope="module")
def models(run_folder):
    return load(run_folder).models(["site_a", None])


def probabilities(table, model, prefix=""):
    return table[[f"{prefix}{PROBABILITY}{name}" for name in model.class_names]].to_numpy()


def test_files_images_and_arrays_are_alike(models, pictures) -> None:
    model = models[0]
    opened = [Image.open(path).convert("RGB") for path in pictures]
    tables = [model.predict(kind) for kind in (pictures, opened, [np.asarray(image) for image in opened])]
    for table in tables[1:]:
        assert np.array_equal(probabilities(tables[0], model), probabilities(table, model))
    assert list(tables[0]["image"]) == [str(path) for path in pictures]
    assert list(tables[1]["image"]) == [str(number) for number in range(9)]
    assert list(tables[0]["sha256"]) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures]
    assert np.allclose(probabilities(tables[0], model).sum(1), 1)
    assert list(tables[0]["prediction"]) == [
        model.class_names[index] for index in probabilities(tables[0], model).argmax(1)
    ]
    assert np.array_equal(tables[0]["confidence"], probabilities(tables[0], model).max(1))
    assert set(tables[0]["model"]) == {model.id}
    assert set(tables[0]["error"]) == {""}


def test_a_folder_is_read_with_all_folders_in_it(models, pictures, tmp_path) -> None:
    for number, path in enumerate(pictures[:4]):
        place = tmp_path / ("a", "b", ".hidden", "b")[number] / path.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("no image")
    found = models[0].predict(tmp_path)
    assert [name.rpartition("/")[2] for name in found["image"]] == ["image_0.png", "image_1.png", "image_3.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        models[0].predict(tmp_path / "empty")
    with pytest.raises(DataError, match="no image is named"):
        models[0].predict([])


def test_dicom_files_are_read(models, tmp_path) -> None:
    file = make(tmp_path / "scan", np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
    assert list(models[0].predict([file])["error"]) == [""]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_an_unreadable_image_does_not_stop_the_rest(models, pictures, tmp_path, batch_size) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    mixed = [pictures[0], broken, pictures[1], tmp_path / "none.png", np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4))]
    table = models[0].predict(mixed, batch_size=batch_size)
    assert [bool(error) for error in table["error"]] == [False, True, False, True, True, True]
    assert "broken.png" in table["error"][1]
    assert "no such file" in table["error"][3]
    assert table.loc[table["error"] != "", "prediction"].isna().all()
    alone = models[0].predict(pictures[:2])
    assert np.allclose(probabilities(table, models[0])[[0, 2]], probabilities(alone, models[0]), atol=1e-5)
    with pytest.raises(DataError, match="broken.png"):
        models[0].predict(mixed, strict=True)


def test_personal_and_generic_share_one_pass(models, pictures, monkeypatch) -> None:
    encoder, seen = models[0].encoder, []
    whole = encoder.encode_batch
    monkeypatch.setattr(encoder, "encode_batch", lambda images, needs: seen.append(len(images)) or whole(images, needs))
    both = predict(models, pictures)
    assert sum(seen) == len(pictures)
    for model, prefix in zip(models, ("", "generic "), strict=True):
        assert np.array_equal(probabilities(both, model, prefix), probabilities(model.predict(pictures), model))


def stub(effective, site, temperature, **more):
    """A model of three classes; its tensors are not used."""
    priors = [None if p is None else torch.tensor(p, dtype=torch.float64) for p in (effective, site)]
    return SiteModel(None, None, ("a", "b", "c"), "personal", "s", *priors, temperature, **more)  # type: ignore[arg-type]


def test_a_change_of_prior_is_not_divided_by_the_temperature() -> None:
    model = stub(*PRIORS, 2.0)
    f = [1.0, 0.5, -1.0]
    for option, target in (("site", PRIORS[1]), ("training", PRIORS[0]), ("balanced", [1 / 3] * 3)):
        weights = [math.exp(x / 2) / e * t for x, e, t in zip(f, PRIORS[0], target, strict=True)]
        found = model.probabilities(torch.tensor([f]), model.target(option))
        assert torch.allclose(found, torch.tensor([[w / sum(weights) for w in weights]], dtype=torch.float64))


PRIORS = ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1])
logits = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


@settings(max_examples=50)
@given(logits)
def test_without_temperature_the_training_prior_changes_nothing(f) -> None:
    plain = torch.tensor([f], dtype=torch.float64).softmax(1)
    for model in (stub(*PRIORS, 1.0), stub(None, None, 1.0), stub(PRIORS[0], None, 1.0)):
        found = model.probabilities(torch.tensor([f], dtype=torch.float64), TargetPrior())
        assert torch.allclose(found, plain, atol=1e-12)


def test_a_prior_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--prior balanced: the class frequencies"):
        stub(None, None, 1.0).target("balanced")
    with pytest.raises(ConfigurationError, match="--model.prior none.json: no such file"):
        stub(*PRIORS, 1.0).target("none.json")


def test_abstention_holds_for_its_prior_alone() -> None:
    model = stub(*PRIORS, 1.0, abstention=Abstention(0.8, {"site": 0.5}))
    assert model.threshold(model.target("site")) == 0.5
    assert model.threshold(model.target("balanced")) is None


def test_options_out_of_range(models, pictures) -> None:
    with pytest.raises(ConfigurationError, match="--batch_size 0"):
        models[0].predict(pictures, batch_size=0)
    with pytest.raises(ConfigurationError, match="--precision 8"):
        predict(models, pictures, precision="8")  # type: ignore[arg-type]
    lower = predict(models, pictures, precision="bf16-mixed")
    assert np.allclose(probabilities(lower, models[0]), probabilities(predict(models, pictures), models[0]), atol=0.1)


def test_images_in_memory_of_unclear_range_are_refused() -> None:
    (deep,) = items_of(Image.new("I;16", (4, 4)))
    with pytest.raises(DataError, match="mode I;16"):
        deep.load(None)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_command_writes_a_table(run_folder, pictures, tmp_path, suffix, capsys) -> None:
    out = tmp_path / "new" / f"predictions{suffix}"
    arguments = ["predict", str(run_folder), *map(str, pictures), "--site=site_a", "--generic", f"--out={out}"]
    assert main(arguments) == 0
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda file: pd.read_json(file, lines=True)}
    table = read[suffix](out)
    model = load(run_folder).model("site_a")
    assert np.allclose(probabilities(table, model), probabilities(model.predict(pictures), model), atol=1e-12)
    assert "the personal model of site site_a" in capsys.readouterr().out


def test_the_command_reports_images_that_cannot_be_read(run_folder, pictures, tmp_path, capsys) -> None:
    out = tmp_path / "predictions.csv"
    arguments = ["predict", str(run_folder), str(pictures[0]), "none.png", "--generic", f"--out={out}"]
    assert main(arguments) == 3
    assert "1 of 2 images cannot be read" in capsys.readouterr().err
    assert len(pd.read_csv(out)) == 2
    out.unlink()
    assert main([*arguments, "--strict"]) == 3
    assert not out.exists()


@pytest.mark.parametrize("labels", ["table.csv", "folders"])
def test_labels_give_metrics(run_folder, pictures, tmp_path, labels, capsys) -> None:
    model = load(run_folder).model("site_a")
    names = list(model.class_names)
    for number, path in enumerate(pictures):
        place = tmp_path / "images" / names[number % 3] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    rows = [f"{path.name},{names[number % 3]}" for number, path in enumerate(pictures)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    given = labels if labels == "folders" else str(tmp_path / labels)
    out = tmp_path / "p.csv"
    arguments = ["predict", str(run_folder), str(tmp_path / "images"), "--site=site_a", f"--out={out}"]
    assert main([*arguments, f"--labels={given}"]) == 0
    table = pd.read_csv(out)
    truth = [name.split("/")[-2] for name in table["image"]]
    found = json.loads((tmp_path / "p.metrics.json").read_text())
    right = sum(one == other for one, other in zip(table["prediction"], truth, strict=True))
    assert found["model"] == "the personal model of site site_a"
    assert found["metrics"]["accuracy"] == right / 9
    assert found["images"] == 9
    assert found["intervals"]["accuracy"]["value"] == pytest.approx(right / 9)
    assert sum(map(sum, found["confusion"])) == 9
    printed = capsys.readouterr().out
    assert "Confusion matrix" in printed
    assert "the personal model of site site_a, 9 images" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out=p.txt", "--generic"], "must end in .csv"),
        (["--out=p.csv"], "is a run: name a site"),
        (["--out=p.csv", "--site=site_z"], 'no site "site_z"'),
        (["--out=p.csv", "--generic", "--round=7"], "round 7 of"),
        (["--out=p.csv", "--generic", "--device=cuda:9"], "--device cuda:9"),
        (["--out=p.csv", "--generic", "--prior=site"], "no class frequencies of a site"),
    ],
)
def test_wrong_options_of_the_command(run_folder, pictures, tmp_path, monkeypatch, capsys, more, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run_folder), str(pictures[0]), *more]) == 2
    assert message in capsys.readouterr().err


def test_labels_that_do_not_fit(run_folder, pictures, tmp_path, capsys) -> None:
    common = ["predict", str(run_folder), str(pictures[0]), "--generic", f"--out={tmp_path / 'p.csv'}"]
    for text, code, message in (
        ("path,label\nother.png,nevus\n", 3, "has no label of"),
        ("name,kind\nx,y\n", 2, "needs a column path and a column label"),
        ("path,label\nimage_0.png,wart\n", 3, 'the label "wart" is not a class of the model'),
    ):
        (tmp_path / "t.csv").write_text(text)
        assert main([*common, f"--labels={tmp_path / 't.csv'}"]) == code
        assert message in capsys.readouterr().err
