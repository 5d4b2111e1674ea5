"""The priors of the models of a site: what each has learned, and the numbers and files that follow."""

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.prototypes import Prototypes
from safetensors.torch import load_file

from pfedst import simulation
from pfedst.client.predictions import Predictions
from pfedst.client.priors import SitePriors
from pfedst.errors import ConfigurationError
from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.stated import NO_PRIOR, NOT_SHARED, REASON
from pfedst.methods.criteria import BalancedSoftmax, ClassWeighted, CrossEntropy, Focal
from pfedst.methods.priors import TargetPrior, mixture, prior_shift, uniform
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.testing.small import data, fit, prepared, template, trainer

SKEW = {"label_skew": 0.6}
COUNTS = {site: prepared(**SKEW).class_counts(site, "train") for site in ("site_a", "site_b", "site_c")}
PI = {site: CrossEntropy().prior(torch.tensor(counts).double()) for site, counts in COUNTS.items()}
MIXTURE = mixture(list(PI.values()), [1.0] * len(PI))


def run(folder, method, loss=None, prior="training", rounds=1, **coordinator):
    """A run on sites with different class frequencies; its summary."""
    model = template(method, loss=loss, prior=prior)
    return fit(folder, method, sites=data(**SKEW), model=model, rounds=rounds, **coordinator)


def predictions(folder, site="site_a", split="test", number=1):
    return Predictions.load(folder / "run/sites" / site, split, number)


def probabilities(found, shift, model="personal"):
    return (found.logits(model).double() + shift).softmax(1)


def stated(summary, prior, moment="last", model="personal", split="test", site="site_a"):
    return summary["at_priors"][moment][split][model][prior]["clients"][site]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return folder, run(folder, FedAvg(), share_class_counts=True)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("model", ["personal", "generic"])
def test_a_merged_model_is_corrected_by_the_mixture_of_all_sites(shared, split, model) -> None:
    folder, summary = shared
    for site, pi in PI.items():
        found = predictions(folder, site, split)
        labels = found.tensors["label"]
        at_balanced = classification_metrics(probabilities(found, prior_shift(MIXTURE, uniform(3))), labels)
        at_site = classification_metrics(probabilities(found, prior_shift(MIXTURE, pi)), labels)
        balanced = stated(summary, "balanced", model=model, split=split, site=site)
        assert balanced == {"balanced_accuracy": pytest.approx(at_balanced["balanced_accuracy"])}
        of_site = stated(summary, "site", model=model, split=split, site=site)
        for metric in ("accuracy", "macro_f1", "ece"):
            assert of_site[metric] == pytest.approx(at_site[metric], abs=1e-6), metric
        # with plain cross-entropy the merged model is at the prior of the federation as it is
        of_federation = stated(summary, "federation", model=model, split=split, site=site)
        of_run = summary if split == "test" else summary["validation"]
        assert of_federation["accuracy"] == pytest.approx(of_run[model]["clients"][site]["accuracy"])


def test_before_the_first_round_nothing_is_learned_and_the_prior_is_uniform(shared, tmp_path) -> None:
    """Known without any counts."""
    for summary in (shared[1], run(tmp_path, FedAvg())):
        first = summary["at_priors"]["first"]
        assert first["round"] == 0
        assert "accuracy" in first["test"]["personal"]["site"]["clients"]["site_a"]
        assert first["validation"]["generic"]["balanced"]["mean"]["balanced_accuracy"] is not None


def test_without_shared_counts_a_merged_model_has_a_reason(tmp_path) -> None:
    summary = run(tmp_path, FedAvg())
    assert stated(summary, "site") == stated(summary, "balanced") == {REASON: NOT_SHARED}
    assert "federation" not in summary["at_priors"]["last"]["test"]["personal"]
    assert summary["at_priors"]["last"]["test"]["personal"]["site"]["mean"]["accuracy"] is None
    assert "class_counts" not in summary["protocol"]


