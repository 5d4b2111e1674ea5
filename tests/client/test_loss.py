"""The loss that a user chooses: the same for every method, at the class counts of each client."""

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.pooled import Pooled

from pfedst.errors import ConfigurationError
from pfedst.methods.criteria import BalancedSoftmax, CrossEntropy
from pfedst.testing import fit, prepared, template
from pfedst.testing.small import federation, train


def test_a_client_has_the_counts_of_its_own_training_images_and_a_pooled_one_of_all() -> None:
    sites = prepared(label_skew=0.5)
    made = federation(Pooled(), sites=sites)
    of_site = {site: sites.class_counts(site, "train") for site in sites.sites}
    for site, counts in of_site.items():
        assert made.client.class_counts(site).tolist() == counts
    assert made.client.class_counts("pooled").tolist() == [
        sum(counts) for counts in zip(*of_site.values(), strict=True)
    ]


def test_a_request_puts_the_counts_of_its_site_into_the_model(monkeypatch, tmp_path) -> None:
    """One model serves all sites in turn."""
    seen = []

    class Watched(CrossEntropy):
        def __call__(self, logits, targets, counts):
            seen.append(tuple(counts.tolist()))
            return super().__call__(logits, targets, counts)

    sites = prepared(label_skew=0.5)
    fit(tmp_path, FedAvg(), sites=sites, model=template(loss=Watched()), rounds=1)
    assert set(seen) == {tuple(sites.class_counts(site, "train")) for site in sites.sites}


def test_the_loss_decides_what_is_learned_and_is_in_the_protocol(tmp_path) -> None:
    plain = fit(tmp_path / "plain", FedAvg(), rounds=1, sites=prepared(label_skew=0.5))
    other = fit(
        tmp_path / "other",
        FedAvg(),
        rounds=1,
        sites=prepared(label_skew=0.5),
        model=template(loss=BalancedSoftmax(0.7)),
    )
    assert plain["protocol"]["loss"] == "CrossEntropy()"
    assert other["protocol"]["loss"] == "BalancedSoftmax(tau=0.7)"
    assert plain["personal"] != other["personal"]


def test_a_balanced_loss_lifts_the_classes_that_a_site_hardly_has() -> None:
    """By its gradient: the logit of a rare class is pushed up more often than plain cross-entropy would."""
    sites = prepared(label_skew=0.9)
    biases = {}
    for name, loss in (("plain", CrossEntropy()), ("balanced", BalancedSoftmax())):
        made = federation(FedAvg(), sites=sites, loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        made.deliver("site_a")
        train(made, "site_a", epochs=3)
        client = made.members["site_a"].eval()
        inputs, _ = next(iter(sites.evaluation_loader("site_a", "train")))
        with torch.no_grad():
            biases[name] = client.adapter(client.taps_of(inputs)).softmax(-1).mean(0)
    rarest = int(torch.tensor(sites.class_counts("site_a", "train")).argmin())
    assert biases["balanced"][rarest] > biases["plain"][rarest]


def test_a_loss_that_a_method_would_ignore_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--model.loss BalancedSoftmax\(tau=0.7\): method FedCLIP"):
        template(loss=BalancedSoftmax(tau=0.7)).build("abc", FedCLIP(objective="infonce"), 0)
    template(loss=BalancedSoftmax(tau=0.7)).build("abc", FedCLIP(), 0)
    for of_a_configuration in (BalancedSoftmax(), CrossEntropy()):  # the default of today, and of older versions
        template(loss=of_a_configuration).build("abc", FedCLIP(objective="infonce"), 0)
