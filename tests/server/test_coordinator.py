"""Whole runs: determinism, participation, what a method may send, fine-tuning, sequential methods."""

import io
import json

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.prototypes import Prototypes
from pfedst_baselines.zero_shot import ZeroShot
from rich.console import Console

from pfedst.data.datasets import SiteDataset
from pfedst.errors import ConfigurationError, PfedstError, TooFewClientsError
from pfedst.messages.payload import NET
from pfedst.messages.requests import POOLED
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.pfedst import PFedST
from pfedst.reporting.report_table import percent
from pfedst.reporting.tables import metrics_table, print_summary
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.testing.small import data, encoder, federation, fit, prepared, template
from tests.rounding import alike

PARTS = ("personal", "generic", "best_on_validation", "trained")


def test_one_seed_gives_the_same_bits_and_another_does_not(tmp_path) -> None:
    runs = [fit(tmp_path / str(i), PFedST(), seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert all(runs[0][part] == runs[1][part] for part in PARTS)
    one, again, other = (fit(tmp_path / f"b{i}", FedAvg(), seed=s, rounds=3) for i, s in enumerate((0, 0, 1)))
    assert one["personal"] == again["personal"]
    lines = [(tmp_path / f"b{i}" / "run" / "rounds.jsonl").read_text() for i in (0, 2)]
    assert lines[0] != lines[1]


def test_the_global_generator_is_neither_used_nor_moved(tmp_path) -> None:
    torch.manual_seed(1)
    one = fit(tmp_path / "one", PFedST())
    torch.manual_seed(2)
    expected = torch.random.get_rng_state()
    other = fit(tmp_path / "other", PFedST())
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert one["personal"] == other["personal"]


def test_weighted_averaging_by_hand() -> None:
    for weighting, shares in (("samples", None), ("uniform", [1 / 3] * 3)):
        made = federation(FedAvg(weighting=weighting))
        sizes = [made.server.weights[name] for name in made.clients]
        shares = shares or [size / sum(sizes) for size in sizes]
        for index, name in enumerate(made.clients):
            with torch.no_grad():
                made.clients[name].adapter.side.up.bias.fill_(float(index))
        made.merge({name: made.collect(name) for name in made.clients})
        expected = sum(share * index for index, share in enumerate(shares))
        assert made.state[NET]["side.up.bias"][0].item() == pytest.approx(expected, rel=1e-6)


def test_generic_is_the_lora_switched_off(tmp_path) -> None:
    """Personal tensors at their start (LoRA B = 0) and open switches are the same model."""
    from pfedst.adapters import switches_open
    from pfedst.testing import train

    made = federation(PFedST(rank=8, alpha=8.0))
    name = next(iter(made.clients))
    made.deliver(name)
    train(made, name)
    made.merge({name: made.collect(name)})
    made.deliver(name)
    client = made.clients[name]
    images, _ = next(iter(prepared().evaluation_loader(name, "test")))
    taps = client.taps_of(images)
    with torch.no_grad():
        closed = client.adapter(taps)
        with switches_open(client.adapter):
            opened = client.adapter(taps)
        assert alike(opened, made.generic.adapter(taps), 1e-4)  # logits up to 100 are computed in two ways
    assert not alike(opened, closed, 1e-3)


def test_participation_draws_by_round_and_counts_bytes(tmp_path) -> None:
    made = federation(FedAvg())
    drawn = [tuple(made.server.draw(r, 0.67)) for r in range(1, 9)]
    assert {len(names) for names in drawn} == {2}
    assert len(set(drawn)) > 1
    assert made.server.draw(1, 0.01) == made.server.draw(1, 0.01)
    summary = fit(tmp_path, FedAvg(), participation=0.67)
    per_client = 4 * summary["cost"]["parameters_sent"]
    assert summary["cost"]["upload_bytes_per_round"] == summary["cost"]["download_bytes_per_round"] == 2 * per_client


def test_reference_rows(tmp_path) -> None:
    zero = fit(tmp_path / "zero", ZeroShot())
    assert zero["cost"]["parameters_trained"] == zero["cost"]["upload_bytes_per_round"] == 0
    assert zero["personal"] == zero["generic"]  # one model, evaluated once
    assert zero["trained"] is None
    local = fit(tmp_path / "local", Local())
    assert local["cost"]["upload_bytes_per_round"] == 0 < local["cost"]["parameters_trained"]
    # nobody trains the server's model: it is no result
    assert local["generic"]["clients"].keys() == local["personal"]["clients"].keys()
    assert {value for metrics in local["generic"]["clients"].values() for value in metrics.values()} == {None}
    assert {*local["generic"]["mean"].values(), *local["validation"]["generic"]["worst"].values()} == {None}
    console = Console(record=True, width=120)
    print_summary(local, console)
    assert f"{percent(local['personal']['mean']['accuracy'])} / -" in console.export_text()
    # evaluated right after the fit, and once more after the merge
    assert alike(local["trained"]["personal"], {k: v for k, v in local["personal"].items() if k != "counts"})


def test_prototypes_are_counted_as_sent(tmp_path) -> None:
    # three clients, three classes, 32 channels in float64 and a count each
    once = 3 * (3 * 32 * 8 + 3 * 8)
    cost = fit(tmp_path / "prototypes", Prototypes())["cost"]
    assert cost["setup_upload_bytes"] == cost["upload_bytes"] == once
    assert cost["upload_bytes_per_round"] == cost["download_bytes"] == 0
    summary = fit(tmp_path / "trained", FedAvg())
    cost, console = summary["cost"], Console(record=True, width=120)
    assert cost["upload_bytes"] == once + 2 * cost["upload_bytes_per_round"] == once + cost["download_bytes"]
    print_summary(summary, console)
    assert "up 2.32 KiB once before" in " ".join(console.export_text().split())


def test_zero_shot_sends_nothing_and_is_of_text_alone(tmp_path) -> None:
    cost = fit(tmp_path / "text", ZeroShot())["cost"]
    assert cost["upload_bytes"] == cost["download_bytes"] == cost["setup_upload_bytes"] == 0
    for method, anchors in ((ZeroShot, "prototypes"), (ZeroShot, "learned"), (Prototypes, "text")):
        words = f"{method.__name__} runs on the class anchors {method.requires_anchors}, not on {anchors}: set"
        with pytest.raises(ConfigurationError, match=words):
            fit(tmp_path / f"{method.__name__} {anchors}", method(), model=template(anchors=anchors))


@pytest.mark.parametrize("anchors", ["text", "learned"])
def test_other_anchors(tmp_path, anchors) -> None:
    summary = fit(tmp_path, FedAvg(), model=template(anchors=anchors))
    assert summary["protocol"]["anchors"] == anchors
    assert summary["cost"]["setup_upload_bytes"] == 0
    made = federation(FedAvg(), anchors=anchors)
    assert ("head.weight" in made.state[NET]) == (anchors == "learned")


def test_optimizer_state_kept_or_reset(tmp_path) -> None:
    runs = [fit(tmp_path / s, FedAvg(), optimizer_state=s, rounds=3) for s in ("reset", "keep")]
    losses = [(tmp_path / s / "run" / "rounds.jsonl").read_text() for s in ("reset", "keep")]
    assert runs[0]["cost"]["parameters_sent"] == runs[1]["cost"]["parameters_sent"]
    assert losses[0].splitlines()[3].split("fit_seconds")[0] == losses[1].splitlines()[3].split("fit_seconds")[0]
    assert losses[0].splitlines()[-1].split("fit_seconds")[0] != losses[1].splitlines()[-1].split("fit_seconds")[0]


def test_training_learns(tmp_path) -> None:
    fit(tmp_path, PFedST(), rounds=8, evaluate_every=8)
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    losses = {r: sum(x["train_loss"] for x in records if x["round"] == r) for r in (1, 8)}
    assert losses[8] < losses[1]
    assert not any("received" in x for x in records if 0 < x["round"] < 8)


class Finetuned(FedAvg):
    def __init__(self) -> None:
        super().__init__(finetune_epochs=2)


def test_fine_tuning_after_the_last_round(tmp_path) -> None:
    summary = fit(tmp_path, Finetuned(), rounds=1)
    assert "2 local fine-tuning epochs" in summary["protocol"]["when"]
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 3  # round 0, round 1, fine-tuning
    assert summary["generic"] == fit(tmp_path / "plain", FedAvg(), rounds=1)["generic"]


class Ring(FedAvg):
    sequential = True
    merged: tuple[tuple[str, ...], ...] = ()

    def merge(self, server, uploads, weights) -> None:
        Ring.merged += (tuple(uploads),)
        super().merge(server, uploads, weights)


def test_a_sequential_method_merges_after_each_client(tmp_path) -> None:
    Ring.merged = ()
    fit(tmp_path, Ring(), rounds=1)
    assert Ring.merged == (("site_a",), ("site_b",), ("site_c",))


class SendsPersonal(PFedST):
    def upload(self, client):
        return {NET: {**client.shared_state(), "side.up.lora_A": client.adapter.side.up.lora_A.detach()}}


class SendsUndeclared(FedAvg):
    def upload(self, client):
        return {**super().upload(client), "patients": {"ids": torch.ones(1)}}


class SendsNaN(FedAvg):
    def upload(self, client):
        return {NET: {key: value * float("nan") for key, value in client.shared_state().items()}}


class SendsTooLittle(FedAvg):
    def broadcast(self, server, name):
        return {NET: {}}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (SendsPersonal, ["client site_a", "unexpected: side.up.lora_A"]),
        (SendsUndeclared, ["client site_a", "patients", "extra_messages"]),
        (SendsNaN, ["client site_a", "NaN"]),
        (SendsTooLittle, ["client site_a", "missing"]),
    ],
)
def test_what_is_not_declared_cannot_leave_or_reach_a_client(tmp_path, caplog, method, words) -> None:
    with pytest.raises(PfedstError) as caught:
        fit(tmp_path, method())
    told = caplog.text + str(caught.value)
    assert [word for word in words if word not in told] == []


