"""Methods made for CLIP: what they train, what they send, and their losses by hand."""

import copy
import io
from functools import partial
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.feddpa import FedDPA
from pfedst_baselines.fedlora import FedLoRA
from pfedst_baselines.fedotp import FedOTP
from pfedst_baselines.fedpgp import FedPGP
from pfedst_baselines.fedsa_lora import FedSALoRA
from pfedst_baselines.ffa_lora import FFALoRA
from pfedst_baselines.promptfl import PromptFL
from pfedst_baselines.prototypes import Prototypes
from pfedst_baselines.zero_shot import ZeroShot
from rich.console import Console
from safetensors.torch import save_file
from torch.optim import AdamW

from pfedst.adapters import (
    AttentionAdapter,
    LinearHead,
    LoRATower,
    PromptLearner,
    SideNetwork,
    TransportPrompts,
)
from pfedst.cli.method_pages import method_cost
from pfedst.client.module import FederatedClient
from pfedst.client.state import client_part, load_client_part
from pfedst.client.training import LocalTrainer
from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, DataError, TooFewClientsError
from pfedst.messages.payload import NET
from pfedst.methods.interface import Batch
from pfedst.methods.losses import in_batch_contrastive, local_maximum_mean_discrepancy
from pfedst.methods.pfedst import PFedST
from pfedst.reporting.tables import metrics_table
from pfedst.seeds import generator
from pfedst.testing import data, encoder, federation, fit, prepared, template, train, trainer

PROMPTS = (PromptFL, FedOTP, FedPGP)
LORAS = (FedLoRA, FFALoRA, FedSALoRA, FedDPA)


class HeadOnly(FedAvg):
    """FedAvg of a linear head."""

    def default_adapter(self, encoder, head):
        return LinearHead(encoder, head)


def batch_of(client, site="site_a") -> Batch:
    pictures, targets = next(iter(prepared().train_loader(site, 1)))
    return Batch(client.taps_of(pictures), targets)


def scramble(module, seed=0) -> None:
    for index, parameter in enumerate(module.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator(seed + index))


def predicted(made, client, taps) -> torch.Tensor:
    """Logits of a client's personal model."""
    return made.method.personal_model(client).eval()(taps)


def one_round(made, **options) -> None:
    """Every client is fitted; then the merge, and its delivery to all."""
    for name in made.trainees:
        made.deliver(name)
        train(made, name)
    made.merge({name: made.collect(name) for name in made.trainees})
    for name in made.clients:
        made.deliver(name)


def states(made) -> list[dict[str, torch.Tensor]]:
    return [client.adapter.state_dict() for client in made.clients.values()]


def same(made, key) -> bool:
    """Whether a tensor of the adapter is one and the same on all clients."""
    first, *others = states(made)
    return all(torch.equal(first[key], other[key]) for other in others)


# -- the numbers -------------------------------------------------------------------------------------------------

