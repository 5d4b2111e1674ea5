"""The calibration of a site: from its kept predictions alone, kept at the site; what leaves holds no image."""

import json
from dataclasses import replace

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from safetensors.torch import load_file, save_file

from pfedst.client.calibration import calibrate
from pfedst.client.calibration_file import FILE, Calibration, load_calibration
from pfedst.client.predictions import EFFECTIVE, SITE_PRIOR, Predictions
from pfedst.errors import StateError
from pfedst.evaluation.calibration import FEWEST_IMAGES, TOO_FEW, calibrated, fit_temperature
from pfedst.evaluation.counts import BINS
from pfedst.evaluation.selective import COVERAGE, MOST_POINTS, threshold_for
from pfedst.evaluation.stated_metrics import stated_metrics
from pfedst.messages.requests import Request
from pfedst.methods.pfedst import PFedST
from pfedst.seeds import generator
from tests.client.clients import SPLITS, client_of, fit_request, server_of

CLASSES = ("x", "y", "z")
NATURAL = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
LEARNED = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)


def predictions(number, seed=0, priors=True, scale=4.0):
    """Predictions of a model that is too confident."""
    source = generator(seed)
    labels = torch.randint(0, 3, (number,), generator=source)
    logits = scale * torch.randn(number, 3, generator=source) + 2 * torch.nn.functional.one_hot(labels, 3)
    hashes = torch.zeros(number, 16, dtype=torch.uint8)
    tensors = {"id": hashes, "group": hashes.clone(), "label": labels, "logits.personal": logits}
    known = {f"{EFFECTIVE}personal": LEARNED, SITE_PRIOR: NATURAL} if priors else {}
    return Predictions("a", CLASSES, tensors | known)


def kept(folder, validation=40, test=60, round_number=3, **options):
    for split, number, seed in (("validation", validation, 1), ("test", test, 2)):
        predictions(number, seed, **options).save(folder, split, round_number)
    return folder


def test_it_is_fitted_on_validation_and_measured_on_test_at_the_prior_of_the_site(tmp_path) -> None:
    made = calibrate(kept(tmp_path), 3, False)
    validation, test = predictions(40, 1), predictions(60, 2)
    fitted = fit_temperature(validation.logits("personal"), validation.tensors["label"], LEARNED, NATURAL)
    assert fitted.temperature > 1.2
    assert (made.calibration.temperature, made.calibration.errors) == (fitted.temperature, fitted.errors)
    confidence = calibrated(validation.logits("personal"), fitted.temperature, LEARNED, NATURAL).exp().max(1).values
    assert made.calibration.threshold == threshold_for(confidence, COVERAGE)
    assert int((confidence >= made.calibration.threshold).sum()) == 32
    found = made.reported["test"]
    for moment, temperature in (("before", 1.0), ("after", fitted.temperature)):
        shifted = test.logits("personal").double() / temperature - LEARNED.log() + NATURAL.log()
        expected = stated_metrics(shifted, test.tensors["label"], "site")
        assert {key: found[moment][key] for key in ("ece", "nll", "brier")} == pytest.approx(
            {key: expected[key] for key in ("ece", "nll", "brier")}
        )
    assert found["after"]["nll"] < found["before"]["nll"]
    shares, right = shifted.softmax(1).max(1).values, shifted.argmax(1) == test.tensors["label"]
    predicted = shares >= made.calibration.threshold
    assert found["selective"]["coverage"] == pytest.approx(predicted.double().mean().item())
    assert found["selective"]["accuracy"] == pytest.approx(right[predicted].double().mean().item())
    assert found["risk_coverage"][-1] == [1.0, pytest.approx(1 - right.double().mean().item())]


def test_another_coverage_changes_the_threshold_alone(tmp_path) -> None:
    kept(tmp_path)
    one, other = calibrate(tmp_path, 3, False).calibration, calibrate(tmp_path, 3, False, 0.5).calibration
    assert other.threshold > one.threshold
    assert replace(other, coverage=one.coverage, thresholds=one.thresholds) == one


def test_predictions_of_older_versions_are_calibrated_without_a_prior(tmp_path) -> None:
    made = calibrate(kept(tmp_path, priors=False), 3, False)
    validation = predictions(40, 1)
    fitted = fit_temperature(validation.logits("personal"), validation.tensors["label"], None, None)
    assert made.calibration.temperature == fitted.temperature
    assert (made.calibration.prior, made.calibration.effective, made.calibration.site_prior) == ("training", None, None)
    assert made.reported["prior"] == "training"
    made.calibration.save(tmp_path)
    assert load_calibration(tmp_path, 3) == made.calibration


@pytest.mark.parametrize("validation", [0, FEWEST_IMAGES - 1])
def test_few_images_give_the_reason_and_no_threshold(tmp_path, validation) -> None:
    made = calibrate(kept(tmp_path, validation), 3, False)
    assert (made.calibration.temperature, made.calibration.threshold) == (1.0, None)
    assert made.reported["reason"] == made.calibration.reason == TOO_FEW
    assert made.reported["test"]["before"] == made.reported["test"]["after"]
    assert made.reported["test"]["selective"] is None
    made.calibration.save(tmp_path)
    assert load_calibration(tmp_path, 3) == made.calibration


