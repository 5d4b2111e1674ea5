"""The oracles of the classic methods: what each paper's formulas give by hand, against the classes that run."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.apfl import APFL
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedbn import FedBN
from pfedst_baselines.feddyn import FedDyn
from pfedst_baselines.fedper import FedPer
from pfedst_baselines.fedprox import FedProx
from pfedst_baselines.fedrep import FedRep
from pfedst_baselines.local import Local
from pfedst_baselines.pfedme import PFedMe
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.scaffold import SCAFFOLD
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torchvision.models import resnet18

from pfedst.adapters import AttentionAdapter, WholeModel
from pfedst.client.module import FederatedClient
from pfedst.data import SyntheticSites
from pfedst.encoders import Pixels
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import State, payload_bytes
from pfedst.methods.merging import weighted_mean
from pfedst.methods.partition import norm_keys, norm_statistics
from pfedst.state.run_state import RunState
from pfedst.testing import fit, template
from tests.baselines.models import (
    CNN,
    LR,
    START,
    Linear,
    Quadratic,
    Residual,
    Small,
    close,
    copied,
    equal,
    parameters,
    pictures,
    quadratic,
)

PICTURES = {"a": pictures("a", 12), "b": pictures("b", 9), "c": pictures("c", 15)}
NO_SLOPE = {"conv1.bias", "conv2.bias"}
"""Before batch norm a bias changes nothing: its gradient is rounding."""
CURVES = {"a": ((1.0, 2.0), (1.0, -1.0)), "b": ((4.0, 0.5), (-1.0, 3.0))}
CURVES = {name: torch.tensor(curve, dtype=torch.float64) for name, curve in CURVES.items()}
"""Curvature a and optimum b of two sites' losses a / 2 (w - b)^2, in two dimensions."""
STEPS = 3
MOMENTUM = partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
ADAMW = partial(AdamW, lr=1e-2, weight_decay=0.1)


def by_name(case) -> str:
    return getattr(case, "__name__", str(case))


def small(method, sites=PICTURES, adapter=CNN, **options) -> Small:
    return Small(method, adapter, sites, **options)


def curved(method, steps=STEPS, **options) -> Small:
    """Sites of CURVES, of as many rows as there are steps in a local epoch."""
    sites = {name: quadratic(curve, steps) for name, curve in CURVES.items()}
    return small(method, sites, Quadratic, batch_size=1, **options)


def uneven(method) -> Small:
    """Site b has three times the rows of a, and both take one step an epoch."""
    sites = {name: quadratic(CURVES[name], rows) for name, rows in (("a", 2), ("b", 6))}
    return small(method, sites, Quadratic)


def slope(name: str, w: Tensor) -> Tensor:
    a, b = CURVES[name]
    return a * (w - b)


def optimum(shares: dict[str, float]) -> Tensor:
    """Of the sum of the sites' losses, each times its share."""
    a, b = torch.stack([CURVES[name] for name in shares], 1)
    p = torch.tensor(list(shares.values()))[:, None]
    return (p * a * b).sum(0) / (p * a).sum(0)


def nearly(one: Tensor, other: Tensor, atol: float = 1e-12) -> bool:
    return torch.allclose(one.detach().double(), other.detach().double(), rtol=0, atol=atol)


def is_head(key: str) -> bool:
    return key.startswith("fc.")


def is_norm(key: str) -> bool:
    return key.startswith("bn")


def predicted(made: Small, name: str = "a") -> Tensor:
    """The quadratic's value that a client's personal model gives: its cross-entropy is 1 more."""
    return F.cross_entropy(made.logits(name), made.batch(name).targets) - 1


def value(name: str, w: Tensor) -> Tensor:
    a, b = CURVES[name]
    return (a / 2 * (w - b).square()).sum()


# -- what travels, and how it is merged ------------------------------------------------------------------------

TRAVELS = {
    FedAvg: lambda key: True,
    FedProx: lambda key: True,
    Ditto: lambda key: True,
    APFL: lambda key: True,
    PFedMe: lambda key: True,
    SCAFFOLD: lambda key: True,
    FedDyn: lambda key: True,
    FedPer: lambda key: not is_head(key),
    FedRep: lambda key: not is_head(key),
    FedBN: lambda key: not is_norm(key),
    Local: lambda key: False,
}
AVERAGING = (FedAvg, FedProx, Ditto, APFL, PFedMe, FedPer, FedRep, FedBN)
"""Methods whose server holds the mean of what clients trained."""


