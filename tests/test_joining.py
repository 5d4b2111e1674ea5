"""A hospital joins a finished run: shared tensors keep their bits, and the generic model is kept where training loses."""

import json
from functools import partial

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.prototypes import Prototypes
from torch.optim import SGD, AdamW

from pfedst import simulation
from pfedst.client.joining import FEWEST_LABELS, shared_frozen, train_personal
from pfedst.client.module import FederatedClient
from pfedst.client.state import SiteState
from pfedst.client.training import LocalTrainer
from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, DataError, StateError
from pfedst.joining import Join, Source
from pfedst.methods.criteria import BalancedSoftmax, CrossEntropy
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.reporting import RunFolder
from pfedst.reporting.join_table import AT_SITE, GENERIC, TRAINED, join_tables, join_text
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.state.snapshot import read_snapshot
from pfedst.testing import small
from pfedst.testing.small import data, federation, fit, template, trainer
from tests.server.runs import without_times

NEW = "site_d"
SIZES = {"sites": 4, "samples_per_site": [24, 18, 15, 70], "test_samples_per_site": [12, 12, 12, 12]}
FAST, USELESS = partial(AdamW, lr=1e-2), partial(AdamW, lr=0.3)


def sites_of(train=70, **options):
    """Four sites, of which the last one is new."""
    sizes = SIZES | {"samples_per_site": [24, 18, 15, train], "validation_fraction": 0.4}
    return data(**(sizes | options))


def joined(source, folder, method=None, site=NEW, sites=None, model=None, passes=4, name="new", **options):
    method = method or PFedST()
    model = model or template(method, loss=BalancedSoftmax(), optimizer=options.pop("optimizer", FAST))
    source = Source.of_run(str(source)) if not isinstance(source, Source) else source
    given = source, model, sites or sites_of(), method, LocalTrainer(trainer()), FederatedCoordinator(threads=1)
    join = Join(*given, 0, site, {"method": type(method).__name__})
    run = RunFolder.create(folder, name, name)
    return run.path, join.run(run, passes)


def evaluated(folder, method=None, sites=None, split="test", site=None):
    method = method or PFedST()
    model = template(method, loss=BalancedSoftmax())
    given = FederatedCoordinator(), model, sites or sites_of(), method, trainer(), folder
    return simulation.evaluate(*given, split, 0, site=site)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = template(PFedST(), loss=BalancedSoftmax())
    return folder / "run", fit(folder, PFedST(), sites=data(), model=model, rounds=2)


@pytest.fixture(scope="module")
def after(run, tmp_path_factory):
    """A site that has joined."""
    return joined(run[0], tmp_path_factory.mktemp("joined"))


def server(folder, name="round-000001"):
    return read_snapshot(folder / "state" / name).parts["server"]


# -- the site has joined -------------------------------------------------------------------------------------------


def test_every_shared_tensor_and_the_anchors_keep_their_bits(run, after) -> None:
    then, now = server(run[0], "round-000002"), server(after[0])
    assert then["method"]["net"].keys() == now["method"]["net"].keys()
    assert all(torch.equal(now["method"]["net"][key], tensor) for key, tensor in then["method"]["net"].items())
    assert torch.equal(now["anchors"]["classes"], then["anchors"]["classes"])
    saved = SiteState(after[0] / "sites", NEW).read(1).parts
    assert all(torch.equal(saved["message"]["net"][key], tensor) for key, tensor in then["method"]["net"].items())


def test_the_personal_part_is_trained_and_saved_alone(after) -> None:
    folder, summary = after
    assert summary["joined"]["joined"]
    client = read_snapshot(folder / "sites" / NEW / "after-000001", "client").parts["client"]["model"]
    assert client
    assert all(key.rsplit(".", 1)[1] in ("lora_A", "lora_B") for key in client)
    assert any(tensor.any() for key, tensor in client.items() if key.endswith("lora_B"))