@pytest.mark.parametrize("loss", [BalancedSoftmax(), ClassWeighted()], ids=str)
def test_a_loss_at_full_strength_needs_no_counts(tmp_path, loss) -> None:
    summary = run(tmp_path, FedAvg(), loss)
    found = predictions(tmp_path)
    expected = classification_metrics(probabilities(found, 0), found.tensors["label"])
    assert stated(summary, "balanced") == {"balanced_accuracy": pytest.approx(expected["balanced_accuracy"])}
    at_site = classification_metrics(
        probabilities(found, prior_shift(uniform(3), PI["site_a"])), found.tensors["label"]
    )
    assert stated(summary, "site")["accuracy"] == pytest.approx(at_site["accuracy"])


@pytest.mark.parametrize("loss", [Focal(), CrossEntropy(label_smoothing=0.1)], ids=str)
def test_a_loss_without_a_prior_is_a_reason_and_refuses_another_prior(tmp_path, loss) -> None:
    for number, method in enumerate((FedAvg(), Local())):
        summary = run(tmp_path / str(number), method, loss, share_class_counts=True)
        assert stated(summary, "site") == stated(summary, "balanced") == {REASON: NO_PRIOR}
    with pytest.raises(ConfigurationError, match="belong to no class prior"):
        run(tmp_path / "other", FedAvg(), loss, "balanced", share_class_counts=True)


def test_a_method_with_a_loss_of_its_own_has_no_prior(tmp_path) -> None:
    summary = fit(tmp_path, FedCLIP(objective="infonce"), sites=data(**SKEW), rounds=1, share_class_counts=True)
    assert stated(summary, "site") == {REASON: NO_PRIOR}
    method = FedCLIP(objective="infonce")
    with pytest.raises(ConfigurationError, match="--model.prior: method FedCLIP .* has a loss of its own"):
        fit(tmp_path / "x", method, sites=data(**SKEW), model=template(method, prior="site"))


def test_a_model_of_one_site_has_the_prior_of_its_site_and_needs_no_counts_of_others(tmp_path) -> None:
    summary = run(tmp_path, Local())
    for site, pi in PI.items():
        found = predictions(tmp_path, site)
        balanced = classification_metrics(probabilities(found, prior_shift(pi, uniform(3))), found.tensors["label"])
        assert stated(summary, "balanced", site=site) == {
            "balanced_accuracy": pytest.approx(balanced["balanced_accuracy"])
        }
        own = classification_metrics(probabilities(found, 0), found.tensors["label"])
        assert stated(summary, "site", site=site)["accuracy"] == pytest.approx(own["accuracy"])
    assert summary["at_priors"]["last"]["test"]["generic"] == {}  # nothing is merged


def test_a_twin_has_the_prior_of_its_site_and_the_generic_model_beside_it_that_of_all(tmp_path) -> None:
    summary = run(tmp_path, Ditto())
    assert "accuracy" in stated(summary, "site")
    assert stated(summary, "site", model="generic") == {REASON: NOT_SHARED}


def test_after_fine_tuning_the_personal_model_has_the_prior_of_its_site(tmp_path) -> None:
    summary = run(tmp_path, FedAvg(finetune_epochs=1))
    assert "accuracy" in stated(summary, "site")
    assert stated(summary, "site", model="generic") == {REASON: NOT_SHARED}


def test_a_pooled_model_has_the_counts_of_all_images_which_are_in_one_place(tmp_path) -> None:
    summary = run(tmp_path, Pooled())
    counts = torch.tensor(list(COUNTS.values())).sum(0).double()
    found = predictions(tmp_path)
    shift = prior_shift(CrossEntropy().prior(counts), PI["site_a"])
    expected = classification_metrics(probabilities(found, shift), found.tensors["label"])
    assert stated(summary, "site")["accuracy"] == pytest.approx(expected["accuracy"])
    assert "accuracy" in stated(summary, "federation")


