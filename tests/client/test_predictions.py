"""Predictions stay at their site: which images, labels and logits they hold, and when there is a file."""

import json
from dataclasses import dataclass

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from safetensors import safe_open
from safetensors.torch import load_file, save

from pfedst.client.predictions import FORMAT, Predictions
from pfedst.errors import StateError
from pfedst.evaluation.counts import BINS
from pfedst.messages.requests import Request
from pfedst.methods.pfedst import PFedST
from tests.client.clients import SPLITS, client_of, fit_request, server_of


def evaluated(method, folder, finetune_epochs=0):
    """A client after a fit and an evaluation of it, and the reply."""
    client = client_of(method, folder)
    server = server_of(client)
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    request = Request("evaluate", "run", 1, 1, evaluate=SPLITS, parts=server.parts_for("site_a"))
    return client, client.answer("site_a", request).values["evaluated"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sites")


@pytest.fixture(scope="module")
def made(folder):
    return evaluated(PFedST(), folder)


@pytest.mark.parametrize("split", SPLITS)
def test_the_metrics_of_the_reply_can_be_computed_from_them(made, folder, split) -> None:
    client, reply = made
    found = load_file(folder / f"site_a/predictions/{split}.safetensors")
    images = client.data.samples("site_a", split)
    assert {len(found[key]) for key in ("id", "group", "label", "logits.personal", "logits.generic")} == {images}
    for model in ("personal", "generic"):
        logits = found[f"logits.{model}"]
        assert (logits.dtype, logits.shape[1]) == (torch.float32, 3)
        accuracy = (logits.argmax(1) == found["label"]).double().mean().item()
        assert reply[split][model]["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert not torch.equal(found["logits.personal"], found["logits.generic"])


@pytest.mark.parametrize("split", SPLITS)
def test_they_say_of_which_images_site_and_round_they_are(made, folder, split) -> None:
    client, _ = made
    file = folder / f"site_a/predictions/{split}.safetensors"
    found = load_file(file)
    labels = torch.cat([targets for _, targets in client.data.evaluation_loader("site_a", split)])
    assert torch.equal(found["label"], labels)
    assert (found["id"].dtype, found["id"].shape[1]) == (torch.uint8, 16)
    assert len(found["id"].unique(dim=0)) == len(labels), "each image has a hash of its own"
    ids, groups = client.data.identities("site_a", split)
    assert torch.equal(found["id"], ids)
    assert torch.equal(found["group"], groups)
    assert found["round"].item() == 1
    counts = client.data.class_counts("site_a", "train")
    assert found["train_counts.natural"].tolist() == list(counts) == found["train_counts.sampled"].tolist()
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    classes = list(client.data.class_names)
    assert json.loads(about["pfedst"]) == {"format": FORMAT, "site": "site_a", "classes": classes}


def test_they_are_of_the_site_alone_and_for_its_owner(made, folder) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["site_a"]
    assert sorted(path.name for path in (folder / "site_a/predictions").iterdir()) == [
        "test.safetensors",
        "validation.safetensors",
    ]
    assert (folder / "site_a").stat().st_mode & 0o077 == 0


def test_nothing_of_them_is_in_the_reply(made) -> None:
    """Metrics and counts: every list is one of classes or of bins of confidence, none is of images."""
    client, reply = made

    def lengths(value):
        if isinstance(value, dict):
            return [length for part in value.values() for length in lengths(part)]
        if isinstance(value, list):
            return [len(value), *(length for part in value for length in lengths(part))]
        return []

    assert json.loads(json.dumps(reply)) == reply
    assert set(lengths(reply)) == {len(client.data.class_names), BINS}


def test_one_model_only_where_the_other_is_the_same(tmp_path) -> None:
    evaluated(FedAvg(), tmp_path)
    found = load_file(tmp_path / "site_a/predictions/test.safetensors")
    assert [key for key in found if key.startswith("logits.")] == ["logits.personal"]


def test_an_evaluation_alone_keeps_none(tmp_path) -> None:
    client = client_of(PFedST(), tmp_path)
    client.keeps_predictions = False
    server = server_of(client)
    client.answer("site_a", Request("evaluate", "run", evaluate=SPLITS, parts=server.parts_for("site_a")))
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_classes_are_computed_from_them_and_hold_no_image(made, folder) -> None:
    client, reply = made
    values = client.answer("site_a", Request("class_metrics", "run", 1)).values
    found, images = values["class_metrics"], client.data.samples("site_a", "test")
    assert json.loads(json.dumps(values)) == values
    assert (found["images"], found["units"], found["without_unit"]) == (images, images, 0)
    labels = load_file(folder / "site_a/predictions/test.safetensors")["label"]
    for model in ("personal", "generic"):
        confusion = torch.tensor(reply["test"][model]["counts"]["confusion"])
        for index, table in enumerate(found[model]):
            of_class = confusion[index].sum().item()
            assert table["images"] == table["units"] == of_class == (labels == index).sum().item()
            hits, taken = confusion[index, index].item(), confusion[:, index].sum().item()
            assert table["sensitivity"]["value"] == pytest.approx(hits / of_class)
            assert table["specificity"]["value"] == pytest.approx(1 - (taken - hits) / (images - of_class))
    again = client.answer("site_a", Request("class_metrics", "run", 1)).values
    assert again == values, "their seed is that of the run, the site and the round"


def test_metrics_of_classes_need_the_predictions_of_that_round(made, tmp_path) -> None:
    client, _ = made
    with pytest.raises(StateError, match="holds the predictions after round 1, not after round 2"):
        client.answer("site_a", Request("class_metrics", "run", 2))
    with pytest.raises(StateError, match=r"site_b/predictions/test.safetensors is missing or damaged"):
        client.answer("site_b", Request("class_metrics", "run", 1))
    file = tmp_path / "predictions/test.safetensors"
    file.parent.mkdir()
    for content in (b"", save({"label": torch.zeros(1)}), save({"label": torch.zeros(1)}, {"pfedst": "["})):
        file.write_bytes(content)
        with pytest.raises(StateError, match="is missing or damaged"):
            Predictions.load(tmp_path, "test", 1)


@dataclass
class Data:
    """Two images of one site."""

    class_names = ("x", "y")

    def identities(self, site, split):
        return torch.zeros(2, 16, dtype=torch.uint8), torch.ones(2, 16, dtype=torch.uint8)

    def subgroups_of(self, site, split):
        return {}

    def class_counts(self, site, split):
        return [3, 4]

    def sampled_counts(self, sites):
        return [4, 4]


def predictions(site="a", scale=1.0):
    return Predictions.of(Data(), site, "test", {"personal": torch.eye(2).half() * scale}, torch.tensor([0, 1]))


def test_a_later_evaluation_replaces_them(tmp_path) -> None:
    predictions().save(tmp_path / "a", "test", 1)
    (tmp_path / "a/predictions/.test.safetensors.1.part").write_text("left by a killed process")
    predictions(scale=2.0).save(tmp_path / "a", "test", 2)
    assert [path.name for path in (tmp_path / "a/predictions").iterdir()] == ["test.safetensors"]
    found = load_file(tmp_path / "a/predictions/test.safetensors")
    assert (found["round"].item(), found["logits.personal"].max().item()) == (2, 2.0)
    assert found["logits.personal"].dtype == torch.float32


def test_the_unit_is_the_patient_or_the_image_where_no_patient_is_known(tmp_path) -> None:
    """Two images of one patient, one image of another, and two of nobody; a saved copy in another order is the same."""
    patients = torch.tensor([[7], [7], [9], [0], [0]], dtype=torch.uint8).expand(5, 16)
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None].expand(5, 16)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.1, 0.2], [0.0, 3.0]])
    made = Predictions(
        "a", ("x", "y"), {"id": images, "group": patients, "label": torch.arange(5) % 2, "logits.personal": logits}
    )
    found = made.class_metrics(seed=3)
    assert (found["images"], found["units"], found["without_unit"]) == (5, 4, 2)
    assert [table["units"] for table in found["personal"]] == [3, 2]
    assert [table["images"] for table in found["personal"]] == [3, 2]
    turned = Predictions("a", ("x", "y"), {key: tensor.flip(0).contiguous() for key, tensor in made.tensors.items()})
    turned.save(tmp_path, "test", 4)
    loaded = Predictions.load(tmp_path, "test", 4)
    assert (loaded.site, loaded.class_names) == ("a", ("x", "y"))
    assert loaded.class_metrics(seed=3) == found


def test_a_disk_that_refuses_is_told(tmp_path, monkeypatch) -> None:
    def refuse(_) -> None:
        raise OSError(28, "No space left on device")

    predictions().save(tmp_path / "a", "test", 1)
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StateError, match=r"test.safetensors cannot be written"):
        predictions().save(tmp_path / "a", "test", 2)
    assert load_file(tmp_path / "a/predictions/test.safetensors")["round"].item() == 1