def test_the_folder_is_evaluated_like_that_of_a_run(after) -> None:
    """The site with its own part; sites of the source, whose own parts lie elsewhere, with the generic model."""
    folder, summary = after
    found = evaluated(folder, site=NEW)
    for model in ("personal", "generic"):
        assert found[model]["clients"] == summary[model]["clients"]
    assert found["at_priors"]["last"]["test"] == summary["at_priors"]["last"]["test"]
    assert "has trained its personal tensors" in found["protocol"]["when"]
    whole = evaluated(folder)
    assert whole["protocol"]["new_sites"] == ["site_a", "site_b", "site_c"]
    assert whole["personal"]["clients"]["site_a"] == whole["generic"]["clients"]["site_a"]
    assert whole["personal"]["clients"][NEW] == summary["personal"]["clients"][NEW]
    assert whole["personal"]["mean"] == found["personal"]["mean"]


def test_the_rows_of_the_table_are_the_numbers_of_evaluations(run, after) -> None:
    folder, summary = after
    generic, rows = evaluated(run[0], site=NEW), summary["joined"]["rows"]["test"]
    assert rows[GENERIC]["auroc"] == generic["generic"]["clients"][NEW]["auroc"]
    at_priors = generic["at_priors"]["last"]["test"]["generic"]
    assert rows[GENERIC]["balanced_accuracy"] == at_priors["balanced"]["clients"][NEW]["balanced_accuracy"]
    assert rows[AT_SITE]["nll"] == at_priors["site"]["clients"][NEW]["nll"]
    own = summary["at_priors"]["last"]["test"]["personal"]
    assert rows[TRAINED]["accuracy"] == own["site"]["clients"][NEW]["accuracy"]
    tables, text = join_tables(summary), join_text(summary)
    assert [table.name for table in tables] == ["join-validation", "join-test"]
    assert [row[0].text for row in tables[0].rows] == [GENERIC, AT_SITE, f"{TRAINED} (kept)"]
    assert "site_d has joined: its personal tensors" in text


def test_the_chosen_pass_has_the_lowest_loss_on_validation(after) -> None:
    joined = after[1]["joined"]
    assert len(joined["losses"]) == 5
    assert joined["losses"][joined["passes"]] == min(joined["losses"][1:])
    assert joined["gain"] == pytest.approx(joined["losses"][0] - joined["losses"][joined["passes"]])
    assert joined["gain"] > joined["standard_error"] > 0
    # the loss of the kept model is that of the report: mean NLL at the prior of the site
    rows = after[1]["joined"]["rows"]["validation"]
    assert rows[AT_SITE]["nll"] == pytest.approx(joined["losses"][0], abs=1e-9)
    assert rows[TRAINED]["nll"] == pytest.approx(joined["losses"][joined["passes"]], abs=1e-9)


def test_the_same_seed_gives_the_same_bits(run, after, tmp_path) -> None:
    folder, summary = joined(run[0], tmp_path)
    assert without_times(summary) == without_times(after[1])
    for part in ("client", "message"):
        one, other = (read_snapshot(of / "sites" / NEW / "after-000001", part).parts for of in (folder, after[0]))
        assert repr(one.keys()) == repr(other.keys())
        for key, tensor in one[part].get("model", one[part].get("net")).items():
            assert torch.equal(tensor, other[part].get("model", other[part].get("net"))[key])


def test_the_site_joins_without_the_images_of_others(run, tmp_path, monkeypatch) -> None:
    sites = sites_of(cache="none")
    monkeypatch.setattr("pfedst.data.sites.Sites.check_files", lambda found, outside: seen.append(list(found.splits)))
    seen = []
    _, summary = joined(run[0], tmp_path, sites=sites, passes=1)
    assert seen == [[NEW]]
    assert sites.sites == (NEW,)
    assert list(summary["personal"]["clients"]) == [NEW]


def test_its_classes_are_mapped_by_name_and_some_may_be_missing(run, tmp_path) -> None:
    class Reversed(small._DrawnOnce):
        def read(self):
            found = super().read()
            return found.with_classes(found.class_names[::-1])

    options = SIZES | {"classes": 2, "audit": "off", "image_size": 32, "validation_fraction": 0.4}
    _, summary = joined(run[0], tmp_path, sites=Reversed(batch_size=8, **options), passes=1)
    assert summary["protocol"]["classes"] == run[1]["protocol"]["classes"]
    _, plain = joined(run[0], tmp_path, sites=sites_of(classes=2), passes=1, name="plain")
    assert plain["personal"]["clients"] == summary["personal"]["clients"]