NUMBERS = {
    # trained, sent; ViT-B/16, 8 classes, D = 512, dv = 768, L = 12, dt = 512, p = 16
    "head": (HeadOnly, 4_104, 4_104),  # D K + K
    "FedCLIP": (FedCLIP, 525_312, 525_312),  # 2 (D^2 + D)
    "FACMIC": (FACMIC, 526_336, 527_361),  # + 2 D trained; + 2 D + 1 running statistics on the wire
    "PromptFL": (PromptFL, 8_192, 8_192),  # p dt
    "FedOTP": (FedOTP, 16_384, 8_192),  # 2 p dt, p dt
    "FedPGP 4": (FedPGP, 10_304, 8_192),  # p dt + b (p + dt), p dt
    "FedPGP 8": (partial(FedPGP, rank=8), 12_416, 8_192),
    "FedLoRA": (FedLoRA, 294_912, 294_912),  # L 2 r (dv + dv)
    "FFALoRA": (FFALoRA, 147_456, 147_456),  # B alone
    "FedSALoRA": (FedSALoRA, 299_016, 147_456),  # A and B and a head; A alone
    "FedDPA": (FedDPA, 589_824, 294_912),  # twice FedLoRA, once
    "FedDPA alternate": (partial(FedDPA, schedule="alternate"), 589_824, 294_912),
    "PFedST": (PFedST, 1_372_224 + 26_688, 1_372_224),
    "ZeroShot": (ZeroShot, 0, 0),
    "Prototypes": (Prototypes, 0, 0),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_trained_and_sent(name) -> None:
    method, trained, sent = NUMBERS[name]
    cost = method_cost(method())
    assert (cost.parameters_trained, cost.parameters_sent) == (trained, sent)
    wire = 4 * sent + (4 if name == "FACMIC" else 0)  # its counter of batches has eight bytes
    assert cost.upload_bytes == cost.download_bytes == wire


# -- prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sent", "kept"),
    [
        (PromptFL, ["context"], []),
        (FedOTP, ["contexts.0"], ["contexts.1"]),
        (FedPGP, ["context"], ["left", "right"]),
    ],
)
def test_what_prompt_methods_send_and_what_stays_at_home(method, sent, kept) -> None:
    made = federation(method(), anchors="text")
    start = made.generic.adapter.state_dict()
    assert list(made.state[NET]) == sent
    assert all(same(made, key) for key in (*sent, *kept))  # all start alike
    for name in made.clients:
        made.deliver(name)
        train(made, name)
        assert list(made.collect(name)) == [NET]
        assert list(made.collect(name)[NET]) == sent
    trained = [{key: value.clone() for key, value in state.items()} for state in states(made)]
    assert not any(same(made, key) for key in (*sent, *kept))
    made.merge({name: made.collect(name) for name in made.clients})
    for name in made.clients:
        made.deliver(name)
    sizes = torch.tensor([made.server.weights[name] for name in made.clients])
    for key in sent:
        assert same(made, key)
        mean = torch.einsum("k,k...->...", sizes / sizes.sum(), torch.stack([state[key] for state in trained]))
        assert torch.allclose(states(made)[0][key], mean, atol=1e-6)
    for key in kept:
        assert all(torch.equal(state[key], own[key]) for state, own in zip(states(made), trained, strict=True))
        assert torch.equal(made.generic.adapter.state_dict()[key], start[key])


