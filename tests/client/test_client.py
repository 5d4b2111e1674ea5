"""A client answers requests: each from the state that the request names, twice the same, and with no trace of others."""

import json
import shutil

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.scaffold import SCAFFOLD
from safetensors.torch import load_file

from pfedst.client.state import CLIENT, SiteState, load_client_part
from pfedst.errors import ConfigurationError, StateError
from pfedst.messages.payload import NET
from pfedst.messages.requests import ANCHORS, PROTOTYPES, Request
from pfedst.methods.pfedst import PFedST
from pfedst.testing import small
from tests.client.clients import SPLITS, client_of, fit_request, same, server_of, without_times


@pytest.fixture
def made(tmp_path):
    """A client of pFedST, its server, and a list of the sites whose fits were run."""
    return make(PFedST(), tmp_path / "sites")


def make(method, sites, **options):
    client = client_of(method, sites, **options)
    server = server_of(client)
    return client, server, counted(client)


def counted(client):
    """The names of the clients that are trained, one for each fit."""
    fits, fit = [], client.local.fit

    def remembered(module, *arguments):
        fits.append(module.model.name)
        fit(module, *arguments)

    client.local.fit = remembered
    return fits


def snapshot(client, name, number):
    """All files of a snapshot."""
    folder = SiteState(client.sites, name).path(number)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tensors(client, name, number):
    folder = SiteState(client.sites, name).path(number)
    return {file.name: load_file(file) for file in folder.glob("*.safetensors")}


# -- a lost reply ------------------------------------------------------------------------------------------------------


def test_a_lost_reply_is_sent_again_without_training(made) -> None:
    client, server, fits = made
    request = fit_request(server, "site_a", 1, evaluate=SPLITS)
    first = client.answer("site_a", request)
    saved = snapshot(client, "site_a", 1)
    client.answer("site_b", fit_request(server, "site_b", 1))
    again = client.answer("site_a", request)
    assert fits == ["site_a", "site_b"]
    assert (first.values["repeated"], again.values["repeated"]) == (False, True)
    assert again.values["record"] == first.values["record"]
    assert same(again.parts, first.parts)
    assert snapshot(client, "site_a", 1) == saved


def test_another_process_sends_it_again_too(made) -> None:
    client, server, _ = made
    first = client.answer("site_a", fit_request(server, "site_a", 1))
    other, other_server, fits = make(PFedST(), client.sites)
    again = other.answer("site_a", fit_request(other_server, "site_a", 1))
    assert fits == []
    assert same(again.parts, first.parts)


def test_other_pins_are_the_same_request(made) -> None:
    client, server, fits = made
    for number in (1, 2, 3):
        client.answer("site_a", fit_request(server, "site_a", number, number - 1, pinned=(1,)))
    assert SiteState(client.sites, "site_a").numbers() == [1, 2, 3]
    reply = client.answer("site_a", fit_request(server, "site_a", 3, 2, pinned=()))
    assert reply.values["repeated"]
    assert len(fits) == 3
    assert SiteState(client.sites, "site_a").numbers() == [2, 3]


def test_another_request_of_the_same_round_is_trained(made) -> None:
    client, server, fits = made
    first = client.answer("site_a", fit_request(server, "site_a", 1))
    server.merge({"site_a": first.parts})
    other = client.answer("site_a", fit_request(server, "site_a", 1))
    assert fits == ["site_a", "site_a"]
    assert not other.values["repeated"]
    assert not same(other.parts, first.parts)
    assert client.answer("site_a", fit_request(server, "site_a", 1)).values["repeated"]


@pytest.mark.parametrize("options", [{"seed": 1}, {"study": {"method.init_args.alpha": 2}}], ids=["seed", "study"])
def test_another_seed_or_study_is_another_request(made, options) -> None:
    """Neither is part of a request; a reply depends on both."""
    client, server, _ = made
    request = fit_request(server, "site_a", 1)
    client.answer("site_a", request)
    other, _, fits = make(PFedST(), client.sites, **options)
    assert not other.answer("site_a", request).values["repeated"]
    assert fits == ["site_a"]


