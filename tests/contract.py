"""The contract of a method: what the framework promises for every registered one, whoever wrote it."""

from __future__ import annotations

import copy

import torch

from pfedst.federation import Federation
from pfedst.method import FederatedMethod
from pfedst.payload import NET, State
from pfedst.trainer import LocalTrainer
from tests.small import data, federation, fit, trainer


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def personal(client) -> State:
    return {key: value for key, value in client.own_state().items() if client.kind(key) == "personal"}


def train(made: Federation, name: str, epochs: int | None = None) -> None:
    if made.trains:
        LocalTrainer(trainer()).fit(made.clients[name], data_of(made).train_loader(name, 1), epochs)


def data_of(made: Federation):
    sites = data()
    sites.prepare(made.encoder.preprocessing)
    return sites


def epochs_needed(method: FederatedMethod) -> int:
    return 2 if getattr(method, "schedule", "") == "alternate" else 1


def encoder_is_untouched(method: FederatedMethod, folder) -> None:
    """The encoder's hash is the same before and after a run, and none of its tensors is in state or messages."""
    made = federation(method)
    before = made.encoder.compute_hash()
    fit(folder, method, trainer_options={"max_epochs": epochs_needed(method)})
    assert made.encoder.compute_hash() == before
    sizes = {tuple(p.shape) for p in made.encoder.tower.parameters() if p.numel() > 2000}
    own = {tuple(t.shape) for client in made.clients.values() for t in client.own_state().values()}
    assert not sizes & own


def declared_is_sent(method: FederatedMethod) -> None:
    """The keys of the model's message are exactly those declared shared, up and down."""
    made = federation(method)
    for name, client in made.clients.items():
        made.deliver(name)
        train(made, name)
        upload = made.collect(name)
        assert set(upload[NET]) == set(client.partition.keys("shared"))
        assert set(client.received[NET]) == set(client.partition.keys("shared"))
        assert set(upload) <= {NET, *method.extra_messages}


def personal_tensors_are_untouched_by_others(method: FederatedMethod) -> None:
    """What another client trains and what the server merges leaves a client's personal tensors bit for bit."""
    made = federation(method)
    first, second = list(made.clients)[:2]
    for name in (first, second):
        made.deliver(name)
    before = personal(made.clients[first])
    train(made, second)
    made.merge({second: made.collect(second)})
    made.deliver(first)
    assert equal(personal(made.clients[first]), before)


def messages_alias_nothing(method: FederatedMethod) -> None:
    """Training a client changes neither what it received nor the server, until the merge."""
    made = federation(method)
    name = next(iter(made.clients))
    made.deliver(name)
    server = copy.deepcopy(made.server)
    received = copy.deepcopy(made.clients[name].received)
    train(made, name)
    upload = made.collect(name)
    sent = copy.deepcopy(upload)
    train(made, name)
    assert all(equal(made.server[part], server[part]) for part in server)
    assert equal(made.clients[name].received[NET], received[NET])
    assert equal(upload[NET], sent[NET])


def frozen_tensors_do_not_change(method: FederatedMethod) -> None:
    """Adapter tensors declared frozen stay as they were."""
    made = federation(method)
    name, client = next(iter(made.clients.items()))
    frozen = client.partition.keys("frozen")
    before = {key: client.adapter.state_dict()[key].clone() for key in frozen}
    made.deliver(name)
    train(made, name)
    assert equal({key: client.adapter.state_dict()[key] for key in frozen}, before)


def order_of_clients_changes_nothing(method: FederatedMethod, folder) -> None:
    """Sites named in another order give the same bits."""
    options = {"max_epochs": epochs_needed(method)}
    one = fit(folder / "one", method, trainer_options=options)
    sites = data()
    sites.prepare(federation(method).encoder.preprocessing)
    sites.sites = tuple(reversed(sites.sites))
    other = fit(folder / "other", method, sites=sites, trainer_options=options)
    for model in ("personal", "generic"):
        assert one[model] == other[model]


def one_client_is_local_training(method: FederatedMethod) -> None:
    """With one client, averaging is the identity: what the server has is what the client trained."""
    made = federation(method)
    name = next(iter(made.clients))
    made.deliver(name)
    train(made, name)
    trained = made.clients[name].shared_state()
    made.merge({name: made.collect(name)})
    assert equal(made.server[NET], trained)


def state_round_trips(method: FederatedMethod) -> None:
    """Saved and loaded, a federation holds the same tensors."""
    made = federation(method)
    for name in made.clients:
        made.deliver(name)
        train(made, name)
    made.merge({name: made.collect(name) for name in made.clients})
    for name in made.clients:
        made.deliver(name)
    other = federation(method, seed=1)
    other.load_state_parts(copy.deepcopy(made.state_parts()))
    for name, client in made.clients.items():
        assert equal(other.clients[name].own_state(), client.own_state())
    assert equal(other.generic.shared_state(), made.generic.shared_state())


def a_client_that_never_takes_part_still_evaluates(method: FederatedMethod, folder) -> None:
    """Partial participation: every client has metrics, and only the drawn ones have sent anything."""
    options = {"max_epochs": epochs_needed(method)}
    summary = fit(folder, method, trainer_options=options, participation=0.34)
    assert len(summary["personal"]["clients"]) == 3
    assert all(m["accuracy"] is not None for m in summary["personal"]["clients"].values())


WITH_FOLDER = (
    encoder_is_untouched,
    order_of_clients_changes_nothing,
    a_client_that_never_takes_part_still_evaluates,
)
ALONE = (
    declared_is_sent,
    personal_tensors_are_untouched_by_others,
    messages_alias_nothing,
    frozen_tensors_do_not_change,
    one_client_is_local_training,
    state_round_trips,
)
