"""The folder of a site is damaged, forged or full: the file is named, and the run continues wherever it can."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from pfedst.errors import StateError
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.state.snapshot import name_snapshot, read_snapshot, write_snapshot
from pfedst.testing.small import fit
from tests import programs
from tests.faults.runs_that_stop import BAD, StopError, dying, forge, without_the_bad
from tests.server.runs import go_on, left, same, without_times

ROUNDS = 3


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Two rounds of a run, and the fit of site_a in the third."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(StopError):
        fit(folder, dying(PFedST, ROUNDS, "site_b")(), rounds=ROUNDS)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, never interrupted: its folder and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, PFedST(), rounds=ROUNDS)


@pytest.fixture
def cut(interrupted, tmp_path):
    """A copy of the interrupted run."""
    shutil.copytree(interrupted, tmp_path / "cut")
    return tmp_path / "cut"


def ends_as(folder, whole) -> None:
    """Resume a run; it ends as if it had never been interrupted."""
    expected, summary = whole
    assert without_times(go_on(folder, PFedST(), rounds=ROUNDS)) == without_times(summary)
    same(left(folder), left(expected))


def first(table):
    return next(iter(table))


# -- a snapshot from which a client continues --------------------------------------------------------------------------


def model_of(change):
    """Change the personal tensors that are saved."""
    return lambda folder: forge(folder, lambda found: change(found.parts["client"]["model"]))


def part_of(name, value):
    return lambda folder: forge(folder, lambda found: found.parts["client"].update({name: value}))


def sent(change):
    """Change the shared tensors, which are saved in the message."""
    return lambda folder: forge(folder, lambda found: change(found.parts["message"][NET]))


def change_first(value):
    def change(tensors):
        tensors[first(tensors)] = value(tensors[first(tensors)])

    return change


def replaced(folder) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def other_sites(folder) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[1] / "site_b" / folder.name, folder)


def other_fit(folder) -> None:
    """The snapshot says that it is of another fit; its checksums are right."""
    found, other = read_snapshot(folder), folder.with_name("after-000009")
    name_snapshot(write_snapshot(other, found.about, found.parts), other)
    shutil.rmtree(folder)
    other.rename(folder)


def link_to_nowhere(folder) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


DAMAGE = {
    "removed": shutil.rmtree,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no client": lambda folder: (folder / "client.safetensors").unlink(),
    "no message": lambda folder: (folder / "message.safetensors").unlink(),
    "client cut": lambda folder: os.truncate(folder / "client.safetensors", 100),
    "message cut": lambda folder: os.truncate(folder / "message.safetensors", 100),
    "manifest cut": lambda folder: os.truncate(folder / "manifest.json", 100),
    "a file": replaced,
    "a link to nowhere": link_to_nowhere,
    "another site's": other_sites,
    "another fit's": other_fit,
    "a shape": model_of(change_first(lambda tensor: tensor[:1])),
    "a dtype": model_of(change_first(lambda tensor: tensor.double())),
    "NaN": model_of(change_first(lambda tensor: tensor * float("nan"))),
    "a key more": model_of(lambda model: model.update(x=torch.ones(1))),
    "a key less": model_of(lambda model: model.pop(first(model))),
    "a table for a tensor": model_of(change_first(lambda tensor: {"x": tensor})),
    "a tensor for a table": part_of("model", torch.ones(1)),
    "a tensor for a memo": part_of("memo", torch.ones(1)),
    "an optimiser of text": part_of("optimizer", {"x": {"y": torch.ones(1)}}),
    "a shared shape": sent(change_first(lambda tensor: tensor[..., :1])),
    "shared NaN": sent(change_first(lambda tensor: tensor * float("nan"))),
    "a shared key less": sent(lambda net: net.pop(first(net))),
    "a shared table": sent(change_first(lambda tensor: {"x": tensor})),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_of_the_newest_round_is_told_and_an_older_round_used(cut, whole, caplog, name) -> None:
    DAMAGE[name](cut / "run/sites/site_c/after-000002")
    ends_as(cut, whole)
    (warning,) = [r.getMessage() for r in caplog.records if "using an older round" in r.getMessage()]
    assert "sites/site_c/after-000002" in warning
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_in_all_rounds_is_one_error_that_names_the_file(cut, name) -> None:
    for number in (2, 1):
        DAMAGE[name](cut / f"run/sites/site_c/after-{number:06d}")
    before = (cut / "run/rounds.jsonl").read_bytes()
    with pytest.raises(StateError) as caught:
        go_on(cut, PFedST(), rounds=ROUNDS)
    assert "sites/site_c/after-00000" in str(caught.value)
    assert "restore a copy of it" in str(caught.value)
    assert "start a new run" in str(caught.value)
    assert (cut / "run/rounds.jsonl").read_bytes() == before


def test_what_was_damaged_may_be_put_back(cut, whole, tmp_path) -> None:
    sites = cut / "run/sites"
    sites.rename(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"sites/site_a/after-00000"):
        go_on(cut, PFedST(), rounds=ROUNDS)
    shutil.rmtree(sites, ignore_errors=True)
    (tmp_path / "elsewhere").rename(sites)
    ends_as(cut, whole)


class Damages(Callback):
    """Removes the state of a site after a round, while the run goes on."""

    def __init__(self, folder, round_number) -> None:
        self.folder, self.round_number = folder, round_number

    def on_validation_end(self, trainer, model) -> None:
        if trainer.global_step == self.round_number:
            os.truncate(self.folder / "client.safetensors", 10)


@pytest.mark.parametrize("evaluate_every", [1, 3])
def test_damage_during_a_run_is_told_and_the_run_can_be_resumed(tmp_path, whole, caplog, evaluate_every) -> None:
    """The client is left out and not evaluated; a run that is resumed looks for an older round."""
    options = {"rounds": ROUNDS, "evaluate_every": evaluate_every}
    round_number = 0 if evaluate_every == 3 else 1  # callbacks see evaluated rounds
    folder = tmp_path / "run/sites/site_b/after-000001"
    if round_number:
        callbacks = [Damages(folder, round_number)]
        summary = fit(tmp_path, PFedST(), trainer_options={"callbacks": callbacks}, **options)
        assert re.search(r"client site_b is excluded from round 2: .*site_b/after-000001.*--resume true", caplog.text)
        assert summary["left_out"] == {"site_b": {"StateError": 2}}
        assert summary["not_evaluated"] == {"site_b": [2, 3]}
    else:
        with pytest.raises(StopError):
            fit(tmp_path, dying(PFedST, 2, "site_c")(), **options)
        os.truncate(folder / "client.safetensors", 10)
        caplog.clear()
        resumed = go_on(tmp_path, PFedST(), **options)
        assert resumed["personal"] == whole[1]["personal"]
        assert caplog.text.count("using an older round") == 1
        assert resumed["left_out"] == {}


# -- a fit under way ---------------------------------------------------------------------------------------------------

FORGED_FITS = DAMAGE | {
    "no model in the message": lambda folder: forge(folder, lambda found: found.parts["message"].pop(NET)),
    "a tensor for a model": lambda folder: forge(
        folder, lambda found: found.parts["message"].update({NET: torch.ones(1)})
    ),
    "a tensor in the message": lambda folder: forge(
        folder, lambda found: found.parts["message"].update(x=torch.ones(1))
    ),
    "shared and infinite": sent(change_first(lambda tensor: tensor + float("inf"))),
    "a shared dtype": sent(change_first(lambda tensor: tensor.double())),
    "a shared key more": sent(lambda net: net.update(x=torch.ones(1))),
}


@pytest.mark.parametrize("name", [name for name in FORGED_FITS if name != "another site's"])
def test_a_damaged_or_forged_fit_is_told_and_done_again(cut, whole, caplog, name) -> None:
    """The reply to a fit is worth nothing if its client cannot continue from there."""
    FORGED_FITS[name](cut / "run/sites/site_a/after-000003")
    method = dying(PFedST, None, None)
    resumed = go_on(cut, method(), rounds=ROUNDS)
    resumed["protocol"]["method"] = "PFedST"
    assert without_times(resumed) == without_times(whole[1])
    same(left(cut), left(whole[0]))
    assert [name for _, name, _ in method.fitted] == ["site_a", "site_b", "site_c"]
    warnings = [text for record in caplog.records if (text := record.getMessage()).partition(":")[0] != "round 3"]
    # a folder that is gone, or leads nowhere, is no fit
    assert len(warnings) == (name not in ("removed", "a link to nowhere"))
    assert all("site_a/after-000003" in text and "the client is fitted again" in text for text in warnings)


FORGED_MESSAGES = {
    "a part more": lambda message: message.update(patients={"x": torch.ones(1)}),
    "huge numbers": lambda message: message.update({NET: {key: value * 1e9 for key, value in message[NET].items()}}),
}


@pytest.mark.parametrize("name", FORGED_MESSAGES)
def test_a_forged_message_is_refused_by_the_server(cut, name) -> None:
    forge(cut / "run/sites/site_a/after-000003", lambda found: FORGED_MESSAGES[name](found.parts["message"]))
    method = dying(PFedST, None, None)
    summary = go_on(cut, method(), rounds=ROUNDS)
    assert summary["left_out"] == {"site_a": {"StateError": 1}}
    assert [name for _, name, _ in method.fitted] == ["site_b", "site_c"]


def test_a_forged_message_reaches_no_worker_process_either(cut) -> None:
    """What is no tensor cannot be packed."""
    FORGED_FITS["a tensor in the message"](cut / "run/sites/site_a/after-000003")
    parallel = {"transport": "processes", "workers": 1, "threads": 1}
    assert go_on(cut, PFedST(), rounds=ROUNDS, **parallel)["left_out"] == {}


def test_what_is_forged_into_a_record_is_not_recorded(cut, whole) -> None:
    def change(found) -> None:
        found.about["record"] |= {
            "patients": ["4711"],
            "left_out": "x",
            "round": 99,
            "participated": False,
            "deep": [[[]]],
        }

    forge(cut / "run/sites/site_a/after-000003", change)
    assert without_times(go_on(cut, PFedST(), rounds=ROUNDS)) == without_times(whole[1])
    same((*left(cut)[:2], {}), (*left(whole[0])[:2], {}))


@pytest.mark.parametrize(
    "change",
    [
        {"train_loss": float("1e300")},
        {"train_loss": 10**400},
        {"images": -1},
        {"skipped_steps": True},
        {"trained": {"test": {"personal": 3}}},
    ],
    ids=str,
)
def test_a_forged_record_leaves_the_client_out_or_has_it_fitted_again(cut, caplog, change) -> None:
    forge(cut / "run/sites/site_a/after-000003", lambda found: found.about["record"].update(change))
    summary = go_on(cut, PFedST(), rounds=ROUNDS)
    assert summary["left_out"] in ({}, {"site_a": {"StateError": 1}})
    assert (summary["left_out"] == {}) == ("trained" not in change)
    assert "Traceback" not in caplog.text
    json.dumps(summary, allow_nan=False)


# -- what is in the way ------------------------------------------------------------------------------------------------


def in_the_way(place):
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("x")


@pytest.mark.parametrize("place", ["sites", "sites/site_c"])
def test_a_file_in_the_place_of_a_folder_of_sites_is_told(cut, place) -> None:
    in_the_way(cut / "run" / place)
    with pytest.raises(StateError, match=r"sites/site_./after-00000"):
        go_on(cut, PFedST(), rounds=ROUNDS)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_site_whose_predictions_cannot_be_written_is_not_evaluated(cut, whole, caplog, kind) -> None:
    """What is in the way is told, and the fits are those of a run without it."""
    folder = cut / "run/sites/site_c/predictions"
    if kind == "file":
        in_the_way(folder)
    else:
        (folder / "test.safetensors").unlink()
        (folder / "test.safetensors" / "x").mkdir(parents=True)
    assert go_on(cut, PFedST(), rounds=ROUNDS)["not_evaluated"] == {"site_c": [ROUNDS]}
    assert re.search(r"site_c is not evaluated .*site_c/predictions.* cannot be written", caplog.text)
    same(([], *left(cut)[1:]), ([], *left(whole[0])[1:]))


@pytest.mark.parametrize("content", [b"", b"x" * 1000, None])
def test_damaged_predictions_are_written_again(cut, whole, content) -> None:
    """No run reads them."""
    for file in (cut / "run/sites").rglob("predictions/*.safetensors"):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    ends_as(cut, whole)
    for file in sorted((cut / "run/sites").rglob("predictions/*.safetensors")):
        assert file.read_bytes() == (whole[0] / file.relative_to(cut)).read_bytes()


def test_what_a_killed_process_left_is_removed(cut, whole) -> None:
    sites = cut / "run/sites"
    for site in ("site_a", "site_b", "site_c"):
        for name in (".after-000003.1.new.part", ".after-000001.1.old.part"):
            (sites / site / name).mkdir()
            (sites / site / name / "client.safetensors").write_text("x")
        (sites / site / "predictions/.test.safetensors.1.part").write_text("x")
    ends_as(cut, whole)
    assert not list((cut / "run").rglob("*.part"))


def test_it_is_removed_also_where_every_fit_is_on_disk(tmp_path, whole) -> None:
    """Killed in the evaluation of the last round, for instance."""
    fit(tmp_path, PFedST(), rounds=ROUNDS)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    shutil.rmtree(run / "state/round-000003")
    (run / "sites/site_b/.after-000001.1.old.part").mkdir()
    method = dying(PFedST, None, None)
    go_on(tmp_path, method(), rounds=ROUNDS)
    assert method.fitted == ()
    assert not list(run.rglob("*.part"))
    same(left(tmp_path), left(whole[0]))


# -- a disk that refuses -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def absent_once(tmp_path_factory):
    """A run in which the bad client is not drawn in its round."""
    folder = tmp_path_factory.mktemp("absent")
    with without_the_bad():
        return folder, fit(folder, PFedST(), rounds=ROUNDS)


def refusing(name, at, half=None):
    """Let a method of Path fail for the snapshot of the bad client."""
    real = getattr(Path, name)

    def refuse(path, *arguments, **options):
        if f"/{BAD[0]}/" in str(path) and f"after-{BAD[1]:06d}" in str(path) and at in str(path):
            if half is not None:
                half(path, *arguments)
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **options)

    return refuse


def write_half(path, content) -> None:
    path.open("wb").write(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "at", "half"),
    [
        ("mkdir", ".part", None),
        ("write_bytes", "client.safetensors", None),
        ("write_bytes", "message.safetensors", write_half),
        ("write_bytes", "manifest.json", write_half),
        ("replace", ".new.part", None),
    ],
)
def test_a_full_disk_of_a_site_leaves_that_client_out(
    tmp_path, monkeypatch, caplog, absent_once, name, at, half
) -> None:
    monkeypatch.setattr(Path, name, refusing(name, at, half))
    summary = fit(tmp_path, PFedST(), rounds=ROUNDS)
    assert summary["left_out"] == {BAD[0]: {"StateError": 1}}
    assert f"client {BAD[0]} is excluded from round {BAD[1]}" in caplog.text
    assert "cannot be written (No space left on device)" in caplog.text
    assert "Traceback" not in caplog.text
    for model in ("personal", "generic"):
        assert summary[model] == absent_once[1][model]
    same(([], *left(tmp_path)[1:]), ([], *left(absent_once[0])[1:]))
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_full_disk_while_predictions_are_written_excludes_the_site(tmp_path, monkeypatch, whole, caplog) -> None:
    real = Path.replace

    def refuse(path, target):
        if "site_b/predictions" in str(path) and (tmp_path / "run/state/round-000001").is_dir():
            raise OSError(28, "No space left on device")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        summary = fit(tmp_path, PFedST(), rounds=ROUNDS)
    assert summary["not_evaluated"] == {"site_b": list(range(2, ROUNDS + 1))}
    assert re.search(r"predictions/.*No space left on device", caplog.text)
    assert not list((tmp_path / "run").rglob("*.part"))
    same(([], *left(tmp_path)[1:]), ([], *left(whole[0])[1:]))


# -- workers that outlive their run ------------------------------------------------------------------------------------


class Hangs(PFedST):
    """Never ends its fits."""

    def loss(self, client, batch):
        time.sleep(10**6)
        return super().loss(client, batch)


def children(process) -> list[str]:
    """The children of a process, and theirs."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return found + [below for child in found for below in children(child)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists the children of a process")
def test_workers_end_with_a_run_that_is_killed(tmp_path) -> None:
    """Else they would write into the folders of sites while the run is being resumed."""
    child = programs.start(programs.run_that_hangs, tmp_path / "output", tmp_path)
    while child.process.exitcode is None and not (tmp_path / "run/state/round-000000").is_dir():
        time.sleep(0.1)
    workers = children(child.process.pid)
    assert len(workers) >= 2, (tmp_path / "output").read_text()
    time.sleep(0.5)  # into the fits
    child.process.kill()
    child.process.join()
    deadline = time.monotonic() + 60
    while (alive := [worker for worker in workers if is_alive(worker)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in alive:
        os.kill(int(worker), signal.SIGKILL)
    assert alive == []


def is_alive(process) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