def test_a_damaged_snapshot_is_fitted_again_and_gives_the_same(made, caplog) -> None:
    client, server, fits = made
    request = fit_request(server, "site_a", 1)
    first = client.answer("site_a", request)
    (SiteState(client.sites, "site_a").path(1) / "client.safetensors").write_bytes(b"x")
    again = client.answer("site_a", request)
    assert fits == ["site_a", "site_a"]
    assert "the client is fitted again" in caplog.text
    assert same(again.parts, first.parts)


# -- the fit before ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PFedST, Ditto, SCAFFOLD])
def test_a_client_goes_on_from_the_fit_that_the_server_names(tmp_path, method) -> None:
    """The message of round 2 was refused: the client is as one that was not asked in that round."""
    ends = []
    for refused in (True, False):
        client, server, fits = make(method(), tmp_path / str(refused))
        options = {"keep_optimizer": True}
        server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1, **options)).parts})
        if refused:
            client.answer("site_a", fit_request(server, "site_a", 2, 1, **options))
        reply = client.answer("site_a", fit_request(server, "site_a", 3, 1, **options))
        assert len(fits) == 2 + refused
        ends.append((without_times(reply.values["record"]), reply.parts, tensors(client, "site_a", 3)))
    assert same(*ends)


def test_a_refused_message_is_not_even_evaluated(made) -> None:
    client, server, _ = made
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    evaluation = Request("evaluate", "run", 2, 1, evaluate=SPLITS, parts=server.parts_for("site_a"))
    before = client.answer("site_a", evaluation).values
    client.answer("site_a", fit_request(server, "site_a", 2, 1))
    assert client.answer("site_a", evaluation).values == before


def test_the_fit_that_a_client_goes_on_from_is_never_dropped(made) -> None:
    client, server, _ = made
    for number in (1, 2, 3, 4, 5):  # no message of rounds 2 to 5 is merged
        client.answer("site_a", fit_request(server, "site_a", number, min(number - 1, 1)))
    assert SiteState(client.sites, "site_a").numbers() == [1, 4, 5]


def test_pinned_fits_survive_and_others_are_dropped(made) -> None:
    client, server, _ = made
    for number in range(1, 7):
        pinned = tuple(kept for kept in (2, 3) if kept < number)
        client.answer("site_a", fit_request(server, "site_a", number, number - 1, pinned=pinned))
    state = SiteState(client.sites, "site_a")
    assert state.numbers() == [2, 3, 5, 6]
    client.answer("site_a", fit_request(server, "site_a", 7, 6, pinned=(3,)))
    assert state.numbers() == [3, 6, 7]


def test_a_fit_is_kept_where_later_ones_are_on_disk(made) -> None:
    """The server went back by many rounds: what the client has just fitted is not the oldest to be dropped."""
    client, server, fits = made
    for number in range(1, 6):
        client.answer("site_a", fit_request(server, "site_a", number, number - 1, pinned=(1, 2, 3, 4)))
    fits.clear()
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    for number in (2, 3):
        client.answer("site_a", fit_request(server, "site_a", number, number - 1))
        assert number in SiteState(client.sites, "site_a").numbers()
    assert fits == ["site_a", "site_a"]  # of the first round the reply was there


def test_a_snapshot_of_another_site_or_a_lost_one_is_refused(made) -> None:
    client, server, fits = made
    for name in ("site_a", "site_b"):
        client.answer(name, fit_request(server, name, 1))
    fits.clear()
    one, other = (SiteState(client.sites, name).path(1) for name in ("site_a", "site_b"))
    shutil.rmtree(other)
    with pytest.raises(StateError, match="client site_b continues from this folder"):
        client.answer("site_b", fit_request(server, "site_b", 2, 1))
    shutil.copytree(one, other)
    for kind in ("fit", "evaluate", "cost"):
        with pytest.raises(StateError, match="is not a snapshot of site site_b"):
            client.answer("site_b", Request(kind, "run", 2, 1, evaluate=SPLITS, parts=server.parts_for("site_b")))
    assert fits == []
    assert SiteState(client.sites, "site_b").numbers() == [1]


