"""Adapters behind the encoder: a head that starts as zero-shot, and attention that starts as nearly nothing."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.prototypes import Prototypes
from pfedst_baselines.zero_shot import ZeroShot

from pfedst.adapters import AttentionAdapter, LinearHead
from pfedst.encoders import AnchorHead, Encoder, EncoderSpec, Taps
from pfedst.seeds import generator, seeded
from pfedst.testing import encoder, federation, prepared

FORMS = ("linear", "cosine")
NORMS = (False, True)


class Embeddings(Encoder):
    """Hands out what it is given, at the embedding's size of ViT-B/16."""

    offers = ("pooled",)
    spec = EncoderSpec(768, 12, 197, 512, 224, has_text=False)
    label, logit_scale = "embeddings", 100.0


def attention(size=512, batch_norm=False, seed=0) -> AttentionAdapter:
    source = Embeddings()
    source.spec = EncoderSpec(8, 1, 1, size, 8, has_text=False)
    with seeded(seed):
        head = AnchorHead("abcd", size, source.logit_scale, "prototypes")
        head.set_anchors(torch.randn(4, size))
        return AttentionAdapter(source, head, batch_norm)


def pooled(count=6, size=512, norm=10.0) -> torch.Tensor:
    """Embeddings as CLIP's: raw, of norm about 10."""
    return F.normalize(torch.randn(count, size, generator=generator(1)), dim=-1) * norm


# -- LinearHead --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("anchors", "reference"), [("text", ZeroShot), ("prototypes", Prototypes)])
@pytest.mark.parametrize("form", FORMS)
def test_an_untrained_head_is_the_reference_row_of_its_anchors(form, anchors, reference) -> None:
    zero = federation(reference())
    made = federation(FedAvg(), anchors=anchors, adapter=partial(LinearHead, form=form))
    images = next(iter(prepared().evaluation_loader("site_a", "test")))[0]
    taps = encoder().extract(images, "pooled")
    by_hand = encoder().logit_scale * F.normalize(taps.tensors[0], dim=-1) @ zero.generic.adapter.head.anchors.T
    for client in (*made.clients.values(), made.generic):
        with torch.no_grad():
            logits = made.method.personal_model(client).eval()(taps)
            expected = zero.method.personal_model(zero.generic).eval()(taps)
            assert torch.allclose(logits, expected, atol=1e-5)
        assert torch.allclose(logits, by_hand, atol=1e-5)
        assert logits.std() > 0.1  # and they tell something