def test_class_means_have_learned_no_frequencies(tmp_path) -> None:
    summary = run(tmp_path, Prototypes())
    found = predictions(tmp_path, number=0)
    expected = classification_metrics(probabilities(found, 0), found.tensors["label"])
    assert stated(summary, "balanced") == {"balanced_accuracy": pytest.approx(expected["balanced_accuracy"])}


def test_a_site_that_is_held_out_is_predicted_by_an_untrained_or_a_merged_model(tmp_path) -> None:
    options = {"held_out_sites": ["site_c"], "share_class_counts": True}
    local = run(tmp_path / "local", Local(), **options)
    assert stated(local, "site", site="site_c") == stated(local, "site", "first", site="site_c")
    merged = run(tmp_path / "fedavg", FedAvg(), **options)
    found = predictions(tmp_path / "fedavg", "site_c")
    of_others = mixture([PI["site_a"], PI["site_b"]], [sum(COUNTS["site_a"]), sum(COUNTS["site_b"])])
    expected = classification_metrics(
        probabilities(found, prior_shift(of_others, PI["site_c"])), found.tensors["label"]
    )
    assert stated(merged, "site", site="site_c")["accuracy"] == pytest.approx(expected["accuracy"])


# -- the prior of a run ------------------------------------------------------------------------------------------------


def test_at_another_prior_the_training_is_the_same_and_the_numbers_are_those_of_shifted_logits(
    shared, tmp_path
) -> None:
    folder, plain = shared
    summary = run(tmp_path, FedAvg(), prior="site", share_class_counts=True)
    for name in ("validation", "test"):
        one = load_file(folder / f"run/sites/site_a/predictions/{name}.safetensors")
        other = load_file(tmp_path / f"run/sites/site_a/predictions/{name}.safetensors")
        shift = other.pop("prior_shift.personal")
        assert torch.allclose(shift, prior_shift(MIXTURE, PI["site_a"]))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)  # the raw logits
    for site in PI:
        at_site = stated(plain, "site", site=site)
        clients = summary["personal"]["clients"][site]
        assert clients["accuracy"] == pytest.approx(at_site["accuracy"])
        assert clients["ece"] == pytest.approx(at_site["ece"], abs=1e-6)
    assert summary["at_priors"] == plain["at_priors"]
    words = "site: class frequencies of the training split of each site"
    assert summary["evaluated"]["prior"] == summary["protocol"]["prior"] == words
    assert plain["evaluated"]["prior"] == "none: logits as the model gives them"
    assert "prior" not in plain["protocol"]


def test_metrics_of_classes_are_at_the_prior_of_the_run(tmp_path) -> None:
    summary = run(tmp_path, Local(), prior="balanced")
    found = predictions(tmp_path)
    shifted = probabilities(found, prior_shift(PI["site_a"], uniform(3)))
    assert torch.allclose(found.logits("personal", shifted=True).softmax(1), shifted)
    for index, table in enumerate(summary["class_metrics"]["site_a"]["personal"]):
        of_class = found.tensors["label"] == index
        expected = float((shifted.argmax(1)[of_class] == index).double().mean())
        assert table["sensitivity"]["value"] == pytest.approx(expected)


def test_the_trained_models_of_a_round_have_the_prior_of_their_site(tmp_path) -> None:
    """What has just been fitted to one site is at its prior: nothing changes."""
    plain, other = run(tmp_path / "a", FedAvg()), run(tmp_path / "b", FedAvg(), prior="site", share_class_counts=True)
    assert plain["trained"]["personal"]["mean"] == pytest.approx(other["trained"]["personal"]["mean"])