@pytest.mark.parametrize("method", TRAVELS, ids=by_name)
def test_what_travels(method) -> None:
    """Down and up, in the second round too: the model's keys, and beside them SCAFFOLD's control of parameters."""
    made = small(method())
    made.round(2)
    client = made.fit("a", 2)
    keys = {key for key in client.adapter.state_dict() if TRAVELS[method](key)}
    for payload in (client.received, made.collect("a")):
        assert set(payload["net"]) == keys
        assert set(payload) == {"net", "control"} if method is SCAFFOLD else {"net"}
        assert set(payload.get("control", ())) == (set(parameters(client)) if method is SCAFFOLD else set())


def test_local_sends_no_byte() -> None:
    made = small(Local())
    made.round()
    made.deliver("a")
    assert payload_bytes(made.clients["a"].received) == payload_bytes(made.collect("a")) == 0


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("method", AVERAGING, ids=by_name)
def test_the_server_holds_the_mean_by_samples_or_uniform(method, weighting) -> None:
    """Parameters and norm statistics alike, over sites of 12, 9 and 15 images."""
    made = small(method(weighting=weighting))
    made.round(2)
    sizes = torch.tensor([12.0, 9.0, 15.0] if weighting == "samples" else [1.0, 1.0, 1.0])
    trained = [client.adapter.state_dict() for client in made.clients.values()]
    for key, merged in made.net.items():
        values = torch.stack([state[key].float() for state in trained], -1)
        assert nearly(merged, (values * sizes / sizes.sum()).sum(-1), 1e-6), key
        assert merged.dtype == trained[0][key].dtype


def test_clients_count_alike_unless_told_otherwise() -> None:
    assert SCAFFOLD().weighting == FedDyn().weighting == FedAvg().weighting == "uniform"


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize(("method", "reach"), [(FedAvg, 1), (FedProx, 1), (SCAFFOLD, 1), (FedDyn, 2)], ids=by_name)
def test_one_step_of_each_client_by_hand(method, reach, weighting) -> None:
    """w - lr * mean of slopes; FedDyn goes twice as far in its first round, since h = -alpha (mean - w)."""
    made = uneven(method(weighting=weighting))
    made.round()
    p = 0.25 if weighting == "samples" else 0.5
    mean = p * slope("a", START) + (1 - p) * slope("b", START)
    assert nearly(made.net["w"], START - reach * LR * mean)


@pytest.mark.parametrize("method", [FedAvg, FedProx, FedPer, Ditto, APFL, PFedMe, SCAFFOLD, FedDyn], ids=by_name)
def test_merged_norm_statistics_are_means_and_never_extrapolated(method) -> None:
    """After every round, those of the server are the mean of the clients', and clients take them."""
    made = small(method())
    for _ in range(3):
        made.round()
        trained = [copied(dict(client.adapter.named_buffers())) for client in made.clients.values()]
        mean = weighted_mean(trained, list(made.server.weights.values()))
        assert close({key: made.net[key] for key in mean}, mean)
    client = made.clients["a"]
    made.deliver("a")
    assert all(torch.equal(client.adapter.state_dict()[key], made.net[key]) for key in norm_statistics(client.adapter))


@pytest.mark.parametrize("method", [FedAvg, FedProx, FedPer, Ditto, APFL, PFedMe, SCAFFOLD, FedDyn], ids=by_name)
def test_private_norm_statistics_stay_at_home(method) -> None:
    """They are personal, in no message, and their own on each client; the layers' weights are shared as ever."""
    made = small(method(norm_statistics="private"))
    made.round()
    for name, client in made.clients.items():
        statistics = norm_statistics(client.adapter)
        before = copied({key: client.adapter.state_dict()[key] for key in statistics})
        made.deliver(name)
        assert len(statistics) == 2 * 3
        assert all(client.partition.kinds[key] == "personal" for key in statistics)
        assert not set(statistics) & {key for state in made.collect(name).values() for key in state}
        assert equal({key: client.adapter.state_dict()[key] for key in statistics}, before)
        assert torch.equal(client.adapter.bn1.weight, made.net["bn1.weight"])
    assert not torch.equal(made.clients["a"].adapter.bn1.running_mean, made.clients["b"].adapter.bn1.running_mean)


# -- limits in which two methods are one -----------------------------------------------------------------------


