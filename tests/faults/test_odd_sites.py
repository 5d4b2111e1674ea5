"""Sites with hardly anything in them: every method runs on them, twice to the same bits, and tells only numbers."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedbn import FedBN
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.scaffold import SCAFFOLD
from torch import nn
from torch.func import functional_call
from torch.optim import SGD

from pfedst.adapters import AttentionAdapter, WholeModel
from pfedst.client.client import Client
from pfedst.client.state import SiteState
from pfedst.data import SyntheticSites
from pfedst.data.camera import Camera
from pfedst.data.sets.synthetic import CLASS_NAMES, ArraySource
from pfedst.data.sites import LabelledImages, Sites
from pfedst.encoders import Taps
from pfedst.errors import DataError
from pfedst.evaluation import METRICS
from pfedst.messages.requests import Reply
from pfedst.methods.merging import weighted_mean
from pfedst.methods.registry import registered_methods
from pfedst.seeds import generator
from pfedst.state.run_state import RunState
from pfedst.testing import federation, fit, template
from pfedst.testing.small import encoder
from tests.baselines.models import Small, pictures
from tests.rounding import alike

METHODS = registered_methods()
MODELS = {"PFedMe": {"optimizer": partial(SGD, lr=0.005)}}
BATCH = 8
ODD = {
    "lone": {"train": [1], "test": [2]},  # one image, too few for a validation; tested on a class it has never seen
    "tail": {"train": [0, 1] * 4 + [1], "validation": [], "test": [0, 1, 2]},  # a last batch of one; a class is absent
    "one_class": {"train": [2] * 10, "validation": [2], "test": [2, 2]},
}
"""Labels of the images of each site; nowhere is there one of the fourth class."""


class Table(SyntheticSites):
    """SYNTHETIC images with the labels of a table."""

    def __init__(self, table, **options) -> None:
        sizes = [4] * len(table)
        super().__init__(len(table), 4, 32, sizes, sizes, **({"batch_size": BATCH, "audit": "off"} | options))
        self.table = table

    def read(self) -> Sites:
        camera, rng = Camera(np.ones(3), np.zeros(3), 1.0, np.zeros(2)), np.random.default_rng(0)
        splits = {
            site: {
                split: LabelledImages(ArraySource(self._draw(np.array(labels, dtype=int), camera, rng)), labels)
                for split, labels in parts.items()
            }
            for site, parts in self.table.items()
        }
        return Sites(CLASS_NAMES[:4], splits)


class Layers(WholeModel):
    """A batch norm within a block, as a user's own model may have it."""

    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        self.body = nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fc = nn.Linear(6, len(head.class_names))

    def forward(self, taps):
        return self.fc(self.body(taps.tensors[0].flatten(1)))


class Deep(WholeModel):
    """As a ResNet on small images: what reaches the last norm layer is one pixel."""

    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Linear(4, len(head.class_names))

    def forward(self, taps):
        return self.fc(self.norm(input=self.conv(taps.tensors[0])).flatten(1))


