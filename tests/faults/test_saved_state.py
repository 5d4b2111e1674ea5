"""What is on disk: fits are not done again, whatever is changed is found, and a disk that refuses loses nothing."""

import hashlib
import json
import os
import random
import shutil

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.cli import main
from pfedst.client.state import SiteState
from pfedst.errors import StateError, TooFewClientsError
from pfedst.methods.pfedst import PFedST
from pfedst.server.server import Server
from pfedst.state.run_state import RunState, StateSaver
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import fit, template
from tests.faults.runs_that_stop import StopError, dying, forge
from tests.server.runs import go_on, left, same, without_times
from tests.server.test_resume import CLI


def fits_of(folder, number):
    """Return the sites that hold a snapshot of a fit."""
    return sorted(path.parent.name for path in (folder / "run/sites").glob(f"*/after-{number:06d}"))


class Ring(FedAvg):
    sequential = True


class SendsItsRound(FedAvg):
    """What a message holds may depend on the round that a client is in."""

    extra_messages = ("round",)

    def upload(self, client):
        return super().upload(client) | {"round": {"number": torch.tensor(client.round)}}

    def merge(self, server, uploads, weights) -> None:
        super().merge(server, uploads, weights)
        server["rounds"] = {name: upload["round"]["number"] for name, upload in uploads.items()}


@pytest.mark.parametrize(
    ("base", "options"),
    [
        (PFedST, {}),
        (SCAFFOLD, {"optimizer_state": "keep"}),
        (Ditto, {"evaluate_every": 2}),
        (Ring, {}),
        (SendsItsRound, {}),
    ],
    ids=["PFedST", "SCAFFOLD", "Ditto", "ring", "round"],
)
def test_fits_that_are_on_disk_are_not_done_again(tmp_path, base, options) -> None:
    whole = fit(tmp_path / "whole", base(), rounds=2, **options)
    method = dying(base, 2, "site_c")
    with pytest.raises(StopError):
        fit(tmp_path / "cut", method(), rounds=2, **options)
    assert fits_of(tmp_path / "cut", 2) == ["site_a", "site_b"]
    method.alive, method.fitted = True, ()
    resumed = go_on(tmp_path / "cut", method(), rounds=2, **options)
    assert method.fitted == ((2, "site_c", False),)
    resumed["protocol"]["method"] = whole["protocol"]["method"]
    assert without_times(resumed) == without_times(whole)
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))


def test_fine_tuned_clients_are_not_fine_tuned_again(tmp_path) -> None:
    class Dies(PFedST):
        alive = False
        tuned: tuple = ()

        def loss(self, client, batch):
            if client.finetuning:
                if not self.alive and client.name == "site_b":
                    raise StopError
                type(self).tuned += (client.name,)
            return super().loss(client, batch)

    whole = fit(tmp_path / "whole", PFedST(finetune_epochs=1), keep_states=1)
    with pytest.raises(StopError):
        fit(tmp_path / "cut", Dies(finetune_epochs=1), keep_states=1)
    Dies.alive, Dies.tuned = True, ()
    resumed = go_on(tmp_path / "cut", Dies(finetune_epochs=1), keep_states=1, rounds=2)
    assert set(Dies.tuned) == {"site_b", "site_c"}
    resumed["protocol"]["method"] = "PFedST"
    assert without_times(resumed) == without_times(whole)
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))
    rounds = [path.name for path in RunState(tmp_path / "cut/run/state").rounds()]
    assert rounds == ["round-000002", "round-000002-finetuned"]
    longer = go_on(tmp_path / "cut", PFedST(finetune_epochs=1), keep_states=1, rounds=3)
    straight = fit(tmp_path / "long", PFedST(finetune_epochs=1), rounds=3)
    assert longer["personal"] == straight["personal"]
    rounds = [path.name for path in RunState(tmp_path / "cut/run/state").rounds()]
    assert rounds == ["round-000003", "round-000003-finetuned"]