@pytest.mark.parametrize("anchors_first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_head_starts_from_its_anchors_in_either_order(form, anchors_first) -> None:
    head, anchors, x = AnchorHead("abc", 5, 10.0, "prototypes"), torch.eye(3, 5) * 7, pooled(4, 5)
    if anchors_first:
        head.set_anchors(anchors)
        head.learn(form)
    else:
        head.learn(form)
        head.set_anchors(anchors)
    assert torch.allclose(head(x), 10.0 * F.normalize(x, dim=-1)[:, :3], atol=1e-5)
    assert set(head.state_dict()) == ({"weight", "bias"} if form == "linear" else {"weight"})


@pytest.mark.parametrize("form", FORMS)
def test_a_class_without_an_image_starts_at_logit_zero_and_can_be_learned(form) -> None:
    head, x = AnchorHead("abc", 5, 10.0, "prototypes"), pooled(4, 5)
    head.set_anchors(torch.diag(torch.tensor([1.0, 1.0, 0.0])) @ torch.eye(3, 5))
    head.learn(form)
    assert head(x)[:, 2].tolist() == [0.0] * 4
    F.cross_entropy(head(x), torch.full((4,), 2)).backward()
    # not so large that clipping by norm stops the other classes, or a second moment stops this one
    assert 0 < head.weight.grad[2].norm() < 1e4 * head.weight.grad[:2].norm()


def test_a_linear_head_trains_what_is_counted() -> None:
    made = federation(FedAvg(), adapter=LinearHead)
    E, K = encoder().spec.embedding, 3
    assert {key: tuple(t.shape) for key, t in made.state["net"].items()} == {
        "head.weight": (K, E),
        "head.bias": (K,),
    }


# -- AttentionAdapter --------------------------------------------------------------------------------------------


def reference(adapter, f, training=False) -> torch.Tensor:
    """f' by hand, in float64."""
    w1, b1, w2, b2 = (
        p.double() for p in (adapter.first.weight, adapter.first.bias, adapter.second.weight, adapter.second.bias)
    )
    f = f.double()
    hidden = f @ w1.T + b1
    if adapter.norm is None:
        hidden = (hidden.exp() - (-hidden).exp()) / (hidden.exp() + (-hidden).exp())
    else:
        norm = adapter.norm
        mean = hidden.mean(0) if training else norm.running_mean.double()
        variance = hidden.var(0, unbiased=False) if training else norm.running_var.double()
        hidden = (hidden - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    scores = (hidden @ w2.T + b2).exp()
    return scores / scores.sum(1, keepdim=True) * f


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", NORMS)
def test_attention_is_the_formula(batch_norm, training) -> None:
    adapter, f = attention(16, batch_norm), pooled(6, 16, norm=2.0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, generator=generator(parameter.numel()))
    if batch_norm:
        adapter.norm.running_mean.normal_(generator=generator(3))
        adapter.norm.running_var.uniform_(0.5, 2.0, generator=generator(4))
    expected = reference(adapter, f, training)
    attended = adapter.train(training).embed(Taps("pooled", (f,)))
    assert torch.allclose(attended.double(), expected, atol=1e-6)
    assert torch.allclose(adapter.eval().attention(f).sum(1), torch.ones(6))


@pytest.mark.parametrize(("norm", "least", "alike"), [(1.0, 0.999, 0.97), (10.0, 0.985, 0.9)])
@pytest.mark.parametrize("batch_norm", NORMS)
def test_untrained_attention_is_nearly_zero_shot(batch_norm, norm, least, alike) -> None:
    """The softmax over 512 channels is nearly flat in the beginning; less so the longer the raw embeddings are."""
    adapter, f = attention(batch_norm=batch_norm).eval(), pooled(200, norm=norm)
    with torch.no_grad():
        assert F.cosine_similarity(adapter.embed(Taps("pooled", (f,))), f).min() > least
        same = adapter(Taps("pooled", (f,))).argmax(1) == adapter.head(f).argmax(1)
    assert same.float().mean() > alike


@pytest.mark.parametrize("method", [FedCLIP, FACMIC])
def test_untrained_attention_predicts_as_the_encoder(method) -> None:
    made = federation(method(), anchors="text")
    taps = encoder().extract(next(iter(prepared().evaluation_loader("site_a", "test")))[0], "pooled")
    with torch.no_grad():
        logits = made.generic.adapter.eval()(taps)
        assert torch.equal(logits.argmax(1), made.generic.adapter.head(taps.tensors[0]).argmax(1))


@pytest.mark.parametrize("batch_norm", NORMS)
def test_cached_raw_embeddings_train_the_same_bits(batch_norm) -> None:
    batches = list(prepared().train_loader("site_a", 1))
    cache = [encoder().extract(images, "pooled") for images, _ in batches]
    ways = {
        "recomputed": lambda images, _: encoder().extract(images, "pooled"),
        "cached": lambda _, taps: taps,
        "normalised": lambda _, taps: Taps("pooled", (F.normalize(taps.tensors[0], dim=-1),)),
    }
    weights = {}
    for name, taps_of in ways.items():
        made = federation(FedCLIP(), adapter=partial(AttentionAdapter, batch_norm=batch_norm))
        client = made.generic.train()
        optimizer = torch.optim.AdamW(client.parameters(), lr=1e-3)
        for _ in range(3):
            for (images, targets), taps in zip(batches, cache, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(client.adapter(taps_of(images, taps)), targets).backward()
                optimizer.step()
        weights[name] = client.shared_state()
    assert all(torch.equal(value, weights["cached"][key]) for key, value in weights["recomputed"].items())
    assert not torch.allclose(weights["normalised"]["first.weight"], weights["cached"]["first.weight"], atol=1e-5)


def test_a_lone_training_image_goes_by_running_statistics_and_leaves_them() -> None:
    adapter, f = attention(16, batch_norm=True), pooled(1, 16)
    adapter.norm.running_mean.normal_(generator=generator(3))
    adapter.norm.running_var.uniform_(0.5, 2.0, generator=generator(4))
    before = {key: value.clone() for key, value in adapter.norm.state_dict().items()}
    lone = adapter.train().embed(Taps("pooled", (f,)))
    assert torch.allclose(lone, adapter.eval().embed(Taps("pooled", (f,))))
    assert all(torch.equal(value, before[key]) for key, value in adapter.norm.state_dict().items())
    lone.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in adapter.norm.parameters())
    adapter.train().embed(Taps("pooled", (pooled(2, 16),)))
    assert not torch.equal(adapter.norm.running_mean, before["running_mean"])
    assert adapter.norm.num_batches_tracked == before["num_batches_tracked"] + 1


def test_names_in_the_state_dict() -> None:
    plain = {f"{layer}.{name}" for layer in ("first", "second") for name in ("weight", "bias")}
    assert set(attention(4).state_dict()) == plain
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(attention(4, batch_norm=True).state_dict()) == plain | {
        f"norm.{name}" for name in {"weight", "bias"} | statistics
    }