# -- one model for all sites -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PFedST, Ditto, SCAFFOLD])
def test_sites_leave_no_trace_in_each_other(tmp_path, method) -> None:
    """Site a alone, and site a between others that are fitted, evaluated and counted: the same bits."""
    ends = []
    for alone in (True, False):
        client, server, _ = make(method(), tmp_path / str(alone))
        for number in (1, 2):
            after, options = number - 1, {"keep_optimizer": True, "evaluate": SPLITS}
            if not alone:
                client.answer("site_b", fit_request(server, "site_b", number, after, **options))
                for kind in ("evaluate", "cost"):
                    parts = server.parts_for("site_c")
                    client.answer("site_c", Request(kind, "run", number, evaluate=SPLITS, parts=parts))
            reply = client.answer("site_a", fit_request(server, "site_a", number, after, **options))
        ends.append((without_times(reply.values["record"]), reply.parts, tensors(client, "site_a", 2)))
    assert same(*ends)


class FailsAtB(PFedST):
    """Ends in its second step, with changed tensors, a memo, and parameters that are not to be trained."""

    steps = 0

    def loss(self, client, batch):
        FailsAtB.steps += client.name == "site_b"
        client.memo["seen"] = torch.tensor(client.round)
        if client.name == "site_b" and FailsAtB.steps > 1:
            raise ZeroDivisionError
        return super().loss(client, batch)


def test_a_fit_that_failed_leaves_no_trace(tmp_path) -> None:
    ends = []
    for alone in (True, False):
        FailsAtB.steps = 0
        client, server, _ = make(FailsAtB(schedule="alternate"), tmp_path / str(alone))
        if not alone:
            with pytest.raises(ZeroDivisionError):
                client.answer("site_b", fit_request(server, "site_b", 1))
            assert not SiteState(client.sites, "site_b").folder.exists()
        reply = client.answer("site_a", fit_request(server, "site_a", 1))
        ends.append((without_times(reply.values["record"]), reply.parts, tensors(client, "site_a", 1)))
    assert same(*ends)


def test_a_site_without_a_fit_is_at_the_start(made) -> None:
    """Also after fits of others, and with the generic model as its personal one."""
    client, server, _ = made
    request = Request("evaluate", "run", evaluate=SPLITS, parts=server.parts_for("site_c"))
    before = client.answer("site_c", request).values["evaluated"]
    assert before["test"]["personal"] == before["test"]["generic"]
    client.answer("site_a", fit_request(server, "site_a", 1))
    assert client.answer("site_c", request).values["evaluated"] == before


def test_an_optimiser_is_kept_only_where_it_is_asked_for(made) -> None:
    client, server, _ = made
    for name, keep in (("site_a", True), ("site_b", False)):
        client.answer(name, fit_request(server, name, 1, keep_optimizer=keep))
        found = [key for key in tensors(client, name, 1)["client.safetensors"] if key.startswith("optimizer|")]
        assert bool(found) == keep


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def logits_of(client, name):
    """The logits of the last evaluation on test."""
    return load_file(SiteState(client.sites, name).folder / "predictions" / "test.safetensors")