def alike_but_for_noise(one: State, other: State) -> bool:
    """Alike after steps of two methods, whose roundings may differ.

    AdamW makes whole steps of the rounding that is the gradient of a bias before batch norm; a running mean follows it.
    """
    moved_by_noise = {key for key in other if key in NO_SLOPE or key.endswith("running_mean")}
    assert moved_by_noise < other.keys()
    one, other = ({k: v for k, v in state.items() if k not in moved_by_noise} for state in (one, other))
    return close(one, other, 1e-4)


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("method", [partial(FedProx, mu=0.0), Ditto, APFL], ids=["FedProx mu=0", "Ditto", "APFL"])
def test_the_global_path_is_fedavg(method, optimizer) -> None:
    one, other = (small(m, optimizer=optimizer).rounds(2, epochs=2) for m in (method(), FedAvg()))
    assert alike_but_for_noise(one.net, other.net)
    for name, client in other.clients.items():
        assert alike_but_for_noise(one.clients[name].adapter.state_dict(), client.adapter.state_dict())


@pytest.mark.parametrize("method", [FedAvg, FedPer, FedBN, Ditto, APFL, SCAFFOLD], ids=by_name)
def test_with_one_client_it_is_local(method) -> None:
    sites = {"a": PICTURES["a"]}
    one, other = (small(m, sites).rounds(2, epochs=2).clients["a"] for m in (method(), Local()))
    assert close(one.adapter.state_dict(), other.adapter.state_dict(), 1e-5)


def test_local_is_one_uninterrupted_fit() -> None:
    """Under plain SGD, rounds times epochs in one go give the same model, and no site knows of another."""
    together, alone = small(Local()).rounds(3, epochs=2), small(Local(), {"b": PICTURES["b"]})
    alone.fit("b", 6)
    assert close(together.clients["b"].adapter.state_dict(), alone.clients["b"].adapter.state_dict(), 1e-5)


def test_identical_clients_are_one() -> None:
    sites = dict.fromkeys("abc", PICTURES["a"])
    three, one = small(FedAvg(), sites).rounds(2), small(FedAvg(), {"a": PICTURES["a"]}).rounds(2)
    assert close(three.net, one.net)


# -- FedProx ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_fedprox_steps_by_hand(mu) -> None:
    """w -= lr (slope + mu (w - w_t)), with the model received in this round, not in the first."""
    made, w = curved(FedProx(mu=mu)), START
    for _ in range(3):
        made.round()
        own = dict.fromkeys("ab", w)
        for name in own:
            for _ in range(STEPS):
                own[name] = own[name] - LR * (slope(name, own[name]) + mu * (own[name] - w))
        w = (own["a"] + own["b"]) / 2
        assert nearly(made.net["w"], w)


@pytest.mark.parametrize("mu", [0.0, 0.3, 7.0])
def test_fedprox_adds_mu_times_the_way_from_what_was_received(mu) -> None:
    """On every parameter of a network, and it is the gradient of mu / 2 * squared distance, as autograd gives it."""
    made = small(FedProx(mu=mu))
    made.round()
    made.deliver("a")
    client, received = made.clients["a"], copied(made.net)
    with torch.no_grad():
        for index, parameter in enumerate(client.adapter.parameters()):
            parameter += 0.1 * (index + 1)
    penalty = mu / 2 * sum((p - received[key]).square().sum() for key, p in client.adapter.named_parameters())
    expected = torch.autograd.grad(penalty, list(client.adapter.parameters()))
    for parameter in client.adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.method.edit_gradients(client)
    for (key, parameter), wanted in zip(client.adapter.named_parameters(), expected, strict=True):
        assert nearly(parameter.grad, wanted, 1e-6), key
        assert (parameter.grad.abs().min() > 0) == (mu > 0), key


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_fedprox_fixed_point(mu) -> None:
    """(a b + mu w_t) / (a + mu) is where a / 2 (w - b)^2 and the pull balance."""
    client = curved(FedProx(mu=mu), steps=400).fit("a")
    a, b = CURVES["a"]
    assert nearly(client.adapter.w, (a * b + mu * START) / (a + mu), 1e-9)


def test_a_strong_pull_keeps_fedprox_near_what_it_received() -> None:
    """After sixty steps it is less than a tenth as far from it as FedAvg."""
    moved = {}
    for mu in (0.0, 1e4):
        client = small(FedProx(mu=mu), optimizer=partial(SGD, lr=5e-5)).fit("a", epochs=60)
        moved[mu] = max((p - client.received["net"][k]).abs().max().item() for k, p in parameters(client).items())
    assert 0 < 10 * moved[1e4] < moved[0.0]


