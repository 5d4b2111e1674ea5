"""The contract of a method: what the framework promises for every registered one, whoever wrote it.

Each check raises an AssertionError that says what is broken. In the tests of a wheel with a method of its own:

    import pytest
    from pfedst.testing import CHECKS, check_method
    from fedmine import FedMine

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check):
        check_method(FedMine, check)
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, AdamW

from pfedst.client.exchange import receive_message
from pfedst.client.joining import start_at_generic, train_personal, what_joins
from pfedst.client.model import ClientModel
from pfedst.client.state import CLIENT, client_part, load_client_part
from pfedst.data import FederatedDataModule
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import NET, State, same_tensors
from pfedst.methods.criteria import CrossEntropy
from pfedst.methods.interface import Batch, FederatedMethod
from pfedst.seeds import seeded
from pfedst.state.snapshot import name_snapshot, read_snapshot, write_snapshot
from pfedst.testing.federation import Federation
from pfedst.testing.small import data, federation, fit, local, prepared, template, train


@dataclass(frozen=True)
class Subject:
    """A method under test, and what it runs on."""

    make: Callable[[], FederatedMethod]
    model: Mapping[str, Any]

    def federation(self, seed: int = 0, sites: FederatedDataModule | None = None, **model: Any) -> Federation:
        """Fresh server and clients; `model` gives way to the subject's own options."""
        return federation(self.make(), seed, sites, **{**model, **self.model})

    def after_a_round(self) -> Federation:
        """The same after a round of all, for checks that only look: one for all checks of a method."""
        return _after_a_round(self.make, tuple(self.model.items()))

    def run(self, **options: Any) -> dict[str, Any]:
        """A whole run of one round; its summary."""
        with tempfile.TemporaryDirectory() as folder:
            method = self.make()
            return fit(Path(folder), method, model=template(method, **self.model), rounds=1, **options)


@functools.lru_cache(maxsize=1)
def _after_a_round(make: Callable[[], FederatedMethod], model: tuple[tuple[str, Any], ...]) -> Federation:
    made = Subject(make, dict(model)).federation()
    _round(made, list(made.trainees))
    return made


def check_method(make: Callable[[], FederatedMethod], check: str, **model: Any) -> None:
    """Run one of `CHECKS`.

    Args:
        make: makes the method, a class with defaults for instance.
        check: name of the check.
        model: options of the client, where the method needs or is to be tried on others: `adapter`, `optimizer`,
            `anchors`.

    Raises:
        AssertionError: the method breaks the contract.
    """
    CONTRACT[check](Subject(make, model))


def declared_is_sent(subject: Subject) -> None:
    """The keys of the model's message are exactly those declared shared, up and down; other messages are declared."""
    made = subject.federation()
    for name, client in made.trainees.items():
        made.deliver(name)
        train(made, name)
        upload = made.collect(name)
        shared = set(client.partition.keys("shared"))
        assert set(upload[NET]) == set(client.received[NET]) == shared, "net is not what is declared shared"
        assert set(upload) <= {NET, *made.method.extra_messages}, "a message is sent that is not declared"


def personal_tensors_are_untouched_by_others(subject: Subject) -> None:
    """What another client trains and what the server merges leaves a client's personal tensors bit for bit."""
    made = subject.federation()
    first, second = list(made.clients)[:2]
    for name in (first, second):
        made.deliver(name)
    before, memo = _personal(made.clients[first]), copy.deepcopy(made.clients[first].memo)
    trained = second if second in made.trainees else next(iter(made.trainees))
    train(made, trained)
    made.merge({trained: made.collect(trained)})
    made.deliver(first)
    assert same_tensors(_personal(made.clients[first]), before), "another client's fit changed personal tensors"
    assert _same(made.clients[first].memo, memo), "another client's fit changed a memo"


def frozen_tensors_do_not_change(subject: Subject) -> None:
    """Adapter tensors declared frozen stay as they were, and are alike on all clients."""
    made = subject.federation()
    name, client = next(iter(made.trainees.items()))
    before = client.frozen_state()
    made.deliver(name)
    train(made, name)
    assert same_tensors(client.frozen_state(), before), "frozen tensors changed"
    assert same_tensors(made.generic.frozen_state(), before), "frozen tensors differ"