@pytest.mark.parametrize("method", [FedAvg, PFedST, Ditto])
def test_after_fine_tuning_a_client_predicts_with_its_own_tensors(tmp_path, method) -> None:
    client, server, fits = make(method(finetune_epochs=2), tmp_path)
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    evaluation = {"evaluate": SPLITS, "parts": server.parts_for("site_a")}
    client.answer("site_a", Request("evaluate", "run", 1, 1, **evaluation))
    before = logits_of(client, "site_a")

    tuned = client.answer("site_a", fit_request(server, "site_a", 1, 1, finetune_epochs=2))
    assert tuned.parts == {}, "nothing is sent after the last round"
    assert set(tensors(client, "site_a", 2)) == {"client.safetensors"}
    client.answer("site_b", fit_request(server, "site_b", 1))  # the model is another site's for a while
    client.answer("site_a", Request("evaluate", "run", 1, 2, **evaluation))
    after = logits_of(client, "site_a")
    own = SiteState(client.sites, "site_a").read(2).parts[CLIENT]
    load_client_part(client.model, own)
    assert any(not torch.equal(own["model"][f"adapter.{key}"], tensor) for key, tensor in server.state[NET].items())
    with client.local.evaluating():
        batches = [images for images, _ in client.data.evaluation_loader("site_a", "test")]
        personal = client.method.personal_model(client.model).eval()
        expected = torch.cat([personal(client.model.taps_of(images)).float() for images in batches])
    assert torch.equal(after["logits.personal"], expected)
    assert not torch.equal(after["logits.personal"], before["logits.personal"])
    assert torch.equal(after["logits.generic"], before["logits.generic"]), "the generic model is the merged one"

    # asked for the fit before, it is as it was: more rounds continue from there
    client.answer("site_a", Request("evaluate", "run", 1, 1, **evaluation))
    assert torch.equal(logits_of(client, "site_a")["logits.personal"], before["logits.personal"])


def test_fine_tuning_is_not_the_fit_of_the_next_round(tmp_path) -> None:
    client, server, fits = make(FedAvg(finetune_epochs=1), tmp_path)
    server.merge({"site_a": client.answer("site_a", fit_request(server, "site_a", 1)).parts})
    tune, next_round = fit_request(server, "site_a", 1, 1, finetune_epochs=1), fit_request(server, "site_a", 2, 1)
    assert tune.fit_number == next_round.fit_number == 2
    client.answer("site_a", tune)
    assert client.answer("site_a", tune).values["repeated"]
    reply = client.answer("site_a", next_round)
    assert not reply.values["repeated"]
    assert NET in reply.parts
    assert len(fits) == 3


# -- other requests ----------------------------------------------------------------------------------------------------


def test_hello_is_plain_and_says_what_a_site_has(tmp_path) -> None:
    client = client_of(PFedST(), None, study={"method.init_args.rank": 2})
    reply = client.answer("site_b", Request("hello", "run"))
    assert json.loads(json.dumps(reply.values)) == reply.values
    assert reply.parts == {}
    assert sum(client.data.samples("site_b", split) for split in ("train", "validation")) == 18
    assert reply.values["samples"] == {split: client.data.samples("site_b", split) for split in reply.values["samples"]}
    assert reply.values["study"] == {"method.init_args.rank": 2}
    assert len(reply.values["classes"]) == 3


def test_sums_of_prototypes_are_of_the_images_of_one_site(tmp_path) -> None:
    client = client_of(PFedST(), None)
    parts = [client.answer(name, Request("prototypes", "run")).parts for name in client.names]
    images = [client.data.samples(name, "train") for name in client.names]
    assert [int(part[PROTOTYPES]["counts"].sum()) for part in parts] == images
    assert len(set(images)) == 3
    assert not same(parts[0], parts[1])
    assert all(part[PROTOTYPES]["sums"].shape[0] == 3 for part in parts)


def test_an_evaluation_of_no_split_reads_the_state_alone(made) -> None:
    client, server, _ = made
    request = Request("evaluate", "run", parts=server.parts_for("site_a"))
    assert client.answer("site_a", request).values == {"evaluated": {}}
    assert not SiteState(client.sites, "site_a").folder.exists()


