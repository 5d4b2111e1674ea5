"""The state of a site on its disk: folders of odd names, what is kept and dropped, and snapshots that are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from safetensors.torch import load_file

from pfedst.client.state import (
    CLIENT,
    KEPT,
    LONGEST_NAME,
    MESSAGE,
    SiteState,
    client_part,
    load_client_part,
    site_folder,
)
from pfedst.errors import StateError
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import federation

RECORD = {"train_loss": 0.5, "fit_seconds": 1.0, "images": 24, "skipped_steps": 0, "peak_memory_bytes": None}

# -- names -------------------------------------------------------------------------------------------------------------

PLAIN = ["site_a", "Hospital 3", "Klinik-Süd", "北京", "a.b", "x" * LONGEST_NAME]
ODD = [
    "",
    ".",
    "..",
    "...",
    " ",
    "/",
    "a/b",
    "a\\b",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "a:b",
    "nul\0byte",
    "new\nline",
    "a\n",
    ".hidden",
    "ends.",
    "ends ",
    "%2F",
    "a%2Fb",
    '*?<>|"',
    "\ud800",
    "🏥",
    "x" * (LONGEST_NAME + 1),
    "北" * LONGEST_NAME,
    "~",
    "$HOME",
    "-rf",
]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_the_folder(name) -> None:
    assert site_folder(name) == name


def is_one_folder(folder: str) -> bool:
    """True for the name of one folder below its parent on any system, that the program does not take for its own."""
    return (
        Path("sites", folder).parent == Path("sites")
        and Path("sites", folder).name == folder
        and folder not in ("", ".", "..")
        and not folder.startswith(".")
        and folder[-1] not in ". "
        and not set(folder) & set('/\\:*?"<>|\0\n\r\t')
        and len(folder.encode()) <= 255
    )


@pytest.mark.parametrize("name", [*PLAIN, *ODD], ids=ascii)
def test_an_odd_name_is_one_folder(tmp_path, name) -> None:
    folder = site_folder(name)
    assert is_one_folder(folder)
    (tmp_path / folder).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_different_names_have_different_folders() -> None:
    names = [*PLAIN, *ODD, *(site_folder(name) + "x" for name in ODD)]
    assert len({site_folder(name) for name in names}) == len(set(names))


NAMES = st.text(st.characters(exclude_categories=()), max_size=120) | st.text("ab./\\% \n_", max_size=12)


@given(NAMES, NAMES)
def test_folders_are_injective(one, other) -> None:
    assert is_one_folder(site_folder(one))
    assume(one != other)
    assert site_folder(one) != site_folder(other)


@given(NAMES)
def test_no_name_is_the_folder_of_another(name) -> None:
    """Not even of a site that is called like the folder of an odd name."""
    folder = site_folder(name)
    assert (site_folder(folder) == folder) == (name == folder)


# -- snapshots ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    """A client after a fit, and its message."""
    made = federation(PFedST())
    made.deliver("site_a")
    model = made.clients["site_a"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    model.memo = {"h": {"w": torch.ones(2).bfloat16()}}
    return model


def save(state, number, model, digest="a digest", message=None):
    sent = {NET: model.shared_state()} if message is None else message
    state.save(number, {"request": digest, "record": RECORD, "finetune_epochs": 0}, model, sent)
    return sent


def test_what_is_saved_comes_back(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    sent = save(state, 3, model)
    expected = client_part(model)
    before = model.own_state()
    found = SiteState(tmp_path, "site_a").read(3)
    assert found.about == {"site": "site_a", "request": "a digest", "record": RECORD, "finetune_epochs": 0}
    other = federation(PFedST(), seed=1).clients["site_b"]
    load_client_part(other, found.parts[CLIENT])
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.own_state().items())
    assert other.memo["h"]["w"].dtype == torch.bfloat16
    assert set(found.parts[CLIENT]["model"]) == set(expected["model"])
    assert all(torch.equal(tensor, found.parts[MESSAGE][NET][key]) for key, tensor in sent[NET].items())
    assert state.numbers() == [3]


def test_shared_tensors_are_saved_once(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    save(state, 1, model)
    kept, sent = (load_file(state.path(1) / f"{part}.safetensors") for part in (CLIENT, MESSAGE))
    assert {key for key in kept if key.startswith("model|")} == {
        f"model|adapter.{key}" for key in model.partition.keys("personal")
    }
    assert {key.removeprefix("net|") for key in sent} == set(model.partition.keys("shared"))


def test_a_message_that_is_not_the_state_is_saved_beside_it(tmp_path, model) -> None:
    """Of a method that sends changes, or rounded numbers."""
    state = SiteState(tmp_path, "site_a")
    before = model.own_state()
    changed = {NET: {key: tensor.half().float() for key, tensor in model.shared_state().items()}}
    save(state, 1, model, message=changed)
    found = state.read(1).parts
    assert all(torch.equal(found[CLIENT]["model"][key], tensor) for key, tensor in before.items())
    assert all(torch.equal(found[MESSAGE][NET][key], tensor) for key, tensor in changed[NET].items())


def test_the_folder_is_for_its_owner_alone(tmp_path, model) -> None:
    state = SiteState(tmp_path / "sites", "site_a")
    save(state, 1, model)
    assert state.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["..", "a/b", "北京", "x" * 300], ids=ascii)
def test_a_site_of_an_odd_name_keeps_its_state(tmp_path, model, name) -> None:
    sites = tmp_path / "run" / "sites"
    state = SiteState(sites, name)
    save(state, 1, model)
    state.drop(())
    assert state.answered(1, "a digest") is not None
    assert state.read(1).about["site"] == name
    assert [path.parent for path in (tmp_path / "run").rglob("after-*")] == [sites / site_folder(name)]


def test_the_last_two_fits_and_those_that_are_named_are_kept(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    for number in range(1, 8):
        save(state, number, model)
    (state.folder / ".after-000009.1.new.part").mkdir()
    (state.folder / "after-of-someone").mkdir()
    state.drop({2, 4, 99})
    assert state.numbers() == [2, 4, 6, 7]
    assert KEPT == 2
    state.drop(())
    assert state.numbers() == [6, 7]
    assert sorted(path.name for path in state.folder.iterdir()) == ["after-000006", "after-000007", "after-of-someone"]


def test_numbers_beyond_six_digits_are_in_order(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    for number in (999_999, 1_000_000, 5):
        save(state, number, model)
    assert state.numbers() == [5, 999_999, 1_000_000]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_reply_is_found_by_its_request(tmp_path, model, caplog) -> None:
    state = SiteState(tmp_path, "site_a")
    assert state.answered(1, "a digest") is None
    sent = save(state, 1, model)
    reply = state.answered(1, "a digest")
    assert reply.values == {"record": RECORD, "repeated": True}
    assert all(torch.equal(tensor, sent[NET][key]) for key, tensor in reply.parts[NET].items())
    assert state.answered(1, "another") is None
    assert state.answered(2, "a digest") is None
    assert caplog.text == ""


def test_a_snapshot_of_another_site_is_refused(tmp_path, model, caplog) -> None:
    one, other = (SiteState(tmp_path, name) for name in ("site_a", "site_b"))
    save(one, 1, model)
    shutil.copytree(one.folder, other.folder)
    with pytest.raises(StateError, match="is not a snapshot of site site_b"):
        other.read(1)
    with pytest.raises(StateError, match=r"client site_b continues from this folder.*--resume true"):
        other.start(1)
    assert other.answered(1, "a digest") is None
    assert "the client is fitted again" in caplog.text


def test_a_snapshot_of_another_fit_is_refused(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    save(state, 1, model)
    shutil.copytree(state.path(1), state.path(2))
    with pytest.raises(StateError, match="damaged"):
        state.start(2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["client.safetensors", "message.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_text("")])
def test_damage_is_told_and_the_fit_is_done_again(tmp_path, model, caplog, file, damage) -> None:
    state = SiteState(tmp_path, "site_a")
    save(state, 1, model)
    damage(state.path(1) / file)
    with pytest.raises(StateError, match=r"after-000001.*client site_a continues from this folder"):
        state.start(1)
    assert state.answered(1, "a digest") is None
    assert "the client is fitted again" in caplog.text


def test_a_lost_snapshot_is_told_with_its_remedy(tmp_path) -> None:
    with pytest.raises(StateError, match=r"after-000004.*restore a copy of it, or .*start a new run"):
        SiteState(tmp_path, "site_a").start(4)


def test_a_record_that_no_client_writes_is_no_reply(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    state.save(1, {"request": "a digest", "record": {"train_loss": "x"}}, model, {})
    assert state.answered(1, "a digest") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda part: part["model"].pop(next(iter(part["model"]))), "missing"),
        (lambda part: part["model"].update(x=torch.ones(1)), "unexpected: x"),
        (lambda part: part["model"].update({k: v[:1] for k, v in part["model"].items() if v.ndim}), "do not fit"),
        (lambda part: part["model"].update({k: v * float("nan") for k, v in part["model"].items()}), "NaN"),
        (lambda part: part["model"].update(x={"y": torch.ones(1)}), "no plain tensor"),
        (lambda part: part.update(model=torch.ones(1)), "a tensor under"),
        (lambda part: part.update(memo=torch.ones(1)), "a tensor under"),
        (lambda part: part.update(optimizer={"x": {}}), "its optimiser kept"),
        (lambda part: part.update(optimizer={"0": torch.ones(1)}), "its optimiser kept"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(model, change, words) -> None:
    part = client_part(model)
    change(part)
    other = federation(PFedST()).clients["site_a"]
    with pytest.raises(StateError, match=words):
        load_client_part(other, part)


def test_a_state_of_another_method_is_refused(model) -> None:
    for method in (FedAvg(), Ditto(), PFedST(rank=3)):
        with pytest.raises(StateError, match="client site_b"):
            load_client_part(federation(method).clients["site_b"], client_part(model))


def test_an_optimiser_comes_back_as_tensors(tmp_path, model) -> None:
    state = SiteState(tmp_path, "site_a")
    moments = {0: {"step": 3.0, "exp_avg": torch.ones(2), "max": None}, 10: {"step": torch.tensor(4.0)}}
    model.optimizer_state = moments
    save(state, 1, model)
    load_client_part(model, state.read(1).parts[CLIENT])
    assert model.optimizer_state == {
        0: {"step": torch.tensor(3.0), "exp_avg": model.optimizer_state[0]["exp_avg"]},
        10: {"step": torch.tensor(4.0)},
    }
    assert model.optimizer_state[0]["exp_avg"].tolist() == [1, 1]


def test_a_disk_that_refuses_leaves_the_snapshot_before(tmp_path, model, monkeypatch) -> None:
    def refuse(_) -> None:
        raise OSError(28, "No space left on device")

    state = SiteState(tmp_path, "site_a")
    save(state, 1, model, digest="one")
    before = json.loads((state.path(1) / "manifest.json").read_text())
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StateError, match="No space left on device"):
        save(state, 1, model, digest="other")
    assert json.loads((state.path(1) / "manifest.json").read_text()) == before
    assert [path.name for path in state.folder.iterdir()] == ["after-000001"]
