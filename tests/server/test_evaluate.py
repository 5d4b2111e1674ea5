"""A run that is evaluated again: on data that name their classes otherwise, or with another encoder."""

from dataclasses import replace

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedper import FedPer
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled

from pfedst import simulation
from pfedst.client.module import FederatedClient
from pfedst.data import SyntheticSites
from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, DataError, StateError
from pfedst.methods.criteria import BalancedSoftmax, CrossEntropy
from pfedst.methods.pfedst import PFedST
from pfedst.reporting.tables import metrics_table, protocol_text
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


def test_a_round_in_place_of_a_damaged_last_one_is_not_called_the_last(tmp_path) -> None:
    fit(tmp_path, FedAvg(), rounds=2)
    (tmp_path / "run" / "state" / "round-000002" / "server.safetensors").unlink()
    found = evaluated(tmp_path, data(), template(), method=FedAvg())
    assert found["protocol"]["round"] == 1
    assert found["protocol"]["round_choice"] == "undamaged"
    assert "since that of the last round is" in found["protocol"]["selection"]
    assert "(the last one is damaged)" in " ".join(protocol_text(found).plain.split())


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


# -- other sites than those of the run -----------------------------------------------------------------------------

FOUR = {"sites": 4, "samples_per_site": [24, 18, 15, 20], "test_samples_per_site": [12, 12, 12, 12]}


class TestAlone(SyntheticSites):
    """The same images without those to train on."""

    __test__ = False

    def read(self):
        found = super().read()
        return replace(found, splits={site: {"test": parts["test"]} for site, parts in found.splits.items()})


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    """A run whose merged model has a known prior."""
    folder = tmp_path_factory.mktemp("balanced")
    return folder, fit(folder, PFedST(), model=template(loss=BalancedSoftmax()))


def sites_at(model, sites, folder, **options):
    return evaluated(folder, sites, template(options.get("method"), loss=model), **options)


def test_a_site_that_was_not_in_the_run_is_evaluated_with_the_generic_model(balanced) -> None:
    folder, summary = balanced
    found = sites_at(BalancedSoftmax(), data(**FOUR), folder)
    assert found["protocol"]["new_sites"] == ["site_d"]
    assert found["personal"]["clients"]["site_d"] == found["generic"]["clients"]["site_d"]
    for model in ("personal", "generic"):
        assert {site: found[model]["clients"][site] for site in ["site_a", "site_b", "site_c"]} == summary[model][
            "clients"
        ]
        assert found[model]["mean"] == summary[model]["mean"]
        assert found[model]["held_out_mean"]["accuracy"] == found[model]["clients"]["site_d"]["accuracy"]
    means = found["at_priors"]["last"]["test"]["personal"]["site"]["mean"]
    assert means == summary["at_priors"]["last"]["test"]["personal"]["site"]["mean"]


def test_new_sites_alone_have_a_mean_of_their_own(balanced) -> None:
    folder, _ = balanced
    whole = sites_at(BalancedSoftmax(), data(**FOUR), folder)
    found = sites_at(BalancedSoftmax(), data(**FOUR, only_sites=["site_d"]), folder)
    assert found["personal"]["clients"] == {"site_d": whole["personal"]["clients"]["site_d"]}
    assert found["personal"]["mean"]["auroc"] == found["personal"]["clients"]["site_d"]["auroc"]
    assert "held_out_mean" not in found["personal"]


def test_test_images_alone_are_enough(balanced) -> None:
    """What needs the class frequencies of the training split is missing with a reason; all else is the same."""
    folder, _ = balanced
    whole = sites_at(BalancedSoftmax(), data(**FOUR), folder)
    found = sites_at(BalancedSoftmax(), made(TestAlone, **FOUR), folder)
    assert found["personal"] == whole["personal"]
    at_priors, with_train = (of["at_priors"]["last"]["test"] for of in (found, whole))
    assert at_priors["generic"]["balanced"] == with_train["generic"]["balanced"]
    reasons = at_priors["generic"]["site"]["clients"].values()
    assert [table["reason"] for table in reasons] == ["the site has no training images"] * 4


