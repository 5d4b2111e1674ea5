"""Logits, prompts, optimal transport and losses are of float32 in mixed precision: cosines of bfloat16 would tie."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.fedotp import FedOTP
from pfedst_baselines.fedper import FedPer
from pfedst_baselines.fedpgp import FedPGP
from pfedst_baselines.promptfl import PromptFL
from torch import nn

from pfedst.adapters import LinearHead, WholeModel
from pfedst.client.module import FederatedClient
from pfedst.encoders import AnchorHead, Pixels, computes_in_float32
from pfedst.evaluation.metrics import classification_metrics
from pfedst.methods.interface import Batch
from pfedst.methods.losses import in_batch_contrastive, local_maximum_mean_discrepancy
from pfedst.seeds import generator, seeded
from pfedst.testing import federation, prepared

MIXED = partial(torch.autocast, "cpu", torch.bfloat16)
K, E = 4, 512


def head_of(kind, form=None) -> AnchorHead:
    with seeded(0):
        head = AnchorHead("abcd", E, 100.0, kind)
        if kind != "learned":
            head.set_anchors(torch.randn(K, E))
            if form is not None:
                head.learn(form)
    return head


def embeddings(count=400, spread=0.05):
    """Embeddings that lie close together, as those of medical images do, in bfloat16 as a tower gives them."""
    middle = torch.randn(E, generator=generator(1))
    return (middle + spread * torch.randn(count, E, generator=generator(2))).bfloat16()


@pytest.mark.parametrize("form", [None, "cosine", "linear"])
@pytest.mark.parametrize("kind", ["text", "prototypes", "learned"])
def test_logits_in_mixed_precision_are_those_of_float32(kind, form) -> None:
    head, x = head_of(kind, form), embeddings()
    with MIXED(), torch.no_grad():
        logits, given = head(x), head.cosine_logits(x, head.unit_anchors())
    assert logits.dtype == given.dtype == torch.float32
    assert torch.equal(logits, head(x.float()))
    assert torch.equal(given, head.cosine_logits(x.float(), head.unit_anchors()))


def test_no_images_tie_and_auroc_is_that_of_float32() -> None:
    head, x = head_of("text"), embeddings()
    with MIXED(), torch.no_grad():
        logits = head(x)
        ties = 100 * (F.normalize(x, dim=-1) @ head.anchors.T)  # as it was
    margins = (logits[:, 0] - logits[:, 1]).tolist()
    assert len(set(margins)) > 0.99 * len(margins)
    assert len(set((ties[:, 0] - ties[:, 1]).tolist())) < 0.5 * len(margins)  # the oracle sees the fault
    with torch.no_grad():
        targets = head(x.float() + 0.02 * torch.randn(x.shape, generator=generator(3))).argmax(1)
        expected = classification_metrics(head(x.float()).softmax(1), targets)["auroc"]
    assert classification_metrics(logits.softmax(1), targets)["auroc"] == expected


@pytest.mark.parametrize(
    "method",
    [PromptFL, FedPGP, FedOTP, FedCLIP, partial(FedCLIP, objective="infonce"), FACMIC],
    ids=["PromptFL", "FedPGP", "FedOTP", "FedCLIP", "infonce", "FACMIC"],
)
def test_methods_on_embeddings_and_prompts_compute_in_float32(method) -> None:
    made = federation(method())
    client = made.generic.eval()
    images, targets = next(iter(prepared().train_loader(["site_a"], 0)))
    batch = Batch(client.taps_of(images), targets)
    with torch.no_grad():
        client.received = made.server.message_to("site_a")
        logits, loss = made.method.personal_model(client)(batch.taps), made.method.loss(client, batch)
        with MIXED():
            mixed, mixed_loss = made.method.personal_model(client)(batch.taps), made.method.loss(client, batch)
    assert torch.equal(mixed, logits)
    assert torch.equal(mixed_loss, loss)


def test_gradients_of_a_head_are_those_of_float32() -> None:
    head, x = head_of("text", "linear"), embeddings(8)
    targets = torch.arange(8) % K
    F.cross_entropy(head(x.float()), targets).backward()
    expected, head.weight.grad = head.weight.grad, None
    with MIXED():
        loss = F.cross_entropy(head(x), targets)
    loss.backward()
    assert torch.equal(head.weight.grad, expected)


def test_losses_of_two_embeddings_compute_in_float32() -> None:
    head, one, other, targets = head_of("text"), embeddings(12), embeddings(12, 0.1), torch.arange(12) % K
    soft = torch.randn(12, K, generator=generator(4)).softmax(1)
    with MIXED():
        contrast = in_batch_contrastive(one, head, targets)
        distance = local_maximum_mean_discrepancy(one, targets, other, soft)
    assert torch.equal(contrast, in_batch_contrastive(one.float(), head, targets))
    assert torch.equal(distance, local_maximum_mean_discrepancy(one.float(), targets, other.float(), soft))


class Convolution(WholeModel):
    """A small network whose classifier is its last layer."""

    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        self.body = nn.Linear(3, 16)
        self.fc = nn.Linear(16, len(head.class_names))

    def features(self, taps):
        return self.body(taps.tensors[0].mean((-2, -1))).relu()

    def forward(self, taps):
        return self.fc(self.features(taps))


@pytest.mark.parametrize("method", [FedAvg, FedPer])
def test_the_classifier_of_a_whole_model_computes_in_float32(method) -> None:
    template = FederatedClient(Pixels(8), Convolution)
    model = template.build("abc", method(), 0).model
    taps = model.taps_of(torch.randn(5, 3, 8, 8, generator=generator(0)))
    for adapter in (model.adapter, copy.deepcopy(model.adapter)):
        with MIXED():
            features, logits = adapter.features(taps), adapter(taps)
            assert torch.is_autocast_enabled("cpu")  # for what follows
        assert features.dtype == torch.bfloat16
        assert torch.equal(logits, adapter.fc(features.float()))


def test_a_layer_that_fails_leaves_autocast_as_it_was() -> None:
    layer = nn.Linear(2, 2)
    computes_in_float32(layer)
    with MIXED():
        with pytest.raises(RuntimeError):
            layer(torch.ones(1, 3))
        assert torch.is_autocast_enabled("cpu")


def test_a_linear_head_on_embeddings_is_the_same_in_any_precision() -> None:
    made = federation(FedAvg(), adapter=LinearHead)
    client = made.generic.eval()
    taps = client.taps_of(next(iter(prepared().evaluation_loader("site_a", "test")))[0])
    with torch.no_grad():
        plain = client.adapter(taps)
        with MIXED():
            assert torch.equal(client.adapter(taps), plain)