def test_a_damaged_or_foreign_fit_is_told_and_done_again(tmp_path, caplog) -> None:
    whole = fit(tmp_path / "whole", PFedST(), rounds=2)
    method = dying(PFedST, 2, "site_c")
    with pytest.raises(StopError):
        fit(tmp_path / "cut", method(), rounds=2)
    sites = tmp_path / "cut/run/sites"
    file = next((sites / "site_a/after-000002").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    # the fit of another client under this one's name
    shutil.copytree(sites / "site_b/after-000002", sites / "site_c/after-000002")
    method.alive, method.fitted = True, ()
    resumed = go_on(tmp_path / "cut", method(), rounds=2)
    assert [name for _, name, _ in method.fitted] == ["site_a", "site_c"]
    assert caplog.text.count("the client is fitted again") == 2
    assert resumed["personal"] == whole["personal"]
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Rounds 1 and 2 of a run of three, and a fit of the third."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(StopError):
        fit(folder, dying(PFedST, 3, "site_b")(), rounds=3)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, never interrupted: its folder and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, PFedST(), rounds=3)


SNAPSHOTS = [
    "sites/site_a/after-000001",
    "sites/site_a/after-000002",
    "sites/site_a/after-000003",
    "sites/site_b/after-000001",
    "sites/site_b/after-000002",
    "sites/site_c/after-000001",
    "sites/site_c/after-000002",
    "state/best",
    "state/round-000001",
    "state/round-000002",
]


def ends_as(folder, whole, **options) -> None:
    """Resume a run; it ends as if it had never been interrupted."""
    expected, summary = whole
    assert without_times(go_on(folder, PFedST(), rounds=3, **options)) == without_times(summary)
    same(left(folder), left(expected))


def mutations(number, seed):
    """(what, how to change the bytes of a file)."""
    draw = random.Random(seed)

    def flip(content):
        place = draw.randrange(len(content))
        return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]

    def cut(content):
        return content[: draw.randrange(len(content))]

    def swap(content):
        middle = draw.randrange(1, len(content))
        return content[middle:] + content[:middle]

    def grow(content):
        return content + bytes(draw.randrange(1, 9))

    return [draw.choice((flip, cut, swap, grow)) for _ in range(number)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_of_a_state_is_found(interrupted, tmp_path, seed) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted / "run", run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and str(path.parent.relative_to(run)) in SNAPSHOTS)
    assert len(files) == 3 * 2 + 7 * 3  # a server's tensors and its manifest; a client, its message and a manifest
    draw = random.Random(seed)
    for change in mutations(60, seed):
        file = draw.choice(files)
        content = file.read_bytes()
        changed = change(content)
        if changed == content:
            continue
        file.write_bytes(changed)
        with pytest.raises(StateError, match=file.parent.name):
            read_snapshot(file.parent)
        file.write_bytes(content)
        read_snapshot(file.parent)


@pytest.mark.parametrize(
    ("folders", "file"),
    [
        (("state/round-000001", "state/round-000002"), "server.safetensors"),
        (("state/round-000001", "state/round-000002"), "manifest.json"),
        (("sites/site_a/after-000001", "sites/site_a/after-000002"), "client.safetensors"),
        (("sites/site_a/after-000001", "sites/site_b/after-000001"), "client.safetensors"),
        (("sites/site_a/after-000001", "sites/site_b/after-000001"), "message.safetensors"),
        (("sites/site_a/after-000001", "sites/site_a/after-000002"), "manifest.json"),
        (("sites/site_a/after-000001", "sites/site_b/after-000001"), "manifest.json"),
    ],
)
def test_files_and_folders_that_changed_places_are_found(interrupted, tmp_path, folders, file) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted / "run", run)
    one, other = (run / folder for folder in folders)
    content = (one / file).read_bytes(), (other / file).read_bytes()
    (one / file).write_bytes(content[1])
    (other / file).write_bytes(content[0])
    for folder in (one, other):
        with pytest.raises(StateError):
            read_snapshot(folder)
    (one / file).write_bytes(content[0])
    (other / file).write_bytes(content[1])
    one.rename(run / "x")
    other.rename(one)
    (run / "x").rename(other)
    if one.parent.name == "state":
        with pytest.raises(StateError, match="its content has changed"):
            RunState(run / "state").last_round()
    else:
        for folder in (one, other):
            with pytest.raises(StateError, match="its content has changed|not a snapshot of site"):
                SiteState(run / "sites", folder.parent.name).read(int(folder.name[6:]))