def encoder_is_untouched(subject: Subject) -> None:
    """The encoder's hash is the same before and after a round, and none of its tensors is in state or messages."""
    made = subject.federation()
    encoder = made.generic.encoder
    before = encoder.compute_hash()
    _round(made, list(made.trainees))
    assert encoder.compute_hash() == before, "the frozen encoder changed"
    encoders = {p.data_ptr() for p in encoder.tower.parameters()} if hasattr(encoder, "tower") else set()
    for client in made.members.values():
        assert not encoders & {t.data_ptr() for t in client.state_dict().values()}, "the encoder is in a client's state"


def messages_alias_nothing(subject: Subject) -> None:
    """Training a client changes neither what it received nor the server, until the merge."""
    made = subject.federation()
    name = next(iter(made.trainees))
    made.deliver(name)
    server, received = copy.deepcopy(made.state), copy.deepcopy(made.trainees[name].received)
    train(made, name)
    upload = made.collect(name)
    sent = copy.deepcopy(upload)
    train(made, name)
    assert _same(made.state, server), "the server changed before the merge"
    assert _same(made.trainees[name].received, received), "what was received changed"
    assert _same(upload, sent), "a message changed after it was sent"


def method_holds_no_state(subject: Subject) -> None:
    """A method object holds hyperparameters alone: a round leaves it as it was."""
    made = subject.federation()
    method = made.method
    before = copy.deepcopy(vars(method))
    _round(made, list(made.trainees))
    assert repr(vars(method)) == repr(before), f"the method keeps state: {vars(method)} was {before}"


def order_of_clients_changes_nothing(subject: Subject) -> None:
    """Sites named in another order give the same numbers, bit for bit."""
    sites = prepared()
    sites.sites = tuple(reversed(sites.sites))
    one, other = subject.run(), subject.run(sites=sites)
    for model in ("personal", "generic"):
        assert one[model] == other[model], "the order of the sites changes the result"


def one_client_is_local_training(subject: Subject) -> None:
    """With one client, merging is the identity: what the server has is what the client trained."""
    sites = _one_site()
    made = subject.federation(sites=sites)
    name = next(iter(made.trainees))
    made.deliver(name)
    train(made, name, sites)
    trained = made.trainees[name].shared_state()
    made.merge({name: made.collect(name)})
    assert same_tensors(made.state[NET], trained), "merging one client is not the identity"


def identical_clients_are_one(subject: Subject) -> None:
    """Three clients that send the same leave the server where one of them alone would."""
    sites = _one_site()
    one, three = subject.federation(sites=sites), subject.federation()
    if len(three.trainees) == 1:
        return
    name = next(iter(one.trainees))
    one.deliver(name)
    train(one, name, sites)
    upload = one.collect(name)
    three.server.state = copy.deepcopy(one.state) | {k: v for k, v in three.state.items() if k == "clients"}
    one.merge({name: upload})
    three.merge({client: copy.deepcopy(upload) for client in three.trainees})
    for key, value in one.state[NET].items():
        assert torch.allclose(value, three.state[NET][key], atol=1e-6), f"{key}: three alike are not one"