# -- FedPer, FedRep, FedBN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FedPer, FedRep, FedBN], ids=by_name)
def test_what_is_personal_outlives_a_message(method) -> None:
    """After it, the personal tensors are bitwise what the client trained, each client's its own; the rest is alike."""
    made = small(method())
    made.round(2)
    trained = {name: copied(client.adapter.state_dict()) for name, client in made.clients.items()}
    made.rounds(0)
    a, b = (made.clients[name].adapter.state_dict() for name in "ab")
    for key in a:
        if TRAVELS[method](key):
            assert torch.equal(a[key], made.net[key]), key
            assert torch.equal(b[key], made.net[key]), key
        else:
            assert torch.equal(a[key], trained["a"][key]), key
            assert not torch.equal(a[key], b[key]) or key.endswith("num_batches_tracked"), key


@pytest.mark.parametrize(
    "optimizer", [partial(SGD, lr=0.05), MOMENTUM, ADAMW], ids=["SGD", "SGD momentum decay", "AdamW decay"]
)
def test_fedrep_trains_the_head_then_the_body_and_nothing_else_moves(optimizer) -> None:
    """Of four epochs two are the head's: after one to four, what has no turn yet, or no more, is bitwise as it was."""
    made = [small(FedRep(head_epochs=2), optimizer=optimizer) for _ in range(5)]
    states = [parameters(one.fit("a", epochs) if epochs else one.clients["a"]) for epochs, one in enumerate(made)]
    for epoch, (before, after) in enumerate(pairwise(states)):
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        turn = {key for key in before if is_head(key) == (epoch < 2)}
        assert turn - NO_SLOPE <= moved <= turn, epoch


def test_fedrep_is_two_optimisers_in_turns() -> None:
    """A loop of plain torch, the head's optimiser first, over two rounds of two clients."""
    sites = {name: PICTURES[name] for name in "ab"}
    made, bare = small(FedRep(weighting="uniform"), sites), small(FedAvg(), sites)
    models = {name: bare.clients[name].adapter.train() for name in sites}
    body: State = {}
    for _ in range(2):
        made.round(3)
        for name, model in models.items():
            model.load_state_dict(body, strict=False)
            batch = bare.batch(name)
            for wanted, steps in ((True, 1), (False, 2)):
                optimizer = SGD([p for key, p in model.named_parameters() if is_head(key) == wanted], lr=LR)
                for _ in range(steps):
                    model.zero_grad()
                    F.cross_entropy(model(batch.taps), batch.targets).backward()
                    optimizer.step()
        trained = [{k: v for k, v in copied(m.state_dict()).items() if not is_head(k)} for m in models.values()]
        body = weighted_mean(trained, [1, 1])
    assert close(made.net, body)
    for name, model in models.items():
        assert nearly(made.clients[name].adapter.fc.weight, model.fc.weight, 1e-6)


def test_fedrep_fine_tunes_the_head_alone() -> None:
    made = small(FedRep()).rounds(1, epochs=2)
    client = made.clients["a"]
    before = parameters(client)
    client.finetuning = True
    after = parameters(made.fit("a", epochs=2))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"fc.weight", "fc.bias"}


def test_norm_layers_are_found_by_type() -> None:
    """ResNet-18 has twenty, of five tensors each; three of them are called `downsample.1`."""
    net = resnet18()
    assert len(norm_keys(net)) == 20 * 5
    assert len([key for key in net.state_dict() if "bn" in key]) == 17 * 5
    assert "layer2.0.downsample.1.running_var" in norm_keys(net)


def test_fedbn_keeps_every_norm_layer_at_home() -> None:
    """Those of a shortcut and a LayerNorm as well: neither is in a message, and both differ between clients."""
    made = small(FedBN(), adapter=Residual)
    made.round()
    a, b = (made.fit(name).adapter.state_dict() for name in "ab")
    for payload in (made.clients["a"].received, made.collect("a")):
        assert set(payload["net"]) == {
            f"{layer}.{part}" for layer in ("conv1", "downsample.0", "fc") for part in ("weight", "bias")
        }
    for key in ("bn1.weight", "downsample.1.bias", "downsample.1.running_var", "final.weight", "final.bias"):
        assert not torch.equal(a[key], b[key]), key


def test_fedbn_without_a_norm_layer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Quadratic has no norm layer"):
        curved(FedBN())


# -- Ditto -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=["SGD", "AdamW"])
def test_a_twin_without_a_pull_is_local(optimizer) -> None:
    made, local = (small(m, optimizer=optimizer).rounds(3, epochs=2) for m in (Ditto(lam=0.0), Local()))
    for name, client in made.clients.items():
        assert alike_but_for_noise(client.twin.state_dict(), local.clients[name].adapter.state_dict())