@pytest.mark.parametrize("name", ["state/round-000002", "sites/site_a/after-000003", "sites/site_c/after-000002"])
def test_a_file_in_the_place_of_a_snapshot_is_told_and_gives_way(interrupted, whole, tmp_path, caplog, name) -> None:
    shutil.copytree(interrupted, tmp_path / "cut")
    run = tmp_path / "cut/run"
    shutil.rmtree(run / name)
    (run / name).write_text("x")
    for place in ("state", "sites/site_a"):
        (run / place / ".round-000009.1.new.part").write_text("x")
        (run / place / "fit-of-someone").mkdir()
    ends_as(tmp_path / "cut", whole)
    warnings = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert sum("after-000003" not in name or "fitted again" in text for text in warnings) == len(warnings) > 0
    kept = ["best", "fit-of-someone", "round-000002", "round-000003"]
    assert sorted(path.name for path in (run / "state").iterdir()) == kept
    kept = ["after-000002", "after-000003", "calibration.json", "fit-of-someone", "predictions"]
    assert sorted(path.name for path in (run / "sites/site_a").iterdir() if path.name != "after-000001") == kept


def test_a_file_that_was_replaced_by_a_huge_one_is_not_read(interrupted, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted / "run", run)
    for folder in ("state/round-000002", "sites/site_a/after-000002"):
        for file in sorted(run.joinpath(folder).iterdir()):
            before = file.read_bytes()
            os.truncate(file, 2**42)  # a hole: four terabytes that take no room
            with pytest.raises(StateError, match=file.name):
                read_snapshot(file.parent)
            file.write_bytes(before)


def unreadable(kind, file) -> None:
    """Put something in the place of a file that would be read without an end."""
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"device": "/dev/zero", "circle": file.name}[kind])


@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_what_is_no_file_is_not_read(interrupted, tmp_path, kind) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted / "run", run)
    for folder in ("state/round-000002", "sites/site_a/after-000002"):
        for file in sorted(run.joinpath(folder).iterdir()):
            before = file.read_bytes()
            unreadable(kind, file)
            with pytest.raises(StateError, match=file.name):
                read_snapshot(file.parent)
            file.unlink()
            file.write_bytes(before)