class Pulled(FederatedMethod):
    """A proximal pull so strong that nothing moves."""

    def edit_gradients(self, client) -> None:
        for key, parameter in client.shared_parameters().items():
            assert torch.isfinite(client.received[NET][key]).all()
            parameter.grad.zero_()


def test_edited_gradients_are_what_the_optimiser_sees() -> None:
    from functools import partial

    from pfedst.testing import train

    made = federation(Pulled(), optimizer=partial(torch.optim.SGD, lr=1.0))
    name = next(iter(made.clients))
    made.deliver(name)
    before = made.clients[name].shared_state()
    train(made, name)
    assert all(torch.equal(value, before[key]) for key, value in made.clients[name].shared_state().items())


def test_alternate_trains_one_part_at_a_time() -> None:
    from pfedst.testing import train

    made = federation(PFedST(schedule="alternate", shared_epochs=1, lora_learning_rate_scale=3.0))
    name = next(iter(made.clients))
    made.deliver(name)
    client = made.clients[name]
    before = client.own_state()
    train(made, name, epochs=1)
    after_shared = client.own_state()
    moved = {key for key, value in after_shared.items() if not torch.equal(value, before[key])}
    assert moved
    assert not any("lora" in key for key in moved)
    scales = {group["lr"] for group in made.modules[name].configure_optimizers().param_groups}
    assert scales == {3e-4, 3 * 3e-4}