# -- never worse in silence ----------------------------------------------------------------------------------------


def test_where_training_loses_the_generic_model_is_kept(run, tmp_path) -> None:
    folder, summary = joined(run[0], tmp_path, optimizer=USELESS)
    joined_ = summary["joined"]
    assert not joined_["joined"]
    assert min(joined_["losses"][1:]) > joined_["losses"][0] - joined_["standard_error"]
    client = read_snapshot(folder / "sites" / NEW / "after-000001", "client").parts["client"]["model"]
    assert not any(tensor.any() for key, tensor in client.items() if key.endswith("lora_B"))
    assert summary["personal"] == summary["generic"]
    found = evaluated(folder, site=NEW)
    assert found["personal"] == found["generic"]
    assert found["at_priors"]["last"]["test"]["personal"] == found["at_priors"]["last"]["test"]["generic"]
    assert "keeps the generic model" in found["protocol"]["when"]
    assert "has NOT joined" in join_text(summary)
    rows = summary["joined"]["rows"]["test"]
    assert rows[TRAINED] != rows[AT_SITE]
    assert [row[0].text for row in join_tables(summary)[1].rows] == [GENERIC, f"{AT_SITE} (kept)", TRAINED]


def test_a_gain_within_one_standard_error_is_chance(run, tmp_path, monkeypatch) -> None:
    """By hand: three validation images, whose losses fall by 3, 0 and 0: mean 1, standard error 1."""
    given = iter(
        [torch.tensor([5.0, 1, 1]), torch.tensor([2.0, 1, 1]), torch.tensor([5.0, 1, 1]), torch.tensor([1.9, 0.9, 0.9])]
    )
    monkeypatch.setattr("pfedst.client.joining.Joining._losses", lambda joining, alone: next(given).double())
    monkeypatch.setattr("pfedst.client.joining.Joining._has_prior", lambda joining: True)
    _, one = joined(run[0], tmp_path, passes=1, name="one")
    assert (one["joined"]["gain"], one["joined"]["standard_error"]) == (1, pytest.approx(1))
    assert not one["joined"]["joined"]
    _, other = joined(run[0], tmp_path, passes=1, name="other")
    assert other["joined"]["joined"]


def test_thirty_labels_are_trained_a_few_passes_with_a_warning(run, tmp_path) -> None:
    folder, summary = joined(run[0], tmp_path, sites=sites_of(train=30), passes=20)
    joined_ = summary["joined"]
    assert (joined_["labels"], joined_["passes"], joined_["losses"]) == (30, 3, [])
    assert joined_["joined"]
    assert "30 labelled images (train and validation) are too few" in joined_["warnings"][0]
    assert "validation did not select" in join_text(summary)


@pytest.mark.parametrize(("train", "fraction", "selects"), [(50, 0.4, True), (49, 0.4, False), (70, 0.0, False)])
def test_validation_counts_as_labels_and_selects_only_where_there_is_some(
    run, tmp_path, train, fraction, selects
) -> None:
    assert FEWEST_LABELS == 50
    _, summary = joined(run[0], tmp_path, sites=sites_of(train=train, validation_fraction=fraction), passes=1)
    assert bool(summary["joined"]["losses"]) is selects
    assert summary["joined"]["labels"] == train


def test_a_fall_of_balanced_accuracy_is_a_warning() -> None:
    from pfedst.reporting.join_table import lost_balance

    rows = {"validation": {GENERIC: {"balanced_accuracy": 0.5}, TRAINED: {"balanced_accuracy": 0.4}}}
    assert "10.0 points below" in lost_balance(rows, 12)[0]
    rows["validation"][TRAINED]["balanced_accuracy"] = 0.5
    assert lost_balance(rows, 12) == []


# -- methods -------------------------------------------------------------------------------------------------------