def test_the_prior_of_a_site_without_training_images_is_refused(balanced) -> None:
    given = template(loss=BalancedSoftmax(), prior="site")
    with pytest.raises(ConfigurationError, match="--model.prior site: the site has no training images"):
        evaluated(balanced[0], made(TestAlone, **FOUR), given)
    at_balanced = template(loss=BalancedSoftmax(), prior="balanced")
    plain = sites_at(BalancedSoftmax(), made(TestAlone, **FOUR), balanced[0])
    assert (
        evaluated(balanced[0], made(TestAlone, **FOUR), at_balanced)["personal"]["clients"].keys()
        == plain["personal"]["clients"].keys()
    )


def test_the_own_prior_of_a_site_without_training_images_is_not_known(tmp_path) -> None:
    """A head that was trained on images that are not here."""
    fit(tmp_path, FedPer(), rounds=1)
    found = evaluated(tmp_path, made(TestAlone), method=FedPer())["at_priors"]["last"]["test"]["personal"]
    assert {of["reason"] for of in found["balanced"]["clients"].values()} == {"the site has no training images"}


def test_one_site_of_a_run_is_evaluated_without_the_others(balanced) -> None:
    folder, summary = balanced
    given = FederatedCoordinator(), template(loss=BalancedSoftmax()), data(), PFedST(), trainer(), folder / "run"
    found = simulation.evaluate(*given, "test", 0, site="site_b")
    for model in ("personal", "generic"):
        assert found[model]["clients"] == {"site_b": summary[model]["clients"]["site_b"]}
    stated = found["at_priors"]["last"]["test"]["personal"]["site"]["clients"]
    assert stated == {"site_b": summary["at_priors"]["last"]["test"]["personal"]["site"]["clients"]["site_b"]}
    assert "new_sites" not in found["protocol"]
    assert metrics_table(found).row_count == 1  # no mean of one site


def test_held_out_sites_need_not_be_there(tmp_path) -> None:
    fit(tmp_path, PFedST(), rounds=1, held_out_sites=["site_c"])
    for only, held_out in ((["site_a"], []), (["site_c"], ["site_c"])):
        sites = data(only_sites=only)
        rounds = FederatedCoordinator(held_out_sites=["site_c"])
        found = simulation.evaluate(rounds, template(), sites, PFedST(), trainer(), tmp_path / "run", "test", 0)
        assert found["protocol"]["held_out_sites"] == held_out
        assert found["personal"]["mean"]["accuracy"] is not None
    rounds = FederatedCoordinator(held_out_sites=["site_x"])
    with pytest.raises(ConfigurationError, match='there is no site "site_x"'):
        simulation.evaluate(rounds, template(), data(), PFedST(), trainer(), tmp_path / "run", "test", 0)


def test_a_new_site_of_a_method_that_merges_nothing_is_refused(tmp_path) -> None:
    fit(tmp_path, Local(), rounds=1)
    with pytest.raises(ConfigurationError, match="site_d: not in the run, and method Local merges nothing"):
        evaluated(tmp_path, data(**FOUR), method=Local())


@pytest.mark.parametrize(("loss", "known"), [(BalancedSoftmax(), True), (CrossEntropy(), False)])
def test_the_prior_of_a_pooled_model_is_that_of_its_run_and_not_of_other_images(tmp_path, loss, known) -> None:
    fit(tmp_path, Pooled(), rounds=1, model=template(Pooled(), loss=loss))
    whole = sites_at(loss, data(), tmp_path, method=Pooled())
    found = sites_at(loss, data(only_sites=["site_a"]), tmp_path, method=Pooled())
    assert found["personal"]["clients"]["site_a"] == whole["personal"]["clients"]["site_a"]
    at_balanced = found["at_priors"]["last"]["test"]["personal"]["balanced"]["clients"]["site_a"]
    expected = whole["at_priors"]["last"]["test"]["personal"]["balanced"]["clients"]["site_a"]
    assert at_balanced == (expected if known else {"reason": "class counts are not shared"})