def test_norms_and_biases_get_no_weight_decay() -> None:
    made = federation(FedAvg())
    client = made.clients["site_a"]
    decays = {
        id(p): group["weight_decay"] > 0
        for group in made.modules["site_a"].configure_optimizers().param_groups
        for p in group["params"]
    }
    for key, parameter in client.named_parameters():
        assert decays[id(parameter)] == (key.endswith("weight") and ".norm" not in key)


def test_a_loss_that_is_not_finite_is_told(tmp_path, caplog) -> None:
    class Diverging(FedAvg):
        def loss(self, client, batch):
            return super().loss(client, batch) * float("inf")

    with pytest.raises(TooFewClientsError, match="NotFiniteError"):
        fit(tmp_path, Diverging())
    assert "client site_a, round 1" in caplog.text
    assert "learning rate" in caplog.text


@pytest.mark.parametrize("options", [{"rounds": 0}, {"evaluate_every": 0}, {"keep_states": 0}, {"participation": 1.5}])
def test_options_out_of_range(options) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        FederatedCoordinator(**options)


def test_wrong_lora_options() -> None:
    with pytest.raises(ConfigurationError, match="shared_epochs"):
        PFedST(shared_epochs=0)
    with pytest.raises(ConfigurationError, match="lora_learning_rate_scale"):
        PFedST(lora_learning_rate_scale=0.0)