def test_cost_leaves_no_state(made) -> None:
    client, server, _ = made
    reply = client.answer("site_a", Request("cost", "run", parts=server.parts_for("site_a")))
    assert reply.values["flops_per_image"] > 0
    assert not SiteState(client.sites, "site_a").folder.exists()
    other = client.answer("site_b", Request("cost", "run", parts=server.parts_for("site_b")))
    assert other.values == reply.values


def test_without_a_folder_a_client_answers_what_needs_none(tmp_path) -> None:
    client = client_of(PFedST(), None)
    server = server_of(client)
    reply = client.answer("site_a", Request("evaluate", "run", evaluate=SPLITS, parts=server.parts_for("site_a")))
    assert set(reply.values["evaluated"]) == set(SPLITS)


def test_anchors_come_with_a_request(made) -> None:
    client, server, _ = made
    parts = server.parts_for("site_a")
    other = parts | {ANCHORS: {"classes": parts[ANCHORS]["classes"].roll(1, 0)}}
    found = [
        client.answer("site_a", Request("evaluate", "run", evaluate=("test",), parts=sent)).values["evaluated"]
        for sent in (parts, other, parts)
    ]
    assert found[0] == found[2] != found[1]


def test_metrics_of_a_fit_are_before_its_merge(made) -> None:
    client, server, _ = made
    reply = client.answer("site_a", fit_request(server, "site_a", 1, evaluate=("test",)))
    assert set(reply.values["record"]["trained"]) == {"test"}
    assert set(reply.values["record"]["trained"]["test"]) == {"personal"}
    assert "trained" not in client.answer("site_b", fit_request(server, "site_b", 1)).values["record"]


def test_threads_of_a_request_are_those_of_the_client(made) -> None:
    client, server, _ = made
    before, seen = torch.get_num_threads(), []
    client.threads = before + 1
    fit = client.local.fit
    client.local.fit = lambda *arguments: seen.append(torch.get_num_threads()) or fit(*arguments)
    client.answer("site_a", fit_request(server, "site_a", 1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_message_that_is_not_declared_cannot_leave(tmp_path) -> None:
    class Sends(PFedST):
        def upload(self, client):
            lora = {"side.up.lora_A": client.adapter.side.up.lora_A}
            return {NET: client.shared_tensors() | lora}

    client, server, _ = make(Sends(), tmp_path)
    with pytest.raises(StateError, match=r"the message from client site_a(.|\n)*unexpected: side.up.lora_A"):
        client.answer("site_a", fit_request(server, "site_a", 1))
    assert SiteState(tmp_path, "site_a").numbers() == []


# -- methods with rules of their own -----------------------------------------------------------------------------------


def test_a_pooled_method_has_one_client_more(tmp_path) -> None:
    client = client_of(Pooled(), tmp_path, held_out=("site_b",))
    assert client.names == ["site_a", "site_b", "site_c", "pooled"]
    assert client.sites_of("pooled") == ["site_a", "site_c"]
    assert client.sites_of("site_b") == ["site_b"]
    reply = client.answer("pooled", fit_request(server_of(client), "pooled", 1, evaluate=SPLITS))
    assert reply.values["record"]["images"] == sum(client.data.samples(name, "train") for name in ("site_a", "site_c"))
    assert "trained" not in reply.values["record"], "the pooled client has no images of its own"


def test_no_site_may_bear_the_name_of_the_pooled_client(tmp_path) -> None:
    sites = small.prepared()
    sites.sites = ("pooled", *sites.sites[1:])
    with pytest.raises(ConfigurationError, match='no site may be called "pooled"'):
        client_of(Pooled(), tmp_path, data=sites)


class LooksAtB(FedAvg):
    def unlabelled(self, client):
        return "site_b", "train"


def test_images_are_shown_to_other_clients_only_of_a_site_that_is_held_out(tmp_path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"images of site \"site_b\" at client site_a.*held_out_sites \[site_b\]"
    ):
        client_of(LooksAtB(), tmp_path)
    assert client_of(LooksAtB(), tmp_path, held_out=("site_b",)).held_out == ("site_b",)