def test_a_file_of_frequencies_is_in_the_protocol_with_its_content(tmp_path) -> None:
    names = prepared(**SKEW).class_names
    (tmp_path / "clinic.csv").write_text("".join(f"{n},{f}\n" for n, f in zip(names, (0.8, 0.1, 0.1), strict=True)))
    summary = run(tmp_path / "run", Local(), prior=str(tmp_path / "clinic.csv"))
    assert summary["protocol"]["prior"] == f"clinic.csv: {names[0]} 0.8, {names[1]} 0.1, {names[2]} 0.1"
    found = predictions(tmp_path / "run")
    target = torch.tensor([0.8, 0.1, 0.1]).double()
    expected = classification_metrics(probabilities(found, prior_shift(PI["site_a"], target)), found.tensors["label"])
    assert summary["personal"]["clients"]["site_a"]["accuracy"] == pytest.approx(expected["accuracy"])
    assert RunFolder(tmp_path / "run/run").identity()["prior"] == summary["protocol"]["prior"]


def test_equal_counts_change_no_number(tmp_path) -> None:
    options = {"samples_per_site": [24, 18, 15], "label_skew": 100.0}
    sites = data(**options)
    sites.prepare(template().encoder.preprocessing)
    sites.class_counts = lambda site, split: [5, 5, 5]
    made = [
        fit(
            tmp_path / prior,
            Local(),
            sites=sites,
            model=template(Local(), prior=prior),
            rounds=1,
        )
        for prior in ("training", "balanced", "site")
    ]
    for other in made[1:]:
        for site, metrics in made[0]["personal"]["clients"].items():
            assert other["personal"]["clients"][site] == pytest.approx(metrics, abs=1e-6)


def test_a_model_without_a_prior_cannot_be_shifted() -> None:
    priors = SitePriors({"personal": NOT_SHARED}, {"site": uniform(3)})
    assert priors.shifts(TargetPrior()) == {}
    with pytest.raises(ConfigurationError, match="the personal model cannot be corrected: class counts are not shared"):
        priors.shifts(TargetPrior("site"))


# -- a run that is evaluated again -------------------------------------------------------------------------------------


def evaluated(folder, method, prior, sites=None, loss=None, **coordinator):
    model = template(method, prior=prior, loss=loss)
    given = FederatedCoordinator(**coordinator), model, sites or data(**SKEW), method, trainer(), folder / "run"
    return simulation.evaluate(*given, "test", run_seed=0)


def test_a_saved_run_is_evaluated_at_another_prior(shared) -> None:
    folder, summary = shared
    found = evaluated(folder, FedAvg(), "site")
    for site in PI:
        expected = stated(summary, "site", site=site)["accuracy"]
        assert found["personal"]["clients"][site]["accuracy"] == pytest.approx(expected)
    assert found["protocol"]["prior"].startswith("site: ")
    assert found["at_priors"]["last"]["test"] == summary["at_priors"]["last"]["test"]


def test_the_saved_mixture_is_of_the_images_that_the_run_was_trained_on(shared) -> None:
    folder, _ = shared
    other = data(label_skew=100.0, seed=5)
    found = evaluated(folder, FedAvg(), "balanced", other, share_class_counts=True)
    raw = evaluated(folder, FedAvg(), "training", other)
    assert (
        found["at_priors"]["last"]["test"]["personal"]["balanced"]
        == (raw["at_priors"]["last"]["test"]["personal"]["balanced"])
    )


def test_a_run_whose_sites_sent_no_counts_takes_those_of_the_same_images(tmp_path) -> None:
    run(tmp_path, FedAvg())
    with pytest.raises(ConfigurationError, match="add --coordinator.share_class_counts true"):
        evaluated(tmp_path, FedAvg(), "site")
    found = evaluated(tmp_path, FedAvg(), "site", share_class_counts=True)
    assert "accuracy" in found["at_priors"]["last"]["test"]["personal"]["site"]["clients"]["site_a"]
    with pytest.raises(ConfigurationError, match="add --coordinator.share_class_counts true"):
        evaluated(tmp_path, FedAvg(), "site", data(label_skew=100.0, seed=5), share_class_counts=True)
