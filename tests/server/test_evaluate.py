"""A run that is evaluated again: on data that name their classes otherwise, or with another encoder."""

from dataclasses import replace

import pytest
import torch

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


def evaluated(folder, sites, model=None, split="test"):
    given = FederatedCoordinator(), model or template(), sites, PFedST(), trainer(), folder / "run"
    return simulation.evaluate(*given, split, run_seed=0)


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