def test_without_test_images_nothing_is_measured(tmp_path) -> None:
    made = calibrate(kept(tmp_path, test=0), 3, False)
    assert made.calibration.threshold is not None
    assert made.reported["test"] == {"images": 0}


def test_predictions_of_another_round_or_damaged_ones_are_refused(tmp_path) -> None:
    kept(tmp_path)
    with pytest.raises(StateError, match="after round 3, not after round 4"):
        calibrate(tmp_path, 4, False)
    file = tmp_path / "predictions/validation.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    for key, tensor in {
        "logits.personal": torch.zeros(40, 2),
        "label": torch.full((40,), 3),
        SITE_PRIOR: torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64),
        f"{EFFECTIVE}personal": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    }.items():
        about = {"pfedst": json.dumps({"format": 1, "site": "a", "classes": CLASSES})}
        save_file(tensors | {key: tensor}, file, about)
        with pytest.raises(StateError, match="is missing or damaged"):
            calibrate(tmp_path, 3, False)
    file.write_bytes(whole[:-9])
    with pytest.raises(StateError, match="is missing or damaged"):
        calibrate(tmp_path, 3, False)
    file.unlink()
    with pytest.raises(StateError, match="is missing or damaged"):
        calibrate(tmp_path, 3, False)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_it_is_that_of_its_round_and_of_no_other(tmp_path) -> None:
    assert load_calibration(tmp_path, 3) is None
    made = calibrate(kept(tmp_path), 3, True).calibration
    made.save(tmp_path)
    assert load_calibration(tmp_path, 3) == load_calibration(tmp_path, 3, finetuned=True) == made
    assert load_calibration(tmp_path, 2) is None
    assert load_calibration(tmp_path, 3, finetuned=False) is None, "the model before the fine-tuning is another one"


CHANGES = {
    "format": 0.5, "temperature": 0, "coverage": 1.0, "thresholds": {"site": 0.5}, "images": -1, "errors": 41, "reason": "x",
    "prior": "training", "effective": [1.0], "site_prior": None, "class_names": [], "finetuned": 1, "round": "3",
    "site": None, "new": 1,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES.items(), ids=CHANGES)
def test_a_damaged_file_is_refused(tmp_path, key, value) -> None:
    calibrate(kept(tmp_path), 3, False).calibration.save(tmp_path)
    file = tmp_path / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(StateError, match=r"calibration.json is damaged"):
        load_calibration(tmp_path, 3)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_such_file_is_refused(tmp_path, content) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StateError, match=r"calibration.json is damaged"):
        load_calibration(tmp_path, 3)


def test_a_newer_file_is_refused_by_its_format(tmp_path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 2}))
    with pytest.raises(StateError, match="another version of pfedst"):
        load_calibration(tmp_path, 3)


# -- the request -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[Ditto, PFedST])
def asked(request, tmp_path_factory):
    """A client whose sites have evaluated a trained model, its folder, and the reply to `calibrate`."""
    folder = tmp_path_factory.mktemp("sites")
    client = client_of(request.param(), folder)
    server = server_of(client)
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    client.answer("site_a", Request("evaluate", "run", 1, 1, evaluate=SPLITS, parts=server.parts_for("site_a")))
    return client, folder, client.answer("site_a", Request("calibrate", "run", 1))


def test_a_client_keeps_its_calibration_with_the_priors_of_its_model(asked) -> None:
    client, folder, _ = asked
    found = load_calibration(folder / "site_a", 1)
    assert isinstance(found, Calibration)
    assert (found.site, found.class_names) == ("site_a", list(client.data.class_names))
    counts = torch.tensor(client.data.class_counts("site_a", "train")).double()
    assert found.site_prior == pytest.approx(((counts + 1) / (counts + 1).sum()).tolist())
    tensors = load_file(folder / "site_a/predictions/test.safetensors")
    known = {key: tensor.tolist() for key, tensor in tensors.items() if key.startswith(EFFECTIVE)}
    if isinstance(client.method, Ditto):  # cross-entropy on the images of the site alone
        assert known == {f"{EFFECTIVE}personal": found.site_prior}
        assert (found.effective, found.prior) == (found.site_prior, "site")
    else:  # of a merged model, and sites do not share their counts
        assert known == {}
        assert (found.effective, found.prior) == (None, "training")


def test_the_same_request_gives_the_same_bytes(asked) -> None:
    client, folder, reply = asked
    before = (folder / "site_a" / FILE).read_bytes()
    assert client.answer("site_a", Request("calibrate", "run", 1)).values == reply.values
    assert (folder / "site_a" / FILE).read_bytes() == before


def test_the_reply_holds_no_image_no_threshold_and_no_class_frequency(asked) -> None:
    _, folder, reply = asked
    assert json.loads(json.dumps(reply.values)) == reply.values
    assert reply.parts == {}
    assert set(reply.values) == {"calibration"}
    found = reply.values["calibration"]
    assert set(found) == {"temperature", "images", "errors", "reason", "prior", "coverage", "test"}
    assert set(found["test"]) == {"images", "before", "after", "selective", "risk_coverage"}
    for moment in ("before", "after"):
        assert {len(part) for part in found["test"][moment]["reliability"].values()} == {BINS}
    assert len(found["test"]["risk_coverage"]) <= min(MOST_POINTS, found["test"]["images"] // 5)
    assert folder.joinpath("site_a").stat().st_mode & 0o077 == 0, "for its owner alone"