def test_one_encoder_for_all_clients() -> None:
    made = federation(FedAvg())
    assert all(client.encoder is encoder() is client.adapter.encoder for client in made.clients.values())
    assert data().label.startswith("SYNTHETIC")


@pytest.mark.parametrize("method", [FedAvg, Pooled])
def test_the_training_images_of_a_held_out_site_are_never_trained_on(tmp_path, method, monkeypatch) -> None:
    sites = prepared(cache="none")  # so that images are loaded in each fit
    loaded = []
    load = SiteDataset.__getitem__

    def remembered(self, draws):
        loaded.extend(self.source.digest(position) for position in draws.positions if draws.seed is not None)
        return load(self, draws)

    monkeypatch.setattr(SiteDataset, "__getitem__", remembered)
    summary = fit(tmp_path, method(), sites=sites, held_out_sites=["site_b "], rounds=1)
    images = {
        site: {part.source.digest(index) for index in range(len(part))}
        for (site, split), part in sites._datasets.items()
        if split == "train"
    }
    assert images["site_a"] | images["site_c"] == set(loaded)
    assert not images["site_b"] & set(loaded)
    assert summary["protocol"]["held_out_sites"] == ["site_b"]
    assert set(summary["personal"]["clients"]) == {"site_a", "site_b", "site_c"}


def relabelled(site):
    """The same images, of which the training images of one site have other labels."""
    sites = prepared(cache="none")
    part = sites._datasets[site, "train"]
    part.labels = [(label + 1) % len(sites.class_names) for label in part.labels]
    return sites


@pytest.mark.parametrize("method", [FedAvg, PFedST, Pooled])
def test_labels_of_a_held_out_site_change_nothing_at_the_others(tmp_path, method) -> None:
    """Its training images make no class prototypes either."""
    options = {"held_out_sites": ["site_b"], "rounds": 1}
    whole = fit(tmp_path / "whole", method(), sites=prepared(cache="none"), **options)
    held_out = fit(tmp_path / "held_out", method(), sites=relabelled("site_b"), **options)
    other = fit(tmp_path / "other", method(), sites=relabelled("site_a"), **options)
    for model in ("personal", "generic"):
        assert held_out[model]["clients"] == whole[model]["clients"]
    assert held_out["cost"]["setup_upload_bytes"] == whole["cost"]["setup_upload_bytes"]
    assert other["personal"]["clients"] != whole["personal"]["clients"]
    clients = whole["personal"]["clients"]
    accuracies = {site: clients[site]["accuracy"] for site in clients}
    assert whole["personal"]["mean"]["accuracy"] == (accuracies["site_a"] + accuracies["site_c"]) / 2
    assert whole["personal"]["held_out_mean"]["accuracy"] == accuracies["site_b"]
    Console(file=(printed := io.StringIO()), width=150).print(metrics_table(whole))
    assert "site_b (held out)" in printed.getvalue()
    assert "mean of held out" in printed.getvalue()


def test_a_held_out_site_is_not_fine_tuned_either(tmp_path) -> None:
    fit(tmp_path, Finetuned(), held_out_sites=["site_b"], rounds=1)
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert {record["client"] for record in records if "fit_seconds" in record} == {"site_a", "site_c"}


def test_no_site_may_bear_the_name_of_the_pooled_trainee() -> None:
    sites = prepared()
    for name in ("_datasets", "_identities"):
        table = getattr(sites, name)
        setattr(sites, name, {(place[0].replace("site_a", POOLED), place[1]): part for place, part in table.items()})
    sites.sites = (POOLED, *sites.sites[1:])
    with pytest.raises(ConfigurationError, match='no site may be called "pooled"'):
        federation(Pooled(), sites=sites)