def test_a_method_without_personal_tensors_fine_tunes_a_copy(tmp_path) -> None:
    fit(tmp_path / "source", FedAvg(), sites=data(), model=template(FedAvg(), loss=BalancedSoftmax()))
    method = FedAvg()
    folder, summary = joined(tmp_path / "source/run", tmp_path, method, optimizer=partial(AdamW, lr=1e-3), passes=8)
    assert summary["joined"]["trained"] == "copy"
    assert summary["joined"]["joined"]
    then, now = server(tmp_path / "source/run", "round-000002"), server(folder)
    assert all(torch.equal(now["method"]["net"][key], tensor) for key, tensor in then["method"]["net"].items())
    assert summary["personal"]["clients"] != summary["generic"]["clients"]
    found = evaluated(folder, FedAvg(finetune_epochs=method.finetune_epochs), site=NEW)
    assert found["personal"]["clients"] == summary["personal"]["clients"]
    assert found["generic"]["clients"] == summary["generic"]["clients"]


def test_a_fresh_lora_is_trained_on_the_model_of_another_method(tmp_path) -> None:
    fit(tmp_path / "source", FedAvg(), sites=data(), model=template(FedAvg(), loss=BalancedSoftmax()))
    folder, summary = joined(tmp_path / "source/run", tmp_path, PFedST())
    then, now = server(tmp_path / "source/run", "round-000002"), server(folder)
    assert all(torch.equal(now["method"]["net"][key], tensor) for key, tensor in then["method"]["net"].items())
    assert summary["joined"]["trained"] == "personal"


@pytest.mark.parametrize("name", ["SCAFFOLD", "APFL", "FedBN", "FedRep", "FACMIC", "PFedMe"])
def test_methods_of_every_kind_join_and_their_folder_is_evaluated(tmp_path, name) -> None:
    """State at the server, twins, norm layers, heads in turns, batch norm, a memo that predicts."""
    make, sgd = registered_methods()[name], {"optimizer": partial(SGD, lr=0.005)} if name == "PFedMe" else {}
    fit(tmp_path / "source", make(), sites=data(), model=template(make(), loss=BalancedSoftmax(), **sgd), rounds=1)
    method = make()
    folder, summary = joined(tmp_path / "source/run", tmp_path, method, passes=1, **sgd)
    then, now = server(tmp_path / "source/run", "round-000001"), server(folder)
    assert now["method"].keys() == then["method"].keys()
    for part, tensors in then["method"].items():
        assert all(torch.equal(now["method"][part][key], tensor) for key, tensor in tensors.items())
    assert evaluated(folder, method, site=NEW)["personal"]["clients"] == summary["personal"]["clients"]


def test_a_twin_begins_at_the_generic_model(tmp_path, monkeypatch) -> None:
    fit(tmp_path / "source", Ditto(), sites=data(), model=template(Ditto(), loss=BalancedSoftmax()))
    _, summary = joined(tmp_path / "source/run", tmp_path, Ditto(), optimizer=USELESS)
    assert not summary["joined"]["joined"]
    assert summary["personal"]["clients"] == summary["generic"]["clients"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Local, "merges nothing, so that there is no generic model"),
        (Pooled, "images of all sites in one place"),
        (Prototypes, "trains nothing; pfedst test evaluates"),
    ],
)
def test_methods_that_no_site_can_join_are_refused_with_the_reason(run, tmp_path, method, words) -> None:
    with pytest.raises(ConfigurationError, match=f"no site can join a run of method {method.__name__}: .*{words}"):
        joined(run[0], tmp_path, method(), model=template(method()))


class WritesSharedTensors(PFedST):
    """Moves a shared tensor by hand in each step."""

    def edit_gradients(self, client) -> None:
        with torch.no_grad():
            next(iter(client.shared_tensors().values())).add_(1.0)


def test_a_method_that_changes_shared_tensors_all_the_same_is_refused_and_they_are_put_back() -> None:
    made = federation(WritesSharedTensors())
    made.deliver("site_a")
    model, before = made.clients["site_a"], made.clients["site_a"].shared_state()
    with pytest.raises(StateError, match="WritesSharedTensors changes shared tensors while a site joins"):
        train_personal(small.local(1), made.modules["site_a"], made.client.data.train_loader("site_a", 0))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.shared_state().items())
    assert model.joining is None