@pytest.mark.parametrize("lam", [0.0, 0.5, 3.0])
def test_ditto_steps_by_hand(lam) -> None:
    """v -= lr (slope at v + lam (v - w_t)), with w_t as received, while w goes FedAvg's way; v is what predicts."""
    made, w, v = curved(Ditto(lam=lam)), START, dict.fromkeys("ab", START)
    for _ in range(3):
        made.round()
        own = dict.fromkeys("ab", w)
        for name in own:
            for _ in range(STEPS):
                own[name] = own[name] - LR * slope(name, own[name])
                v[name] = v[name] - LR * (slope(name, v[name]) + lam * (v[name] - w))
            assert nearly(made.clients[name].twin.w, v[name])
            assert nearly(predicted(made, name), value(name, v[name]))
        w = (own["a"] + own["b"]) / 2
        assert nearly(made.net["w"], w)


def test_ditto_fixed_point() -> None:
    """(a b + lam w_t) / (a + lam): between the client's own optimum and what it received."""
    client = curved(Ditto(lam=2.0), steps=400).fit("a")
    a, b = CURVES["a"]
    assert nearly(client.twin.w, (a * b + 2.0 * START) / (a + 2.0), 1e-9)
    assert nearly(client.adapter.w, b, 1e-9)


# -- APFL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_apfl_gradients(alpha) -> None:
    """Of the share <v - w, slope at v_bar>, of v share times the slope at v_bar, of w the slope at w alone.

    At 0 and at 1 too: a share that is held there for ever would be no share that is learned.
    """
    made = curved(APFL(alpha=alpha))
    client = made.clients["a"]
    with torch.no_grad():
        client.twin.w += torch.tensor([0.5, -2.0])
    w, v = START, START + torch.tensor([0.5, -2.0])
    mixed = alpha * v + (1 - alpha) * w
    made.method.loss(client, made.batch("a")).backward()
    assert nearly(client.twin.w.grad, alpha * slope("a", mixed), 1e-6)
    assert nearly(client.adapter.w.grad, slope("a", w))
    assert nearly(client.share.grad, (v - w) @ slope("a", mixed), 1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_apfl_steps_by_hand(alpha) -> None:
    """w follows its own loss, v and the share that of v_bar; before each step the share is put back into [0, 1]."""
    made, w = curved(APFL(alpha=alpha)), START
    v, share = dict.fromkeys("ab", START), {name: torch.tensor(alpha, dtype=torch.float64) for name in "ab"}
    for _ in range(3):
        made.round()
        own = dict.fromkeys("ab", w)
        for name in own:
            for _ in range(STEPS):
                s = share[name].clamp(0, 1)
                at_mixed = slope(name, s * v[name] + (1 - s) * own[name])
                share[name] = s - LR * (v[name] - own[name]) @ at_mixed
                v[name] = v[name] - LR * s * at_mixed
                own[name] = own[name] - LR * slope(name, own[name])
            s = share[name].clamp(0, 1)
            assert nearly(made.clients[name].twin.w, v[name], 1e-6)
            assert nearly(made.clients[name].share.clamp(0, 1), s, 1e-6)
            assert nearly(predicted(made, name), value(name, s * v[name] + (1 - s) * own[name]), 1e-5)
        w = (own["a"] + own["b"]) / 2
        assert nearly(made.net["w"], w)


@pytest.mark.parametrize(("share", "whose"), [(0.0, "adapter"), (1.0, "twin"), (-0.2, "adapter"), (1.3, "twin")])
def test_limits_of_the_share(share, whose) -> None:
    """At 0 the global model predicts, at 1 the local one, and no step of the optimiser leads beyond.

    The share that is kept stays as it is: only a fit may change it.
    """
    made = curved(APFL())
    client, taps = made.fit("a").eval(), made.batch("a").taps
    with torch.no_grad():
        client.share.fill_(share)
        before = client.own_state()
        assert not nearly(client.adapter(taps), client.twin(taps), 1e-3)
        # a mixture of two models, and one of them alone
        assert nearly(made.logits("a"), getattr(client, whose)(taps), 1e-6)
    assert equal(client.own_state(), before)
    assert client.share.item() == pytest.approx(share)


# -- pFedMe ----------------------------------------------------------------------------------------------------


def test_pfedme_moreau_envelope() -> None:
    """Enough inner steps: theta = (a b + lam w) / (a + lam), w -= lr lam (w - theta), and theta predicts."""
    made = curved(PFedMe(lam=2.0, inner_steps=300, inner_learning_rate=0.05), steps=1)
    client = made.fit("a")
    a, b = CURVES["a"]
    theta = (a * b + 2.0 * START) / (a + 2.0)
    assert nearly(client.memo["theta"]["w"], theta, 1e-9)
    assert nearly(client.adapter.w, START - LR * 2.0 * (START - theta), 1e-9)
    assert nearly(predicted(made), value("a", theta), 1e-9)


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize("inner_steps", [1, 5])
@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (0.5, 1.0, 0.01)], ids=["constant", "schedule"])
def test_pfedme_steps_by_hand(inner_steps, beta, factors) -> None:
    """Few inner steps, from where theta was; the server goes a share beta of the way to the mean.

    A schedule scales the steps of theta and of w.
    """
    lam = 1.5
    made = curved(PFedMe(lam=lam, inner_steps=inner_steps, inner_learning_rate=0.07, beta=beta))
    w, theta = START, dict.fromkeys("ab", START)
    for factor in factors:
        inner, lr = 0.07 * factor, LR * factor
        made.schedule(factor)
        made.round()
        own = dict.fromkeys("ab", w)
        for name in own:
            for _ in range(STEPS):
                for _ in range(inner_steps):
                    theta[name] = theta[name] - inner * (slope(name, theta[name]) + lam * (theta[name] - own[name]))
                own[name] = own[name] - lr * lam * (own[name] - theta[name])
            assert nearly(made.clients[name].memo["theta"]["w"], theta[name])
            assert nearly(predicted(made, name), value(name, theta[name]))
        w = (1 - beta) * w + beta * (own["a"] + own["b"]) / 2
        assert nearly(made.net["w"], w)


