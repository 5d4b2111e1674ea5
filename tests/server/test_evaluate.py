"""A run that is evaluated again: on data that name their classes otherwise, or with another encoder."""

from dataclasses import replace

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedper import FedPer

from pfedst import simulation
from pfedst.client.module import FederatedClient
from pfedst.data import SyntheticSites
from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, DataError, StateError
from pfedst.methods.pfedst import PFedST
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.testing.small import data, encoder, fit, template, trainer

SITES = {"sites": 3, "classes": 3, "samples_per_site": [24, 18, 15], "test_samples_per_site": [12, 12, 12]}


class Reversed(SyntheticSites):
    """The same images, whose classes come in another order."""

    def read(self):
        found = super().read()
        return found.with_classes(found.class_names[::-1])


class WithAnotherClass(SyntheticSites):
    def read(self):
        found = super().read()
        return replace(found, class_names=[*found.class_names[:-1], "another"])


def made(kind, **options):
    return kind(**(SITES | {"batch_size": 8, "image_size": 32, "audit": "off"} | options))


def evaluated(folder, sites, model=None, split="test", choice="last", method=None):
    given = FederatedCoordinator(), model or template(), sites, method or PFedST(), trainer(), folder / "run"
    return simulation.evaluate(*given, split, 0, choice)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(folder, PFedST(), rounds=2, sites=data(heterogeneity=2.0))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_classes_in_another_order_give_the_same_numbers(run, split) -> None:
    folder, summary = run
    sites = made(Reversed, heterogeneity=2.0)
    assert tuple(sites.read().class_names) == tuple(summary["protocol"]["classes"])[::-1]
    found = evaluated(folder, sites, split=split)
    whole = summary if split == "test" else summary["validation"]
    for model in ("personal", "generic"):
        assert found[model] == whole[model]
    assert found["protocol"]["classes"] == summary["protocol"]["classes"]


def test_data_with_fewer_classes_are_evaluated_too(run) -> None:
    folder, summary = run
    sites = made(SyntheticSites, classes=2, heterogeneity=2.0)
    assert evaluated(folder, sites)["protocol"]["classes"] == summary["protocol"]["classes"]


def test_a_class_that_the_model_does_not_have_is_refused(run) -> None:
    with pytest.raises(DataError, match=r"trained without the class another; it has: nevus, melanoma, keratosis"):
        evaluated(run[0], made(WithAnotherClass))


def test_another_encoder_is_refused(run) -> None:
    other = FrozenCLIP("vit-nano", weights="random")
    with torch.no_grad():
        next(other.tower.parameters()).add_(0.01)
    assert other.compute_hash() != encoder().compute_hash()
    with pytest.raises(StateError, match=r"trained with other encoder weights.*--model.encoder.weights"):
        evaluated(run[0], data(heterogeneity=2.0, cache="none"), FederatedClient(other, anchors="prototypes"))


def test_data_that_are_prepared_cannot_take_other_classes() -> None:
    sites = made(Reversed)
    sites.prepare(encoder().preprocessing)
    sites.use_classes(sites.class_names)
    with pytest.raises(ConfigurationError, match="make another data module"):
        sites.use_classes(sites.class_names[::-1])


@pytest.mark.parametrize("best", [0, 2, 3])
def test_the_best_round_gives_the_numbers_of_its_evaluation(tmp_path, monkeypatch, best) -> None:
    """Also of personal tensors, which are those after the fits behind that round."""
    monkeypatch.setattr(
        "pfedst.reporting.summary._Evaluated.score",
        property(lambda found: (0.9 if found.round == best else 0.3) if found.evaluation else None),
    )
    summary = fit(tmp_path, FedPer(), rounds=5, keep_states=1)
    assert summary["best_on_validation"]["round"] == best
    found = evaluated(tmp_path, data(), choice="best", method=FedPer())
    for model in ("personal", "generic"):
        assert found[model] == summary["best_on_validation"][model]
        assert evaluated(tmp_path, data(), choice=str(best), method=FedPer())[model] == found[model]
    protocol = found["protocol"]
    assert (protocol["round"], protocol["round_choice"]) == (best, "best")
    assert "round_choice" not in evaluated(tmp_path, data(), method=FedPer())["protocol"]
    loud = [warning["what"] for warning in summary["warnings"] if warning["what"] == "start_is_best"]
    assert bool(loud) == (best == 0)


def test_a_round_that_is_not_kept_is_refused(run) -> None:
    with pytest.raises(ConfigurationError, match=r"round 7 of .* is not kept"):
        evaluated(run[0], data(heterogeneity=2.0), choice="7")


@pytest.mark.parametrize("best", ["finetuned", "merged"])
def test_fine_tuning_is_one_more_candidate_for_the_best_round(tmp_path, monkeypatch, best) -> None:
    monkeypatch.setattr(
        "pfedst.reporting.summary._Evaluated.score",
        property(lambda found: 0.1 * found.round + (0.5 if best == "finetuned" else -0.5) * found.finetuned),
    )
    summary = fit(tmp_path, FedAvg(finetune_epochs=1), rounds=2)
    found = evaluated(tmp_path, data(), choice="best", method=FedAvg(finetune_epochs=1))
    assert found["personal"] == summary["best_on_validation"]["personal"]
    assert summary["best_on_validation"]["finetuned"] is (best == "finetuned")
    assert ("fine-tuning" in found["protocol"]["when"]) is (best == "finetuned")
    assert (found["personal"] == summary["personal"]) is (best == "finetuned")