@pytest.mark.parametrize(("shared_epochs", "epoch"), [(1, 1), (2, 2)])
def test_a_method_in_turns_repeats_the_turn_of_its_personal_part(shared_epochs, epoch) -> None:
    method = PFedST(schedule="alternate", shared_epochs=shared_epochs)
    model = federation(method).clients["site_a"]
    with shared_frozen(model, method):
        assert model.joining == epoch
        assert all("lora" in key for key in model.trained_keys)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_leaves_nothing(run, tmp_path) -> None:
    other = FrozenCLIP("vit-nano", weights="random", image_size=48)
    for error, words, options in (
        (ConfigurationError, "took part in the run", {"site": "site_a"}),
        (DataError, 'there is no site "site_x"', {"site": "site_x"}),
        (DataError, "trained without the class vascular", {"sites": sites_of(classes=4)}),
        (StateError, "pfedst join run was trained with another encoder", {"model": FederatedClient(other, anchors="prototypes"), "sites": sites_of(cache="none")}),
        (StateError, "has another adapter", {"method": PFedST(), "model": template(PFedST(), adapter=partial(small_side, width=64))}),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            joined(run[0], tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match=r"pfedst join .*none: no run in"):
        Source.of_run(str(tmp_path / "none"))


def small_side(encoder, head, width):
    from pfedst.adapters import SideNetwork

    return SideNetwork(encoder, head, width=width)


def test_a_loss_whose_priors_are_not_known_is_compared_as_it_is(tmp_path) -> None:
    model = template(PFedST(), loss=CrossEntropy())
    fit(tmp_path / "source", PFedST(), sites=data(), model=model)
    given = template(PFedST(), loss=CrossEntropy(), optimizer=FAST)
    _, summary = joined(tmp_path / "source/run", tmp_path, model=given, passes=1)
    assert summary["joined"]["prior"] is False
    assert "of logits as they are" in join_text(summary)
    assert summary["joined"]["rows"]["test"][AT_SITE]["nll"] is None


def test_counts_that_sites_shared_give_the_prior_of_the_generic_model(tmp_path) -> None:
    model = template(PFedST(), loss=CrossEntropy())
    fit(tmp_path / "source", PFedST(), sites=data(), model=model, share_class_counts=True, keep_states=9)
    at_start = Source.of_run(f"{tmp_path / 'source/run'}@0").priors.merged
    assert at_start.tolist() == pytest.approx([1 / 3] * 3)
    assert Source.of_run(str(tmp_path / "source/run")).priors.merged.tolist() != pytest.approx([1 / 3] * 3, abs=1e-3)
    given = template(PFedST(), loss=CrossEntropy(), optimizer=FAST)
    _, summary = joined(tmp_path / "source/run", tmp_path, model=given, passes=1)
    assert summary["joined"]["prior"] is True
    assert summary["joined"]["rows"]["test"][AT_SITE]["nll"] is not None


def test_the_records_and_the_identity_say_what_the_folder_is(after, run) -> None:
    folder, summary = after
    made_of = json.loads((folder / "identity.json").read_text())
    assert made_of["joined"]["site"] == NEW
    assert made_of["init"]["name"] == "run"
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [(record["round"], record["client"], record["participated"]) for record in records] == [
        (0, NEW, False),
        (1, NEW, True),
    ]
    assert records[1]["upload_bytes"] == 0
    client = read_snapshot(folder / "sites" / NEW / "after-000001", "client").parts["client"]["model"]
    assert summary["cost"]["parameters_trained"] == sum(tensor.numel() for tensor in client.values())
    assert summary["cost"]["parameters_sent"] == 0
    assert {path.name for path in (folder / "sites" / NEW / "predictions").iterdir()} == {
        "validation.safetensors",
        "test.safetensors",
    }
    assert summary["class_metrics"][NEW]["images"] == 12