def test_records_and_state_stay_together(interrupted, whole, tmp_path, caplog) -> None:
    def changed(name, change):
        shutil.copytree(interrupted, tmp_path / name)
        file = tmp_path / name / "run/rounds.jsonl"
        file.write_text(change(file.read_text()))
        return tmp_path / name

    lines = (interrupted / "run/rounds.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 9
    ends_as(changed("last", lambda text: text[:-40] + "9" + text[-39:]), whole)
    assert caplog.text.count("using an older round") == 1
    before = (interrupted / "run/rounds.jsonl").read_text()
    for change in (lambda text: "", lambda text: text.replace("site_a", "site_A", 1), lambda text: text[:30]):
        folder = changed(f"first {len(change(before))}", change)
        with pytest.raises(StateError, match=r"rounds.jsonl was changed"):
            go_on(folder, PFedST(), rounds=3)


# -- whoever can write a run's folder can make its sums right ----------------------------------------------------------


def forge_records(run, change) -> bytes:
    """Change the records of every round that is saved, and the marks of the states with them; what they are then."""
    file = run / "rounds.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    change(records)
    kept = [json.dumps(record) + "\n" for record in records]
    file.write_text("".join(kept))
    for folder in RunState(run / "state").rounds():
        of_round = "".join(
            line
            for line, record in zip(kept, records, strict=True)
            if not isinstance(record, dict) or record.get("round") not in range(int(folder.name[6:]) + 1, 99)
        ).encode()
        mark = {"bytes": len(of_round), "sha256": hashlib.sha256(of_round).hexdigest()}
        forge(folder, lambda found, mark=mark: found.about.update(records=mark))
    return file.read_bytes()


FORGED_RECORDS = {
    "no object": lambda records: records.__setitem__(3, [1]),
    "a round of text": lambda records: records[3].update(round="1"),
    "a client that is not there": lambda records: records[3].update(client="x"),
    "a client that is a list": lambda records: records[3].update(client=[]),
    "a client twice": lambda records: records[3].update(client=records[2]["client"]),
    "no setup": lambda records: records[0].pop("setup_upload_bytes"),
    "no loss": lambda records: records[3].pop("train_loss"),
    "a loss beyond any float": lambda records: records[3].update(train_loss=10**400),
    "a loss of text": lambda records: records[3].update(train_loss="0.1"),
    "a list of faults": lambda records: records[3].update(left_out=[]),
    "never evaluated": lambda records: [record.pop("received", None) for record in records],
    "no test": lambda records: records[3]["received"].pop("test"),
    "another split": lambda records: records[3]["received"].update(x={}),
    "no generic model": lambda records: records[3]["received"]["test"].pop("generic"),
    "no accuracy": lambda records: records[3]["received"]["test"]["personal"].pop("accuracy"),
    "squares beyond any float": lambda records: records[3]["received"]["test"]["personal"].update(accuracy=1e200),
    "kappas of one client": lambda records: records[3]["received"]["test"]["personal"].update(quadratic_kappa=1.0),
    "trained, no metrics": lambda records: records[3].update(trained={"test": {"personal": 3}}),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of two rounds by the command line, whose summary was not written any more."""
    folder = tmp_path_factory.mktemp("ended")
    assert main([*CLI, f"--runs_dir={folder}", "--coordinator.rounds=2"]) == 0
    (folder / "a/summary.json").unlink()
    return folder


@pytest.mark.parametrize("change", FORGED_RECORDS.values(), ids=FORGED_RECORDS)
def test_records_that_no_run_writes_are_told(ended, tmp_path, capsys, change) -> None:
    shutil.copytree(ended / "a", tmp_path / "a")
    before = forge_records(tmp_path / "a", change)
    capsys.readouterr()
    assert main([*CLI, f"--runs_dir={tmp_path}", "--coordinator.rounds=2", "--resume"]) == 5
    message = capsys.readouterr().err
    assert "rounds.jsonl, line " in message
    assert "restore the original file, or start a new run" in message
    assert "Traceback" not in message
    assert (tmp_path / "a/rounds.jsonl").read_bytes() == before


def test_records_that_are_forged_within_reason_are_read(ended, tmp_path) -> None:
    """Keys that this version does not know are let be, and so are numbers that could be."""

    def change(records):
        records[3].update(unknown={"personal": {"confusion": [[1]]}}, train_loss=3)
        for record, accuracy in zip(records[2:4], (0, None), strict=True):
            record["received"]["test"]["personal"].update(accuracy=accuracy, ece=0.5)

    shutil.copytree(ended / "a", tmp_path / "a")
    forge_records(tmp_path / "a", change)
    assert main([*CLI, f"--runs_dir={tmp_path}", "--coordinator.rounds=2", "--resume"]) == 0


def test_a_round_whose_records_are_forged_is_left_for_the_one_before(ended, tmp_path, caplog) -> None:
    shutil.copytree(ended / "a", tmp_path / "a")
    forge_records(tmp_path / "a", lambda records: records[-1].update(client="x"))
    assert main([*CLI, f"--runs_dir={tmp_path}", "--coordinator.rounds=2", "--resume"]) == 0
    assert caplog.text.count("using an older round") == 1
    assert json.loads((tmp_path / "a/summary.json").read_text())["cost"]["resumed_after_round"] == 1


@pytest.mark.parametrize("size", [2**40, 10**30, -1, "x", None])
def test_a_mark_that_claims_more_than_there_is_is_told(ended, tmp_path, capsys, size) -> None:
    shutil.copytree(ended / "a", tmp_path / "a")
    for folder in RunState(tmp_path / "a/state").rounds():
        forge(folder, lambda found: found.about["records"].update(bytes=size))
    assert main([*CLI, f"--runs_dir={tmp_path}", "--coordinator.rounds=2", "--resume"]) == 5
    assert "was changed after it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"record": 3}, {"record": {"train_loss": 1.0}}, {"request": None}, {"record": None}]
)
def test_a_forged_fit_is_done_again(interrupted, whole, tmp_path, change) -> None:
    shutil.copytree(interrupted, tmp_path / "a")
    forge(tmp_path / "a/run/sites/site_a/after-000003", lambda found: found.about.update(change))
    method = dying(PFedST, None, None)
    go_on(tmp_path / "a", method(), rounds=3)
    assert method.fitted == tuple((3, f"site_{x}", False) for x in "abc")
    same(left(tmp_path / "a"), left(whole[0]))


FORGED_ANCHORS = {
    "more classes": lambda anchors: {"classes": torch.cat([anchors, anchors])},
    "no table": lambda anchors: {"classes": anchors[0]},
    "other numbers": lambda anchors: {"classes": anchors.long()},
    "no numbers": lambda anchors: {"classes": anchors * float("nan")},
    "another name": lambda anchors: {"x": anchors},
    "none": lambda anchors: {},
}


@pytest.mark.parametrize("change", FORGED_ANCHORS.values(), ids=FORGED_ANCHORS)
def test_class_anchors_that_do_not_fit_are_told(interrupted, tmp_path, change) -> None:
    shutil.copytree(interrupted, tmp_path / "a")
    for folder in RunState(tmp_path / "a/run/state").rounds():
        forge(
            folder,
            lambda found: found.parts["server"].update(anchors=change(found.parts["server"]["anchors"]["classes"])),
        )
    with pytest.raises(StateError, match="the saved class anchors"):
        go_on(tmp_path / "a", PFedST(), rounds=3)


def test_class_anchors_where_they_are_learned_are_told(tmp_path) -> None:
    learned = template(anchors="learned")
    fit(tmp_path, FedAvg(), model=learned)
    (tmp_path / "run/summary.json").unlink()
    for folder in RunState(tmp_path / "run/state").rounds():
        forge(folder, lambda found: found.parts["server"].update(anchors={"classes": torch.zeros(3, 64)}))
    with pytest.raises(StateError, match="the saved class anchors"):
        go_on(tmp_path, FedAvg(), rounds=2, model=learned)


# -- a disk that refuses -----------------------------------------------------------------------------------------------


def refusing(monkeypatch, name, times):
    """Let a function of `os` fail from its n-th call on."""
    called, real = [], getattr(os, name)

    def refuse(*arguments):
        called.append(arguments)
        if len(called) > times:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(f"os.{name}", refuse)


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory):
    """The folder of a run by the command line that no disk refused."""
    folder = tmp_path_factory.mktemp("three_rounds")
    assert main([*CLI, f"--runs_dir={folder}", "--coordinator.rounds=3"]) == 0
    return folder


@pytest.mark.parametrize("times", [0, 3, 8, 13, 18, 23, 28, 33, 43])
def test_a_full_disk_ends_a_run_with_the_state_before(three_rounds, tmp_path, monkeypatch, capsys, times) -> None:
    """While the server's state is written, or a site's: then too few clients report."""
    arguments = [*CLI, f"--runs_dir={tmp_path}", "--coordinator.rounds=3"]
    with monkeypatch.context() as patch:
        refusing(patch, "fsync", times)
        assert main(arguments) in (StateError.exit_code, TooFewClientsError.exit_code)
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "--resume true" in message
    assert "Traceback" not in message
    assert not list((tmp_path / "a").rglob("*.part"))
    assert main([*arguments, "--resume"]) == 0
    summaries = [json.loads((folder / "a/summary.json").read_text()) for folder in (tmp_path, three_rounds)]
    assert without_times(summaries[0]) == without_times(summaries[1])


def test_a_file_larger_than_the_disk_takes(tmp_path) -> None:
    """With the limit of the system on the size of a file: what a full disk says while a file is written."""
    resource = pytest.importorskip("resource")
    saver = StateSaver(tmp_path, keep=2)
    with saver:
        saver.save("round-000001", {}, {"server": {"w": torch.zeros(10)}})
        saver.wait()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(StateError, match="cannot be written"):
                saver.save("round-000002", {}, {"server": {"w": torch.zeros(10_000)}})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    assert RunState(tmp_path).last_round().parts["server"]["w"].shape == (10,)


def test_a_data_folder_that_vanishes_ends_the_run_and_it_goes_on(tmp_path, capsys) -> None:
    from PIL import Image

    root = tmp_path / "data"
    for site in ("a", "b"):
        for split in ("train", "test"):
            for label in ("x", "y"):
                for index in range(4):
                    file = root / site / split / label / f"{index}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    seed = sum(map(ord, f"{site}{split}{label}{index}"))
                    Image.frombytes("RGB", (32, 32), random.Random(seed).randbytes(3072)).save(file)

    arguments = [option for option in CLI if not option.startswith("--data")]
    arguments += ["--data=FolderSites", f"--data.root={root}", f"--runs_dir={tmp_path}", "--coordinator.rounds=2"]
    arguments += ["--data.cache_folder", str(tmp_path / "seen"), "--data.validation_fraction=0"]
    assert main([*arguments[:-1], "--data.validation_fraction=0", "--name=whole"]) == 0

    merge = Server.merge
    with pytest.MonkeyPatch.context() as patch:

        def merge_and_lose(self, messages):
            merge(self, messages)
            if root.is_dir():
                root.rename(tmp_path / "elsewhere")

        patch.setattr(Server, "merge", merge_and_lose)
        assert main(arguments) == 6  # each site says why it could not be evaluated, and no other is left
    message = capsys.readouterr().err
    assert "no such file" in message
    assert "no site could be evaluated" in message
    assert "Traceback" not in message
    (tmp_path / "elsewhere").rename(root)
    assert main([*arguments, "--resume"]) == 0
    numbers = [json.loads((tmp_path / name / "summary.json").read_text())["personal"] for name in ("a", "whole")]
    assert numbers[0] == numbers[1]


# -- the command -------------------------------------------------------------------------------------------------------


def test_three_ways_to_say_it(tmp_path, capsys) -> None:
    arguments = [*CLI, f"--runs_dir={tmp_path}"]
    assert main([*arguments, "--coordinator.rounds=1"]) == 0
    for rounds, words in ((2, ["--resume"]), (3, ["--resume", "true"]), (4, ["--ckpt_path", "last"])):
        assert main([*arguments, f"--coordinator.rounds={rounds}", *words]) == 0
        summary = json.loads((tmp_path / "a/summary.json").read_text())
        assert summary["cost"]["resumed_after_round"] == rounds - 1
    capsys.readouterr()
    assert main([*arguments, "--ckpt_path", "some/file.ckpt"]) == 2
    assert "--ckpt_path some/file.ckpt: fit continues `last`" in capsys.readouterr().err


def test_a_fine_tuned_state_alone_is_no_reason_to_start_anew(tmp_path) -> None:
    """The round that it was made of is damaged: told, and nothing of the run is thrown away."""
    fit(tmp_path, PFedST(finetune_epochs=1), keep_states=1)
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/state/round-000002/server.safetensors").write_bytes(b"")
    before = (tmp_path / "run/rounds.jsonl").read_bytes()
    with pytest.raises(StateError, match=r"round-000002"):
        go_on(tmp_path, PFedST(finetune_epochs=1), keep_states=1, rounds=2)
    assert (tmp_path / "run/rounds.jsonl").read_bytes() == before