def test_a_message_does_not_overwrite_theta() -> None:
    """The personal model that is evaluated after a merge is the one that was trained before it."""
    made = curved(PFedMe())
    made.round()
    before = predicted(made)
    made.deliver("a")
    assert nearly(predicted(made), before)
    assert not nearly(before, value("a", made.net["w"]), 1e-6)


def test_a_client_that_was_never_fitted_predicts_with_what_it_received_now() -> None:
    """Not with what it received first: `receive` once kept that as theta, which no later message could replace."""
    made = curved(PFedMe())
    for name in "ab":
        made.deliver(name)
    for _ in range(2):
        made.round(names="a")
        made.deliver("b")
        assert nearly(predicted(made, "b"), value("b", made.net["w"]))
        assert not nearly(made.net["w"], START, 1e-6)
        assert not made.clients["b"].memo
    # its first fit starts theta there
    w = made.net["w"]
    made.method.inner_learning_rate, made.method.inner_steps = 1e-12, 1
    assert nearly(made.fit("b").memo["theta"]["w"], w, 1e-6)


def test_a_held_out_site_has_the_generic_model_in_a_run_of_pfedme(tmp_path) -> None:
    model = template(optimizer=partial(SGD, lr=0.05))
    method = PFedMe(lam=1.0, inner_learning_rate=0.1)
    summary = fit(tmp_path, method, model=model, held_out_sites=["site_b"], trainer_options={"max_epochs": 3})
    personal, generic = (summary[model]["clients"] for model in ("personal", "generic"))
    assert personal["site_b"] == generic["site_b"]
    assert personal["site_a"] != generic["site_a"]


@pytest.mark.parametrize("optimizer", [AdamW, torch.optim.Adam, torch.optim.RMSprop])
def test_pfedme_refuses_an_optimiser_that_rescales(optimizer) -> None:
    with pytest.raises(ConfigurationError, match="PFedMe needs SGD"):
        curved(PFedMe(), optimizer=optimizer).fit("a")


# -- SCAFFOLD and FedDyn ---------------------------------------------------------------------------------------

TURNS = (("a", "b"), ("a",), ("a", "b"), ("b",))
"""Who takes part in four rounds."""


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("factors", [(1.0,) * 4, (0.25, 1.0, 0.5, 0.01)], ids=["constant", "schedule"])
def test_scaffold_steps_by_hand(eta, factors) -> None:
    """Algorithm 1 with Option II, some rounds with one client of two: c moves by |S| / N of the mean change.

    With a schedule, Option II divides by the learning rate of the round.
    """
    made, w, c = curved(SCAFFOLD(server_learning_rate=eta)), START, torch.zeros(2)
    c_k = {name: torch.zeros(2) for name in "ab"}
    for names, factor in zip(TURNS, factors, strict=True):
        made.schedule(factor)
        made.round(names=names)
        own, change, lr = dict.fromkeys(names, w), {}, LR * factor
        for name in names:
            for _ in range(STEPS):
                own[name] = own[name] - lr * (slope(name, own[name]) - c_k[name] + c)
            new = c_k[name] - c + (w - own[name]) / (STEPS * lr)
            change[name], c_k[name] = new - c_k[name], new
        w = w + eta * sum(own[name] - w for name in names) / len(names)
        c = c + sum(change.values()) / 2
        assert nearly(made.net["w"], w)
        assert nearly(made.state["control"]["w"], c)
        assert all(nearly(made.clients[name].memo["control"]["w"], c_k[name]) for name in names)