def numbers(text):
    """JSON in which every number is one: neither NaN nor Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} in {text[:200]}")

    return json.loads(text, parse_constant=refuse)


def flat(parts, place=""):
    """The tensors of nested dicts by their path."""
    if isinstance(parts, torch.Tensor):
        return {place: parts}
    return {key: tensor for name, part in parts.items() for key, tensor in flat(part, f"{place}/{name}").items()}


def run(folder, method, table, trainer_options=None, model=None, **options):
    """Run two rounds unless told; return the tables of the summary, the records, and the last tensors of all."""
    epochs = {"max_epochs": method.fewest_local_epochs}
    model = template(method, **(model or MODELS.get(type(method).__name__, {})))
    fit(folder, method, sites=Table(table), model=model, trainer_options=epochs | (trainer_options or {}), **options)
    summary = numbers((folder / "run" / "summary.json").read_text())
    records = [numbers(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
    tables = {name: summary[name] for name in ("personal", "generic", "trained", "best_on_validation")}
    last = RunState(folder / "run/state").last_round()
    sites = {
        f"client {name}": SiteState(folder / "run/sites", name).read(number).parts["client"]
        for name, number in last.about["after"].items()
        if number
    }
    return SimpleNamespace(tables=tables, records=records, state=flat({**last.parts, **sites}))


def twice(tmp_path, make, table=ODD, **options):
    """A run, after checks that hold for every run: finite, and bit for bit the same a second time."""
    one = run(tmp_path / "one", make(), table, **copy.deepcopy(options))
    with pytest.MonkeyPatch.context() as patch:  # the FLOPs are in nothing that is compared
        patch.setattr(Client, "_cost", lambda self, name, request: Reply({"flops_per_image": 0.0}))
        other = run(tmp_path / "other", make(), table, **copy.deepcopy(options))
    assert one.tables == other.tables
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(tensor, other.state[key]) for key, tensor in one.state.items())
    assert all(torch.isfinite(tensor).all() for tensor in one.state.values())
    for key, tensor in one.state.items():
        if key.startswith("/server/method/net/"):
            own = key.replace("/server/method/net/", "/model/adapter.")
            trained = [t for k, t in one.state.items() if k.startswith("/client ") and k.endswith(own)]
            # a method that trains nothing has no fits
            assert not trained or {(t.dtype, t.shape) for t in trained} == {(tensor.dtype, tensor.shape)}, key
    return one


# -- every method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_odd_sites(name, tmp_path) -> None:
    found = twice(tmp_path, METHODS[name], evaluate_every=2)
    models = ("personal", "generic") if METHODS[name].has_generic else ("personal",)
    for model in models:
        clients = found.tables[model]["clients"]
        assert set(clients) == set(ODD)
        # one class among the targets: there is nothing to rank; three: there is
        assert {site: metrics["auroc"] is None for site, metrics in clients.items()} == {
            "lone": True,
            "tail": False,
            "one_class": True,
        }
        assert all(0 <= clients[site][metric] <= 1 for site in ODD for metric in METRICS if metric != "auroc")
        assert clients["lone"]["accuracy"] == clients["lone"]["balanced_accuracy"]
    for record in found.records:
        validation = record.get("received", {}).get("validation", {})
        for metrics in [validation[model] for model in models if validation]:
            assert (set(metrics.values()) == {None}) == (record["client"] != "one_class")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_one_site_of_one_image(name, tmp_path) -> None:
    found = run(tmp_path, METHODS[name](), {"only": ODD["lone"]}, rounds=1)
    assert found.tables["best_on_validation"] is None  # there is no validation image at all
    assert found.tables["personal"]["mean"]["accuracy"] in (0, 1)
    assert found.tables["personal"]["std"]["accuracy"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in found.state.values())


@pytest.mark.parametrize(
    "make",
    [
        partial(FedCLIP, objective="infonce"),
        partial(FACMIC, objective="infonce", finetune_epochs=1),
        partial(FACMIC, norm_statistics="private"),
        partial(FACMIC, target="held_out_site", target_site="lone"),
    ],
    ids=["FedCLIP infonce", "FACMIC infonce", "FACMIC private", "FACMIC one image as target"],
)
def test_other_forms_run_on_odd_sites(make, tmp_path) -> None:
    place = make().unlabelled(SimpleNamespace(name="tail"))
    twice(tmp_path, make, held_out_sites=[place[0]] if place else [])


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=["accumulated, by norm", "accumulated, by value", "bf16"],
)
@pytest.mark.parametrize("make", [SCAFFOLD, FACMIC])
def test_trainer_options_on_odd_sites(make, options, tmp_path) -> None:
    """Four batches a site, the last of one image, in groups of three; and one batch where there should be three."""
    table = {"four": {"train": [0, 1, 2] * 8 + [0], "test": [0, 1]}, "lone": ODD["lone"]}
    twice(tmp_path, make, table, trainer_options=options)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_site_that_cannot_train_or_be_tested_is_named(split) -> None:
    sites = Table(ODD | {"empty": ODD["lone"] | {split: []}})
    with pytest.raises(DataError, match=f'site "empty" has no {split} image'):
        sites.prepare(encoder().preprocessing)


# -- batch norm and one image ------------------------------------------------------------------------------------


def with_three_images(make):
    """An adapter that has a batch norm, and what it takes."""
    if make is not AttentionAdapter:
        made = Small(FedAvg(), make, {"a": pictures("a", 3)})
        return made.generic.adapter, "images", made.batch("a").taps.tensors[0]
    made = federation(FedAvg(), adapter=partial(AttentionAdapter, batch_norm=True))
    return made.generic.adapter, "pooled", torch.randn(3, encoder().spec.embedding, generator=generator(0))


@pytest.mark.parametrize(("make", "name"), [(Layers, "body.1"), (Deep, "norm"), (AttentionAdapter, "norm")])
@pytest.mark.parametrize("copied", [False, True], ids=["as built", "copied"])
def test_one_image_goes_by_running_statistics_and_leaves_them(make, name, copied) -> None:
    adapter, kind, inputs = with_three_images(make)
    if copied:  # as every client is, before and after it has trained
        adapter = copy.deepcopy(copy.deepcopy(adapter).train())
    norm = adapter.get_submodule(name)
    norm.running_mean.uniform_(-1, 1, generator=generator(1))
    norm.running_var.uniform_(0.5, 2, generator=generator(2))
    before = copy.deepcopy(norm.state_dict())
    lone, three = Taps(kind, (inputs[:1],)), Taps(kind, (inputs,))
    logits = adapter.train()(lone)
    assert norm.training
    logits.sum().backward()
    assert torch.isfinite(norm.weight.grad).all()
    with torch.no_grad():
        # with and without gradients, in training and in evaluation: torch may choose other kernels for each
        assert alike(functional_call(adapter, dict(adapter.named_parameters()), (lone,)), logits.detach(), 1e-4)
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        assert alike(adapter.eval()(lone), logits.detach(), 1e-4)
        assert not norm.training
        adapter.train().train()(three)  # and three by their own, once
    assert norm.num_batches_tracked == before["num_batches_tracked"] + 1
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_a_norm_layer_that_fails_is_still_in_training_and_one_in_evaluation_stays_there() -> None:
    adapter = Small(FedAvg(), Layers, {"a": pictures("a", 3)}).generic.adapter.train()
    norm = adapter.get_submodule("body.1")
    norm.running_mean = norm.running_mean.double()
    with pytest.raises(RuntimeError, match="dtype|type"):
        norm(torch.zeros(1, 6))
    assert norm.training
    norm.running_mean = norm.running_mean.float()
    norm.eval()(torch.zeros(1, 6))
    assert not norm.training
    norm(torch.zeros(2, 6))
    assert not norm.training


@pytest.mark.parametrize("name", ["FedAvg", "FedBN", "APFL", "SCAFFOLD", "PFedMe"])
@pytest.mark.parametrize("model", [Layers, Deep])
def test_a_model_of_ones_own_trains_on_a_last_batch_of_one(name, model) -> None:
    sites = {"lone": pictures("lone", 1), "tail": pictures("tail", 5)}
    made = Small(METHODS[name](), model, sites, partial(SGD, lr=0.005), batch_size=4).rounds(2, epochs=2)
    start = Small(METHODS[name](), model, sites)
    assert all(torch.isfinite(t).all() for client in made.clients.values() for t in client.own_state().values())
    assert any(not torch.equal(tensor, start.net[key]) for key, tensor in made.net.items())
    assert {key: t.dtype for key, t in made.net.items()} == {key: t.dtype for key, t in start.net.items()}


def test_counters_of_norm_layers_are_merged_to_whole_numbers() -> None:
    sites = {"lone": pictures("lone", 1), "tail": pictures("tail", 9)}
    made = Small(FedAvg(weighting="samples"), Layers, sites, batch_size=4).rounds(1, epochs=3)
    # two whole batches in each of three epochs there, none here: 0.1 * 0 + 0.9 * 6, rounded
    assert made.net["body.1.num_batches_tracked"].equal(torch.tensor(5))
    own = Small(FedBN(), Layers, sites, batch_size=4).rounds(1, epochs=3)
    counted = {name: int(c.adapter.get_buffer("body.1.num_batches_tracked")) for name, c in own.clients.items()}
    assert counted == {"lone": 0, "tail": 6}


def test_a_site_of_one_image_beside_one_of_ten_thousand() -> None:
    states = [{"w": torch.tensor([1.0]), "n": torch.tensor(0)}, {"w": torch.tensor([3.0]), "n": torch.tensor(1250)}]
    merged = weighted_mean(states, [1.0, 10_000.0])
    assert merged["w"].item() == pytest.approx(30_001 / 10_001, abs=2**-22)
    assert merged["w"].item() != 3
    assert merged["n"].equal(torch.tensor(1250))