def test_fedpgp_without_contrast_and_low_rank_part_is_promptfl() -> None:
    plain, made = (federation(method, anchors="text") for method in (PromptFL(), FedPGP(mu=0.0)))
    one, other = plain.generic, made.generic
    assert torch.equal(one.adapter.context, other.adapter.context)
    with torch.no_grad():
        other.adapter.left.zero_()
    losses = [made.method.loss(client, batch_of(client)) for made, client in ((plain, one), (made, other))]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for loss in losses:
        loss.backward()
    assert torch.allclose(one.adapter.context.grad, other.adapter.context.grad, atol=1e-6)
    assert one.adapter.context.grad.norm() > 0
    assert other.adapter.left.grad.norm() > 0  # it learns from zero


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (0.3, 0.1)])
def test_the_contrast_of_fedpgp_by_hand(mu, tau) -> None:
    """A class pays log(1 + exp((cos(sigma, personal) - cos(zero-shot, sigma)) / tau))."""
    made = federation(FedPGP(mu=mu, tau=tau), anchors="text", prompts=("a photo of a {}.",))
    client = made.generic
    scramble(client.adapter)
    adapter, batch = client.adapter, batch_of(client)
    with torch.no_grad():
        general = adapter.sequences(adapter.context)
        personal = adapter.sequences(adapter.context + adapter.left @ adapter.right)
        zero_shot = encoder().encode_text([f"a photo of a {name}." for name in made.generic.class_names])
        assert not torch.allclose(general, personal, atol=1e-2)
        image = F.normalize(batch.taps.tensors[0], dim=-1)
        expected = F.cross_entropy(encoder().logit_scale * image @ personal.T, batch.targets)
        towards, away = (zero_shot * general).sum(1), (general * personal).sum(1)
        expected = expected + mu * (1 + ((away - towards) / tau).exp()).log().mean()
    assert made.method.loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_contrast_draws_sigma_to_zero_shot_and_away_from_the_personal_text() -> None:
    made = federation(FedPGP(mu=100.0), anchors="text")
    client = made.generic
    scramble(client.adapter)

    def cosines():
        adapter = client.adapter
        general, personal = adapter.features(low_rank=False), adapter.features()
        return (adapter.head.anchors * general).sum(1).mean().item(), (general * personal).sum(1).mean().item()

    before, batch = cosines(), batch_of(client)
    optimizer = AdamW(client.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        made.method.loss(client, batch).backward()
        optimizer.step()
    assert cosines()[0] - cosines()[1] > before[0] - before[1] + 0.1


def test_fedpgp_predicts_with_the_personal_prompt_and_a_new_site_with_its_start() -> None:
    made = federation(FedPGP(), anchors="text")
    one_round(made)
    client, batch = made.clients["site_a"], batch_of(made.generic)
    with torch.no_grad():
        personal = client.adapter.head.cosine_logits(batch.taps.tensors[0], client.adapter.features())
        # the texts are computed once more
        assert torch.allclose(predicted(made, client, batch.taps), personal, atol=1e-5)
        assert not torch.allclose(personal, made.generic.adapter(batch.taps), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [(FedPGP, {"mu": -1.0}, "mu"), (FedPGP, {"tau": 0.0}, "tau"), (FedDPA, {"personal_epochs": 0}, "personal_epochs")],
)
def test_options_out_of_range(method, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        method(**options)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_prompt_rank_that_does_not_fit_is_refused(rank) -> None:
    with pytest.raises(ConfigurationError, match=f"rank {rank}"):
        federation(FedPGP(rank=rank), anchors="text")


# -- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", ["text", "prototypes"])
def test_the_two_objectives_of_fedclip(anchors) -> None:
    by_class, contrastive = (federation(FedCLIP(objective=o), anchors=anchors) for o in ("class_ce", "infonce"))
    client = by_class.generic
    scramble(client.adapter)
    batch = batch_of(client)
    f = batch.taps.tensors[0]
    image = F.normalize(client.adapter.attention(f) * f, dim=-1)
    texts = client.adapter.head.anchors
    expected = F.cross_entropy(encoder().logit_scale * image @ texts.T, batch.targets)
    assert by_class.method.loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    scores = encoder().logit_scale * image @ texts[batch.targets].T
    both_ways = -(scores.log_softmax(0).diagonal() + scores.log_softmax(1).diagonal()).mean() / 2
    assert contrastive.method.loss(client, batch).item() == pytest.approx(both_ways.item(), rel=1e-5)
    assert abs(expected.item() - both_ways.item()) > 0.1


def test_the_contrastive_form_trains_learned_anchors_too() -> None:
    """They are what predictions are made with."""
    made = federation(FedCLIP(objective="infonce"), anchors="learned")
    client = made.generic
    assert "adapter.head.weight" in client.learnable
    made.method.loss(client, batch_of(client)).backward()
    without = [key for key, p in client.named_parameters() if key in client.learnable and p.grad is None]
    assert without == []


@pytest.mark.parametrize("adapter", [LinearHead, PromptLearner])
def test_the_contrastive_form_is_refused_where_it_would_train_nothing(tmp_path, adapter) -> None:
    with pytest.raises(ConfigurationError, match="AttentionAdapter"):
        fit(tmp_path, FedCLIP(objective="infonce"), model=template(adapter=adapter, anchors="text"))


def test_clients_count_alike_or_by_their_images() -> None:
    assert set(federation(FedCLIP()).server.weights.values()) == {1.0}
    assert set(federation(FACMIC()).server.weights.values()) == {1.0}
    made = federation(FACMIC(weighting="samples"))
    assert made.server.weights == {name: float(prepared().samples(name, "train")) for name in made.clients}


def test_facmic_without_a_target_is_fedclip_on_its_adapter() -> None:
    theirs = federation(FedCLIP(), adapter=partial(AttentionAdapter, batch_norm=True))
    mine = federation(FACMIC())
    assert all(torch.equal(v, mine.state[NET][k]) for k, v in theirs.state[NET].items())
    assert mine.method.unlabelled(mine.clients["site_a"]) is None
    gradients = []
    for made in (theirs, mine):
        client = made.generic.train()
        loss = made.method.loss(client, batch_of(client))
        loss.backward()
        gradients.append((loss.detach(), *(p.grad for p in client.parameters())))
    # two methods, each with its own way to the same loss
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_the_alignment_of_facmic_by_hand() -> None:
    made = federation(FACMIC(target="own_unlabelled", alignment=2.5), anchors="text")
    client = made.generic.eval()  # running statistics, so that passes do not depend on each other
    scramble(client.adapter)
    batch, other = batch_of(client), batch_of(client, "site_b")
    both = Batch(batch.taps, batch.targets, other.taps)
    adapter = client.adapter
    source, target = (adapter.attention(b.taps.tensors[0]) * b.taps.tensors[0] for b in (batch, other))
    soft = (encoder().logit_scale * F.normalize(target, dim=-1) @ adapter.head.anchors.T).softmax(-1).detach()
    expected = F.cross_entropy(adapter(batch.taps), batch.targets)
    aligned = local_maximum_mean_discrepancy(source, batch.targets, target, soft)
    assert aligned > 1e-3
    loss = made.method.loss(client, both)
    assert loss.item() == pytest.approx((expected + 2.5 * aligned).item(), rel=1e-5)
    expected_gradient = torch.autograd.grad(expected + 2.5 * aligned, adapter.first.weight)[0]
    assert torch.allclose(torch.autograd.grad(loss, adapter.first.weight)[0], expected_gradient, atol=1e-6)


def test_facmic_takes_its_contrastive_form_too() -> None:
    made = federation(FACMIC(objective="infonce"), anchors="text")
    client = made.generic.eval()
    batch = batch_of(client)
    expected = in_batch_contrastive(client.adapter.embed(batch.taps), client.adapter.head, batch.targets)
    assert made.method.loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_every_image_passes_the_adapter_of_facmic_once_a_step() -> None:
    """Else the running statistics, which are sent, take one batch for two; and the step costs more."""
    made = federation(FACMIC(target="own_unlabelled"))
    client = made.generic.train()
    batch, other = batch_of(client), batch_of(client, "site_b")
    made.method.loss(client, Batch(batch.taps, batch.targets, other.taps))
    assert client.adapter.norm.num_batches_tracked == 2  # the labelled and the unlabelled
    plain = federation(FACMIC())
    plain.method.loss(plain.generic.train(), batch)
    assert plain.generic.adapter.norm.num_batches_tracked == 1


class Seen(FACMIC):
    """Remembers the image embeddings that its losses saw without labels."""

    embeddings: ClassVar[list[tuple[str, torch.Tensor]]] = []

    def loss(self, client, batch):
        assert batch.unlabelled is not None
        Seen.embeddings.append((client.name, batch.unlabelled.tensors[0]))
        return super().loss(client, batch)


def distance(embeddings, to) -> torch.Tensor:
    """Of each embedding to the nearest of others, (n,)."""
    return torch.cdist(embeddings.double(), to.double()).min(1).values


@pytest.mark.parametrize(
    ("options", "held_out"),
    [
        ({"target": "own_unlabelled"}, []),
        ({"target": "own_unlabelled"}, ["site_b"]),
        ({"target": "held_out_site", "target_site": "site_b"}, ["site_b"]),
    ],
)
def test_facmic_sees_the_declared_images_and_never_a_test_image(tmp_path, options, held_out) -> None:
    Seen.embeddings = []
    sites = data(validation_fraction=0.3, cache="none")  # its loaders give images
    summary = fit(tmp_path, Seen(**options), held_out_sites=held_out, sites=sites)
    assert summary["protocol"]["held_out_sites"] == held_out
    transductive = ["site_b"] if options["target"] == "held_out_site" else []
    assert summary["protocol"]["transductive_sites"] == transductive
    Console(file=(printed := io.StringIO()), width=150).print(metrics_table(summary))
    assert ("site_b (held out, transductive)" in printed.getvalue()) == bool(transductive)
    assert summary["protocol"]["method_options"]["target"] == options["target"]
    assert {name for name, _ in Seen.embeddings} == {"site_a", "site_b", "site_c"} - set(held_out)
    every = {
        (site, split): torch.cat(
            [encoder().extract(images, "pooled").tensors[0] for images, _ in sites.evaluation_loader(site, split)]
        )
        for site in sites.sites
        for split in ("train", "validation", "test")
    }
    for name, embeddings in Seen.embeddings:
        declared = (name, "validation") if options["target"] == "own_unlabelled" else ("site_b", "train")
        assert distance(embeddings, every[declared]).max() < 1e-4
        for site, split in every:
            if (site, split) != declared:
                assert distance(embeddings, every[site, split]).min() > 1e-3


def test_facmic_without_a_target_sees_no_other_image(tmp_path) -> None:
    with pytest.raises(TooFewClientsError, match="AssertionError"):
        fit(tmp_path, Seen())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_site": "site_b"}, "target_site site_b of FACMIC: target is none"),
        ({"target": "own_unlabelled", "target_site": "site_b"}, "target is own_unlabelled"),
        ({"target": "held_out_site"}, "target_site None of FACMIC: target is held_out_site"),
        ({"alignment": -0.1}, "alignment -0.1"),
    ],
)
def test_wrong_combinations_of_facmic_are_refused(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FACMIC(**options)


@pytest.mark.parametrize("held_out", [[], ["site_c"]])
def test_a_target_site_that_trains_is_refused(tmp_path, held_out) -> None:
    """Its images would be those of a hospital that takes part: the option says held out, and so does the protocol."""
    with pytest.raises(ConfigurationError, match="site_b"):
        fit(tmp_path, FACMIC(target="held_out_site", target_site="site_b"), held_out_sites=held_out)


def test_a_target_site_that_there_is_not_is_refused_before_training(tmp_path) -> None:
    with pytest.raises((ConfigurationError, DataError), match="site_x"):
        fit(tmp_path, FACMIC(target="held_out_site", target_site="site_x"))
    records = tmp_path / "run" / "rounds.jsonl"
    assert '"fit_seconds"' not in (records.read_text() if records.exists() else "")


def test_a_site_without_validation_images_cannot_be_its_own_target(tmp_path) -> None:
    with pytest.raises(DataError, match="no validation image"):
        fit(tmp_path, FACMIC(target="own_unlabelled"), sites=data(validation_fraction=0.0))


# -- LoRA --------------------------------------------------------------------------------------------------------

RECTANGULAR = partial(LoRATower, rank=4, targets=("mlp_in", "mlp_out", "q"))


def updates(adapter) -> dict[str, torch.Tensor]:
    """What each layer gained, (out, in), by block and layer, in float64."""
    frozen = adapter.encoder.block_weights(adapter.targets)
    return {
        f"{index}.{target}": weight.detach().double() - frozen[index][target].double()
        for index, weights in enumerate(adapter.weights())
        for target, weight in weights.items()
    }


def merge_error(method) -> dict[str, float]:
    """By layer, distance of the merged update to the mean of the clients' updates, relative to it."""
    made = federation(method(), adapter=RECTANGULAR)
    for index, name in enumerate(made.clients):
        made.deliver(name)
        client = made.clients[name]
        for number, key in enumerate(client.learnable):
            parameter = dict(client.named_parameters())[key]
            torch.nn.init.normal_(parameter, std=0.3, generator=generator(100 * index + number))
    own = [updates(client.adapter) for client in made.clients.values()]
    sizes = torch.tensor([made.server.weights[name] for name in made.clients], dtype=torch.float64)
    made.merge({name: made.collect(name) for name in made.clients})
    merged = updates(made.generic.adapter)
    errors = {}
    for key, update in merged.items():
        mean = torch.einsum("k,kij->ij", sizes / sizes.sum(), torch.stack([part[key] for part in own]))
        errors[key] = ((update - mean).norm() / mean.norm()).item()
    return errors


def test_the_merge_of_ffa_lora_is_exact_and_that_of_fedlora_is_not() -> None:
    """On layers that are not square, so that a transposed factor would show."""
    exact, biased = merge_error(FFALoRA), merge_error(FedLoRA)
    assert set(exact) == {f"{index}.{target}" for index in range(4) for target in ("mlp_in", "mlp_out", "q")}
    assert max(exact.values()) < 1e-5
    assert min(biased.values()) > 0.3


def test_ffa_lora_has_one_a_everywhere_which_never_travels() -> None:
    made = federation(FFALoRA())
    start = {key: value.clone() for key, value in made.generic.adapter.state_dict().items()}
    one_round(made)
    first = made.clients["site_a"]
    a, b = ([key for key in start if key.endswith(end)] for end in (".A", ".B"))
    assert len(a) == len(b) == 4 * 2
    for key in a:
        assert same(made, key)
        assert torch.equal(first.adapter.state_dict()[key], start[key])
        assert start[key].any()
    assert list(made.state[NET]) == list(made.collect("site_a")[NET]) == list(first.received[NET]) == b
    assert not any(torch.equal(made.state[NET][key], start[key]) for key in b)
    assert not any(p.requires_grad for key, p in first.adapter.named_parameters() if key in a)


def test_the_saved_state_of_ffa_lora_predicts_the_same_in_another_federation() -> None:
    """B means nothing without its A."""
    made, batch = federation(FFALoRA()), next(iter(prepared().evaluation_loader("site_a", "test")))[0]
    one_round(made)
    other = federation(FFALoRA(), seed=1)
    frozen = other.server.load_state_parts(copy.deepcopy(made.server.state_parts()))
    other.client.load_frozen(frozen)
    client = other.client.model
    client.set_anchors(other.server.anchors)
    load_client_part(client, copy.deepcopy(client_part(made.clients["site_a"])))
    with torch.no_grad():
        logits = [predicted(f, c, c.taps_of(batch)) for f, c in ((made, made.clients["site_a"]), (other, client))]
    assert torch.allclose(*logits, atol=1e-5)


def test_fedsa_lora_shares_a_and_keeps_b_and_the_head() -> None:
    made = federation(FedSALoRA())
    start = {key: value.clone() for key, value in made.generic.adapter.state_dict().items()}
    one_round(made)
    for key in start:
        assert same(made, key) == key.endswith(".A")
    assert set(made.state[NET]) == {key for key in start if key.endswith(".A")}
    assert {"head.weight", "head.bias"} <= set(start)
    generic = made.generic.adapter.state_dict()
    assert all(torch.equal(generic[key], start[key]) for key in start if not key.endswith(".A"))


@pytest.mark.parametrize("method", LORAS)
def test_untrained_lora_methods_are_zero_shot(method) -> None:
    """The head of FedSA-LoRA too, as it starts at the anchors."""
    zero, made = federation(ZeroShot(), anchors="text"), federation(method(), anchors="text")
    batch = next(iter(prepared().evaluation_loader("site_a", "test")))[0]
    with torch.no_grad():
        expected = zero.generic.adapter(zero.generic.taps_of(batch))
        for client in (made.generic, made.clients["site_a"]):
            assert (predicted(made, client, client.taps_of(batch)) - expected).abs().max() < 1e-4


# -- FedDPA ------------------------------------------------------------------------------------------------------


def alone(client, taps, **strengths) -> torch.Tensor:
    """Logits with the updates written out: frozen weights plus strength * scale * B A."""
    adapter = client.adapter
    weights = adapter.encoder.block_weights(adapter.targets)
    for index, of_block in enumerate(weights):
        for target, weight in of_block.items():
            for name, strength in strengths.items():
                update = adapter.get_submodule(f"{name}.{index}.{target}")
                weight = weight + strength * adapter.scale * update.B @ update.A
            of_block[target] = weight
    return adapter.head(adapter.encoder.embed(taps.tensors[0], weights))


def test_feddpa_joint_adds_both_and_a_new_site_gets_the_shared_one_alone() -> None:
    made = federation(FedDPA(), optimizer=partial(AdamW, lr=0.01))
    one_round(made)
    assert all(same(made, key) == key.startswith("lora.") for key in made.generic.adapter.state_dict())
    client, batch = made.clients["site_a"], batch_of(made.generic)
    with torch.no_grad():
        personal = predicted(made, client, batch.taps)
        generic = made.generic.adapter(batch.taps)
        assert torch.allclose(personal, alone(client, batch.taps, lora=1.0, personal=1.0), atol=1e-4)
        assert torch.allclose(generic, alone(client, batch.taps, lora=1.0), atol=1e-4)
        assert (personal - generic).abs().max() > 1e-3
    expected = F.cross_entropy(alone(client, batch.taps, lora=1.0, personal=1.0), batch.targets)
    assert made.method.loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_feddpa_joint_begins_as_one_model() -> None:
    made = federation(FedDPA())
    made.deliver("site_a")
    taps = batch_of(made.generic).taps
    with torch.no_grad():
        # the client adds an update of zeros that the generic model has not
        assert torch.allclose(predicted(made, made.clients["site_a"], taps), made.generic.adapter(taps), atol=1e-4)


class Watched(FedDPA):
    """Keeps, for every step, the epoch, the loss, and the loss written out; and the weights that it began with."""

    steps: ClassVar[list[tuple[int, float, float]]] = []
    weights: ClassVar[list[tuple[int, dict[str, torch.Tensor]]]] = []

    def loss(self, client, batch):
        loss = super().loss(client, batch)
        epoch = client.local_epoch
        strengths = {"lora": 0.5, "personal": 0.5} if epoch < self.personal_epochs else {"lora": 1.0}
        with torch.no_grad():
            expected = F.cross_entropy(alone(client, batch.taps, **strengths), batch.targets)
        Watched.steps.append((epoch, loss.item(), expected.item()))
        Watched.weights.append((epoch, client.own_state()))
        return loss


@pytest.mark.parametrize(("personal_epochs", "epochs"), [(1, 2), (2, 3), (1, 3)])
def test_feddpa_alternate_trains_one_branch_at_a_time_at_the_declared_strengths(personal_epochs, epochs) -> None:
    Watched.steps, Watched.weights = [], []
    made = federation(Watched(schedule="alternate", personal_epochs=personal_epochs), optimizer=partial(AdamW, lr=0.01))
    client = made.clients["site_a"]
    made.deliver("site_a")
    strengths = dict(client.adapter.strengths)
    scramble(client.adapter)
    with torch.no_grad():
        for parameter in client.adapter.parameters():
            parameter.mul_(0.3)
    LocalTrainer(trainer(max_epochs=epochs)).fit(made.modules["site_a"], prepared().train_loader("site_a", 1))
    Watched.weights.append((epochs, client.own_state()))
    assert sorted({epoch for epoch, _, _ in Watched.steps}) == list(range(epochs))
    for _, loss, expected in Watched.steps:
        assert loss == pytest.approx(expected, rel=1e-4)
    for (epoch, before), (_, after) in zip(Watched.weights, Watched.weights[1:], strict=False):
        branch = "personal" if epoch < personal_epochs else "lora"
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved == {key for key in before if key.startswith(f"adapter.{branch}.")}
    assert client.adapter.strengths == strengths


def test_feddpa_alternate_predicts_with_the_mix_and_a_new_site_with_the_shared_branch_in_full() -> None:
    """The shared branch was trained alone at full strength: so it is handed to a hospital that has no other."""
    made = federation(FedDPA(schedule="alternate"), optimizer=partial(AdamW, lr=0.01))
    one_round(made)
    client, taps = made.clients["site_a"], batch_of(made.generic).taps
    with torch.no_grad():
        mix = alone(client, taps, lora=0.5, personal=0.5)
        assert torch.allclose(predicted(made, client, taps), mix, atol=1e-4)
        assert torch.allclose(made.generic.adapter(taps), alone(made.generic, taps, lora=1.0), atol=1e-4)


def test_the_personal_model_of_feddpa_alternate_is_a_copy() -> None:
    """With half of each part; the client's own adapter keeps its strengths, with which the next fit begins."""
    made = federation(FedDPA(schedule="alternate"))
    one_round(made)
    client = made.clients["site_a"]
    strengths, own = dict(client.adapter.strengths), client.own_state()
    mixed = made.method.personal_model(client)
    assert mixed is not client.adapter
    assert (mixed.strengths["lora"], mixed.strengths["personal"]) == (0.5, 0.5)
    assert client.adapter.strengths == strengths == {"lora": 1.0, "personal": 1.0}
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.zero_()
    assert all(torch.equal(value, own[key]) for key, value in client.own_state().items())
    joint = federation(FedDPA())
    assert joint.method.personal_model(joint.clients["site_a"]) is joint.clients["site_a"].adapter


def test_feddpa_alternate_needs_an_epoch_for_each_part(tmp_path) -> None:
    assert FedDPA(personal_epochs=3).fewest_local_epochs == 1
    method = FedDPA(schedule="alternate", personal_epochs=3)
    assert method.fewest_local_epochs == 4
    with pytest.raises(ConfigurationError, match="max_epochs 4"):
        fit(tmp_path, method, trainer_options={"max_epochs": 3})


# -- what a method cannot run on ---------------------------------------------------------------------------------

WRONG = {
    PromptFL: (TransportPrompts, LinearHead, SideNetwork),
    FedPGP: (TransportPrompts, LoRATower, AttentionAdapter),
    FedOTP: (PromptLearner, LinearHead, SideNetwork),
    **dict.fromkeys(LORAS, (SideNetwork, LinearHead, PromptLearner)),
    FACMIC: (LinearHead, SideNetwork, PromptLearner),
}


@pytest.mark.parametrize(("method", "adapter"), [(m, a) for m, adapters in WRONG.items() for a in adapters])
def test_a_wrong_adapter_is_refused_before_training_with_the_remedy(tmp_path, method, adapter) -> None:
    words = f"method {method.__name__} runs on {method.requires.__name__}, not on {adapter.__name__}: leave"
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path, method(), model=template(adapter=adapter, anchors="text"))
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.fixture(scope="module")
def image_tower_alone(tmp_path_factory) -> FrozenCLIP:
    file = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    save_file(encoder().tower.visual.state_dict(), file)
    return FrozenCLIP("vit-nano", str(file))


@pytest.mark.parametrize("method", PROMPTS)
def test_without_a_text_tower_prompts_are_refused_before_training(tmp_path, method, image_tower_alone) -> None:
    with pytest.raises(ConfigurationError, match=r"no text tower, through which.*weights of the whole model"):
        fit(tmp_path, method(), model=FederatedClient(image_tower_alone, anchors="prototypes"))
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("method", [*LORAS, FedCLIP, FACMIC])
def test_without_a_text_tower_the_others_run_on_prototypes(tmp_path, method, image_tower_alone) -> None:
    summary = fit(tmp_path, method(), model=FederatedClient(image_tower_alone, anchors="prototypes"), rounds=1)
    assert summary["cost"]["upload_bytes_per_round"] > 0


@pytest.mark.parametrize("method", PROMPTS)
def test_prompt_methods_refuse_learned_anchors(method) -> None:
    with pytest.raises(ConfigurationError, match="learns prompts, not anchors"):
        federation(method(), anchors="learned")