def test_scaffold_control_is_option_ii_on_a_network() -> None:
    """Under plain SGD the mean gradient of a round is c_k - c + (w_t - w_k) / (K lr)."""
    made = small(SCAFFOLD(), optimizer=partial(SGD, lr=0.05), batch_size=3).rounds(2)
    before, c = copied(made.clients["a"].memo["control"]), copied(made.state["control"])
    client = made.fit("a", epochs=2)
    made.collect("a")
    for key, now in parameters(client).items():
        expected = before[key] - c[key] + (client.received["net"][key] - now) / (2 * 4 * 0.05)
        assert nearly(client.memo["control"][key], expected, 1e-4), key
        assert key in NO_SLOPE or not nearly(before[key], client.memo["control"][key], 1e-4), key


@pytest.mark.parametrize("held_out", ["", "c"])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize(
    ("method", "server", "client"), [(SCAFFOLD, "control", "control"), (FedDyn, "h", "g")], ids=by_name
)
def test_the_servers_memory_is_the_mean_of_the_clients(method, server, client, weighting, held_out) -> None:
    """mean c_k = c, and mean g_k = h, after every round of all who train; none stays zero."""
    made = small(method(weighting=weighting), held_out=held_out)
    for _ in range(3):
        made.round()
        trained = [name for name in made.clients if name not in held_out]
        states = [copied(made.clients[name].memo[client]) for name in trained]
        mean = weighted_mean(states, [made.server.weights[name] for name in trained])
        assert close(made.state[server], mean)
        assert all(mean[key].any() for key in mean.keys() - NO_SLOPE)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("method", [SCAFFOLD, partial(FedDyn, alpha=1.0), FedAvg], ids=["SCAFFOLD", "FedDyn", "FedAvg"])
def test_the_exact_optimum_of_the_sum(method, weighting) -> None:
    """Sites of other curvature, many local steps: both reach it, where FedAvg settles elsewhere."""
    made = uneven(method(weighting=weighting)).rounds(60, epochs=4)
    shares = {"a": 0.25, "b": 0.75} if weighting == "samples" else {"a": 0.5, "b": 0.5}
    assert nearly(made.net["w"], optimum(shares), 1e-5) != isinstance(made.method, FedAvg)
    assert nearly(made.net["w"], optimum(shares), 0.05) != isinstance(made.method, FedAvg)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
@pytest.mark.parametrize("factors", [(1.0,) * 4, (0.25, 1.0, 0.5, 0.01)], ids=["constant", "schedule"])
def test_feddyn_steps_by_hand(alpha, factors) -> None:
    """Algorithm 1, some rounds with one client of two: g of the other rests, h moves by a share 1 / N of each.

    A schedule scales the steps alone: g and h follow from where they ended.
    """
    made, w, h = curved(FedDyn(alpha=alpha)), START, torch.zeros(2)
    g = {name: torch.zeros(2, dtype=torch.float64) for name in "ab"}
    for names, factor in zip(TURNS, factors, strict=True):
        made.schedule(factor)
        made.round(names=names)
        own = dict.fromkeys(names, w)
        for name in names:
            for _ in range(STEPS):
                own[name] = own[name] - LR * factor * (slope(name, own[name]) - g[name] + alpha * (own[name] - w))
            g[name] = g[name] - alpha * (own[name] - w)
        h = h - alpha / 2 * sum(own[name] - w for name in names)
        w = sum(own.values()) / len(names) - h / alpha
        assert nearly(made.net["w"], w)
        assert nearly(made.state["h"]["w"], h)
        assert all(nearly(made.clients[name].memo["g"]["w"], g[name]) for name in "ab")


def test_feddyn_memory_becomes_each_clients_slope_at_the_optimum() -> None:
    made = curved(FedDyn(alpha=1.0), steps=10).rounds(60)
    for name, client in made.clients.items():
        assert nearly(client.memo["g"]["w"], slope(name, optimum({"a": 1.0, "b": 1.0})), 1e-6)