def state_round_trips(subject: Subject) -> None:
    """Saved and loaded, server and clients hold the same tensors."""
    made = subject.after_a_round()
    for name in made.members:
        made.deliver(name)
    other = subject.federation(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        other.server.load_state_parts(_saved(Path(folder) / "server", made.server.state_parts()))
        assert _same(other.state, made.state), "the server's state does not come back"
        for name, model in made.members.items():
            part = _saved(Path(folder) / name, {CLIENT: client_part(model)})[CLIENT]
            load_client_part(other.members[name], part)
            loaded = other.members[name].own_state()
            assert same_tensors(loaded, model.own_state()), "a client's state does not come back"
            assert _same(other.members[name].memo, model.memo), "a memo does not come back"


def receive_changes_nothing_that_is_kept(subject: Subject) -> None:
    """Receiving a message changes the shared tensors and nothing else that the client keeps."""
    made = subject.federation()
    name = next(iter(made.trainees))
    for trained in (False, True):
        if trained:
            made.deliver(name)
            train(made, name)
            made.merge({name: made.collect(name)})
        client = made.trainees[name]
        personal, memo = _personal(client), copy.deepcopy(client.memo)
        made.deliver(name)
        assert same_tensors(_personal(client), personal), "receive changes personal tensors"
        assert _same(client.memo, memo), "receive changes the memo"


def personal_model_changes_nothing(subject: Subject) -> None:
    """Making the personal model and predicting with it change nothing of the client, and repeat bit for bit."""
    made = subject.federation()
    name = next(iter(made.trainees))
    made.deliver(name)
    train(made, name)
    client = made.trainees[name].eval()
    own, memo = client.own_state(), copy.deepcopy(client.memo)
    taps = _batch(client, made.sites_of(name)).taps
    with torch.no_grad():
        one = made.method.personal_model(client).eval()(taps)
        again = made.method.personal_model(client).eval()(taps)
    assert torch.equal(one, again), "the personal model of one state gives two predictions"
    assert same_tensors(client.own_state(), own), "personal_model changes tensors"
    assert _same(client.memo, memo), "personal_model changes the memo"


def server_knows_no_personal_tensor(subject: Subject) -> None:
    """The server's start and state, and messages of any name, hold no tensor that is personal."""
    made = subject.after_a_round()
    for name, client in made.trainees.items():
        personal = set(client.partition.keys("personal"))
        known = {*made.server.start.state, *(key for state in made.state.values() for key in state)}
        assert not personal & known, "the server holds a personal key"
        sent = {key for state in made.collect(name).values() for key in state}
        assert not personal & sent, "a message holds a personal key"
        own = {tensor.data_ptr() for tensor in client.own_tensors().values() if tensor.numel()}
        held = {tensor.data_ptr() for state in made.state.values() for tensor in state.values() if tensor.numel()}
        assert not own & held, "the server holds a tensor of a client"


def a_client_that_never_takes_part_still_evaluates(subject: Subject) -> None:
    """Partial participation: every client has metrics, a held-out one included, and it has sent nothing."""
    summary = subject.run(participation=0.34, held_out_sites=["site_b"])
    clients = summary["personal"]["clients"]
    assert len(clients) == 3, "a site is not evaluated"
    assert all(metrics["accuracy"] is not None for metrics in clients.values()), "a site has no accuracy"


def models_are_as_declared(subject: Subject) -> None:
    """Clients predict with models of their own if, and only if, the method says so; a generic model is a merged one."""
    made = subject.after_a_round()
    method, name, start = made.method, type(made.method).__name__, made.server.start.state
    for client in made.clients:
        made.deliver(client)
    models = {site: method.personal_model(client).eval() for site, client in made.clients.items()}
    if method.personalises:
        taps = _batch(made.generic, list(made.clients)[:1]).taps
        with torch.no_grad():
            first, *others = (model(taps) for model in models.values())
        assert any((first - other).abs().max() > 1e-5 for other in others), (
            f"{name} declares personalises = True, and all clients predict alike: declare False, so that their one "
            f"model is evaluated once"
        )
    elif method.norm_statistics == "merged" and not method.finetune_epochs:
        generic = made.generic.adapter.state_dict()
        wrong = [site for site, model in models.items() if not same_tensors(model.state_dict(), generic)]
        assert not wrong, f"{name} declares personalises = False, and {wrong} predict with models of their own"
    merges = not made.trains or not same_tensors(made.state[NET], start)
    assert merges == method.has_generic, (
        f"{name} declares has_generic = {method.has_generic}, and the server's model is "
        f"{'that of the start: nobody has trained it' if method.has_generic else 'a merged one'}"
    )


def buffers_keep_their_dtype(subject: Subject) -> None:
    """After a merge every tensor has the dtype and shape that it had; counters stay integers."""
    made = subject.after_a_round()
    before = {key: (value.dtype, value.shape) for key, value in made.server.start.state.items()}
    assert {key: (value.dtype, value.shape) for key, value in made.state[NET].items()} == before


def loss_and_gradients_are_finite(subject: Subject) -> None:
    """One training batch: a finite scalar, and finite gradients for some parameter."""
    made = subject.federation()
    if not made.trains:
        return
    name, client = next(iter(made.trainees.items()))
    made.deliver(name)
    loss = made.method.loss(client.train(), _batch(client, made.sites_of(name)))
    torch.autograd.backward(loss)
    assert loss.ndim == 0, "the loss is no scalar"
    assert torch.isfinite(loss), "the loss is not finite"
    gradients = [p.grad for p in client.parameters() if p.grad is not None]
    assert gradients, "no parameter has a gradient"
    assert all(torch.isfinite(g).all() for g in gradients), "a gradient is not finite"


def classification_uses_the_criterion(subject: Subject) -> None:
    """Every classification term of the loss is `client.criterion`, or the method declares that none is."""
    made = subject.federation()
    if not made.trains:
        return
    name, client = next(iter(made.trainees.items()))
    made.deliver(name)
    batch, criterion, called = _batch(client, made.sites_of(name)), _SquaredError(), list[bool]()
    client.train().loss = criterion
    torch_cross_entropy = F.cross_entropy

    def own(logits: Tensor, target: Tensor, *options: Any, **named: Any) -> Tensor:
        called.append(torch.equal(target, batch.targets))
        return torch_cross_entropy(logits, target, *options, **named)

    with patch("torch.nn.functional.cross_entropy", own), seeded(0):
        made.method.loss(client, batch)
    method = type(made.method).__name__
    if made.method.uses_criterion:
        assert criterion.calls, f"{method}: the loss ignores client.criterion; call it, or let uses_criterion be False"
        assert not any(called), f"{method}: a term of the loss is a cross-entropy of its own; call client.criterion"
    else:
        assert not criterion.calls, f"{method} declares uses_criterion = False, and its loss calls client.criterion"


class _SquaredError(CrossEntropy):
    """A loss that no method computes by itself."""

    calls = 0

    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        self.calls += 1
        assert len(counts) == logits.shape[1]
        assert counts.sum() >= len(targets), "the class counts are not those of this client's training images"
        return (logits.softmax(-1) - F.one_hot(targets, logits.shape[1])).square().mean()


def it_learns(subject: Subject) -> None:
    """The cross-entropy of the predictions, over the training images of all sites, falls in a few rounds."""
    made = subject.federation(optimizer=functools.partial(AdamW, lr=3e-3))
    if not made.trains:
        return
    batches = {name: _batch(client, [name], "all") for name, client in made.clients.items()}

    def cross_entropy() -> float:
        total = 0.0
        for name, client in made.clients.items():
            made.deliver(name)
            with torch.no_grad():
                logits = made.method.personal_model(client).eval()(batches[name].taps)
            total += float(F.cross_entropy(logits, batches[name].targets, reduction="sum"))
        return total

    before = cross_entropy()
    for _ in range(4):
        _round(made, list(made.trainees))
    assert cross_entropy() < before, "four rounds do not lower the loss"


def zero_learning_rate_changes_nothing(subject: Subject) -> None:
    """With a learning rate of zero, no parameter moves in a fit."""
    made = Subject(subject.make, {**subject.model, "optimizer": functools.partial(SGD, lr=0.0)}).federation()
    name, client = next(iter(made.trainees.items()))
    made.deliver(name)
    before = {key: p.detach().clone() for key, p in client.named_parameters()}
    train(made, name)
    assert same_tensors({key: p.detach() for key, p in client.named_parameters()}, before), "parameters moved"


def the_schedule_scales_every_step(subject: Subject) -> None:
    """The factor of a round multiplies all learning rates of its fits; at zero, nothing that predicts moves."""
    made = subject.federation()
    if not made.trains:
        return
    name, client = next(iter(made.trainees.items()))
    made.deliver(name)
    rates = []
    for client.lr_factor in (1.0, 0.25):
        rates.append([group["lr"] for group in made.modules[name].configure_optimizers().param_groups])
        made.modules[name].reset()
    assert rates[1] == [0.25 * rate for rate in rates[0]], "the optimiser ignores the factor"

    def predicting() -> State:
        models = {"own": client, "personal": made.method.personal_model(client)}
        return {f"{of}.{k}": p.detach().clone() for of, model in models.items() for k, p in model.named_parameters()}

    client.lr_factor, before = 0.0, predicting()
    train(made, name)
    method = type(made.method).__name__
    assert same_tensors(predicting(), before), f"{method} takes steps of its own: multiply them by client.lr_factor"


def joining_changes_no_shared_tensor(subject: Subject) -> None:
    """A site that joins a finished run trains personal tensors alone; without any it trains a copy, or is refused."""
    made = subject.after_a_round()
    method, name = made.method, type(made.method).__name__
    site = next(iter(made.clients))
    model = copy.deepcopy(made.client.model)
    module = made.modules[site].around(model, method)
    if made.server.anchors is not None:
        model.set_anchors(made.server.anchors)
    model.name, model.class_counts = site, made.clients[site].class_counts
    refused = not made.trains or not method.has_generic or method.pooled
    if refused or not method.joins:
        assert not method.joins, f"{name} declares joins = True, and there is nothing that a site could join"
        with contextlib.suppress(ConfigurationError):
            what_joins(method, model)
            raise AssertionError(f"{name} declares joins = False, and a site can join")
        return
    receive_message(model, method, made.server.message_to(site))
    start_at_generic(model)
    server = copy.deepcopy(made.state)
    if what_joins(method, model) == "personal":
        shared, frozen, personal = model.shared_state(), model.frozen_state(), _personal(model)
        train_personal(local(1), module, made.client.data.train_loader([site], 1))
        assert same_tensors(model.shared_state(), shared), "a shared tensor changed while a site joined"
        assert same_tensors(model.frozen_state(), frozen), "a frozen tensor changed while a site joined"
        assert not same_tensors(_personal(model), personal), "a site joined, and no personal tensor was trained"
        assert model.joining is None, "the model is still joining"
    else:
        assert not any(model.kind(key) == "personal" for key in model.learnable), "a personal tensor is not trained"
    assert _same(made.state, server), "the server changed while a site joined"


CONTRACT: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        declared_is_sent,
        personal_tensors_are_untouched_by_others,
        frozen_tensors_do_not_change,
        encoder_is_untouched,
        messages_alias_nothing,
        method_holds_no_state,
        order_of_clients_changes_nothing,
        one_client_is_local_training,
        identical_clients_are_one,
        state_round_trips,
        receive_changes_nothing_that_is_kept,
        personal_model_changes_nothing,
        server_knows_no_personal_tensor,
        a_client_that_never_takes_part_still_evaluates,
        models_are_as_declared,
        buffers_keep_their_dtype,
        loss_and_gradients_are_finite,
        classification_uses_the_criterion,
        it_learns,
        zero_learning_rate_changes_nothing,
        the_schedule_scales_every_step,
        joining_changes_no_shared_tensor,
    )
}
CHECKS = tuple(CONTRACT)
"""Names of all checks."""


def _saved(folder: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Write parts to disk and read them back."""
    name_snapshot(write_snapshot(folder, {}, parts), folder)
    return read_snapshot(folder).parts


def _one_site() -> Any:
    return data(sites=1, samples_per_site=[24], test_samples_per_site=[12])


def _round(made: Federation, names: list[str]) -> None:
    groups = [[name] for name in names] if made.method.sequential else [names]
    for group in groups:
        for name in group:
            made.deliver(name)
            train(made, name)
        made.merge({name: made.collect(name) for name in group})


def _batch(client: ClientModel, sites: Sequence[str], size: Literal["one", "all"] = "one") -> Batch:
    """The first training batch, or all training images at once."""
    batches = list(prepared().train_loader(sites, 0))[: 1 if size == "one" else None]
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Batch(client.taps_of(images), targets)


def _personal(client: ClientModel) -> State:
    return {key: value for key, value in client.own_state().items() if client.kind(key) == "personal"}


def _same(one: Any, other: Any) -> bool:
    """Equality of nested dicts of tensors, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