MEMORIES = {SCAFFOLD: ("control", "control"), FedDyn: ("h", "g")}
"""Names of the memories of server and client, by method."""


@pytest.mark.parametrize("method", MEMORIES, ids=by_name)
def test_memories_are_those_of_parameters_alone(method) -> None:
    """At server and client, before and after a round: running statistics and counters have no gradient."""
    at_server, at_client = MEMORIES[method]
    made = small(method())
    for _ in range(2):
        for client in made.clients.values():
            keys = set(dict(client.adapter.named_parameters()))
            assert len(client.adapter.state_dict()) == len(keys) + 2 * 3
            assert set(made.state[at_server]) == set(client.memo[at_client]) == keys
        made.round()


@pytest.mark.parametrize("method", [SCAFFOLD, partial(SCAFFOLD, server_learning_rate=0.5), FedDyn], ids=by_name)
def test_buffers_merge_by_their_dtype_and_are_never_extrapolated(method) -> None:
    """Real ones lie between what was sent and what came back; counters stay whole numbers."""
    made = small(method(), batch_size=4)
    for _ in range(3):
        before = made.net
        made.round(2)
        sent = [dict(client.adapter.named_buffers()) for client in made.clients.values()]
        for key in norm_statistics(made.generic.adapter):
            states = torch.stack([before[key], *(state[key] for state in sent)])
            merged = made.net[key]
            assert merged.dtype == before[key].dtype == (torch.int64 if key.endswith("tracked") else torch.float32)
            assert (states.amin(0) <= merged).all(), key
            assert (merged <= states.amax(0)).all(), key
            assert not torch.equal(merged, before[key]), key


class Normed(WholeModel):
    """Convolution, batch norm and a linear head on colour images."""

    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, len(head.class_names))

    def forward(self, taps) -> Tensor:
        return self.fc(self.norm(self.conv(taps.tensors[0])).relu().mean((2, 3)))


NORMED = {
    "attention": lambda: template(adapter=partial(AttentionAdapter, batch_norm=True)),
    "pixels": lambda: FederatedClient(Pixels(32), Normed, "learned", optimizer=partial(SGD, lr=0.05), loss=None),
}


@pytest.mark.parametrize("model", NORMED)
@pytest.mark.parametrize("method", MEMORIES, ids=by_name)
def test_a_run_on_a_model_with_batch_norm(method, model, tmp_path) -> None:
    summary = fit(tmp_path, method(), model=NORMED[model]())
    assert summary["protocol"]["round"] == 2
    assert all(metrics["accuracy"] is not None for metrics in summary["personal"]["clients"].values())
    state = RunState(tmp_path / "run" / "state").last_round().parts["server"]["method"]
    buffers = {key for key in state["net"] if key.endswith("_tracked") or ".running_" in key}
    assert buffers == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(state[MEMORIES[method][0]]) == set(state["net"]) - buffers
    assert state["net"]["norm.num_batches_tracked"].dtype == torch.int64
    assert state["net"]["norm.num_batches_tracked"] > 0


# -- Pooled ----------------------------------------------------------------------------------------------------


def test_pooled_descends_on_the_images_of_all_sites(tmp_path) -> None:
    """By hand, on all sites' images in one batch; a single step is FedAvg's by samples, and two are not."""
    linear = FederatedClient(Pixels(16), Linear, "learned", optimizer=partial(SGD, lr=LR), loss=None)
    sites = SyntheticSites(3, 3, 16, [24, 18, 15], [12] * 3, batch_size=64)

    def run(method, epochs: int) -> State:
        folder = tmp_path / f"{method.__name__}{epochs}"
        by_samples = method(weighting="samples")
        fit(folder, by_samples, sites=sites, model=linear, rounds=1, trainer_options={"max_epochs": epochs})
        return RunState(folder / "run" / "state").last_round().parts["server"]["method"]["net"]

    found = {(method, epochs): run(method, epochs) for method in (Pooled, FedAvg) for epochs in (1, 2)}
    batches = [next(iter(sites.train_loader(site, 0))) for site in sites.sites]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(labels) == sum(sites.samples(site, "train") for site in sites.sites)
    model = linear.build(sites.class_names, Pooled(), 0).model.adapter
    optimizer = SGD(model.parameters(), lr=LR)
    for epochs in (1, 2):
        model.zero_grad()
        F.cross_entropy(model.fc(images.flatten(1)), labels).backward()
        optimizer.step()
        assert close(found[Pooled, epochs], copied(model.state_dict()))
        assert close(found[FedAvg, epochs], found[Pooled, epochs], 1e-5) == (epochs == 1)
