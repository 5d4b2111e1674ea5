"""A run that was interrupted goes on, and ends as if it never had been: same numbers, same records, same state."""

import json
import shutil
import signal
import time
from contextlib import nullcontext

import pytest
from lightning.pytorch import Callback
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedprox import FedProx
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.scaffold import SCAFFOLD
from pfedst_baselines.zero_shot import ZeroShot

from pfedst.cli import main
from pfedst.cli.resume import check_same_configuration, resumable
from pfedst.client.state import SiteState
from pfedst.configuration.renamed_options import CONFIG_FORMAT
from pfedst.errors import ConfigurationError, InterruptedRunError, StateError
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder
from pfedst.state.snapshot import name_snapshot
from pfedst.testing.small import data, fit
from tests import programs
from tests.server.runs import go_on, left, merged_fits, same, without_times


class StopError(Exception):
    pass


class StopAfter(Callback):
    """Ends a run with an error after a round's evaluation, when its state is being saved."""

    def __init__(self, round_number: int) -> None:
        self.round_number = round_number

    def on_validation_end(self, trainer, model) -> None:
        if trainer.global_step == self.round_number:
            raise StopError


def interrupted(folder, method, round_number, **options) -> None:
    with pytest.raises(StopError):
        fit(folder, method, trainer_options={"callbacks": [StopAfter(round_number)]}, **({"rounds": 4} | options))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Gives an uninterrupted run of a method, run once for all tests that compare with it: its summary, what it left."""
    done = {}

    def run(make, **options):
        key = repr((make, options))
        if key not in done:
            folder = tmp_path_factory.mktemp("whole")
            summary = fit(folder, make(), **({"rounds": 4} | options))
            done[key] = summary, left(folder)
        return done[key]

    return run


@pytest.fixture(scope="module")
def interrupt(tmp_path_factory):
    """Leaves a run that was interrupted in a folder: a copy of one that was made for all tests."""
    done = {}

    def copy(folder, make, round_number):
        key = make, round_number
        if key not in done:
            done[key] = tmp_path_factory.mktemp("cut")
            interrupted(done[key], make(), round_number)
        shutil.copytree(done[key], folder, dirs_exist_ok=True)

    return copy


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (PFedST, {}),
        (PFedST, {"optimizer_state": "keep"}),
        (lambda: PFedST(finetune_epochs=1), {}),
        (FedAvg, {"participation": 0.4, "evaluate_every": 2}),
        (SCAFFOLD, {"optimizer_state": "keep"}),
        (Ditto, {}),
        (Pooled, {}),
    ],
    ids=["PFedST", "kept optimiser", "fine-tuning", "some clients", "SCAFFOLD", "Ditto", "Pooled"],
)
def test_it_ends_as_if_it_had_never_been_interrupted(tmp_path, whole_run, make, options) -> None:
    whole, whole_left = whole_run(make, **options)
    interrupted(tmp_path / "cut", make(), 2, **options)
    assert RunFolder(tmp_path / "cut/run").summary() is None
    resumed = go_on(tmp_path / "cut", make(), **options)
    assert without_times(resumed) == without_times(whole)
    assert (whole["cost"]["resumed_after_round"], resumed["cost"]["resumed_after_round"]) in ((None, 1), (None, 2))
    same(left(tmp_path / "cut"), whole_left)


def test_without_a_saved_round_it_starts_anew_and_a_method_without_training_has_one_round(tmp_path, caplog) -> None:
    whole = fit(tmp_path / "whole", FedAvg(), rounds=2)
    interrupted(tmp_path / "cut", FedAvg(), 1, rounds=2)
    shutil.rmtree(tmp_path / "cut/run/state")
    assert without_times(go_on(tmp_path / "cut", FedAvg(), rounds=2)) == without_times(whole)
    assert "starts again" in caplog.text
    zero = fit(tmp_path / "zero", ZeroShot())
    assert without_times(go_on(tmp_path / "zero", ZeroShot(), rounds=2)) == without_times(zero)


def test_a_damaged_round_is_told_and_the_one_before_is_used(tmp_path, interrupt, whole_run, caplog) -> None:
    whole, _ = whole_run(PFedST)
    interrupt(tmp_path / "cut", PFedST, 3)
    file = sorted((tmp_path / "cut/run/state").glob("round-*"))[-1] / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert without_times(go_on(tmp_path / "cut", PFedST())) == without_times(whole)
    assert caplog.text.count("is damaged") == 1
    for file in (tmp_path / "cut/run/state").rglob("manifest.json"):
        file.write_text("{")
    with pytest.raises(StateError, match=r"manifest.json"):
        go_on(tmp_path / "cut", PFedST(), rounds=5)


def flip(snapshot):
    file = snapshot / "client.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


DAMAGES = {
    "lost": shutil.rmtree,
    "changed": flip,
    "of another site": lambda snapshot: (
        shutil.rmtree(snapshot),
        shutil.copytree(snapshot.parent.parent / "site_a" / snapshot.name, snapshot),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_of_a_site_is_told_and_the_round_before_is_used(
    tmp_path, interrupt, whole_run, caplog, damage
) -> None:
    whole, whole_left = whole_run(PFedST)
    interrupt(tmp_path / "cut", PFedST, 3)
    newest, after = merged_fits(tmp_path / "cut")
    damage(SiteState(tmp_path / "cut/run/sites", "site_b").path(after["site_b"]))
    resumed = go_on(tmp_path / "cut", PFedST())
    assert without_times(resumed) == without_times(whole)
    same(left(tmp_path / "cut"), whole_left)
    assert resumed["cost"]["resumed_after_round"] == int(newest.name[-1]) - 1
    assert caplog.text.count("client site_b continues from this folder") == 1
    assert caplog.text.count("using an older round") == 1


def test_states_of_a_site_that_are_all_lost_are_told_and_the_run_is_as_it_was(tmp_path, interrupt, whole_run) -> None:
    """Put back, they are continued from: nothing of the run is thrown away."""
    whole, _ = whole_run(PFedST)
    interrupt(tmp_path / "cut", PFedST, 3)
    folder, before = tmp_path / "cut/run/sites/site_b", left(tmp_path / "cut")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"site_b.*restore a copy of it"):
        go_on(tmp_path / "cut", PFedST())
    shutil.rmtree(folder, ignore_errors=True)
    (tmp_path / "elsewhere").rename(folder)
    same(left(tmp_path / "cut"), before)
    assert without_times(go_on(tmp_path / "cut", PFedST())) == without_times(whole)


@pytest.mark.parametrize("keep_states", [1, 2])
def test_a_round_that_the_disk_refused_is_no_loss(tmp_path, whole_run, monkeypatch, keep_states) -> None:
    """It is written while the next one is trained; what its clients have dropped by then is not needed."""
    name = "pfedst.state.run_state.name_snapshot"

    def refuse(temporary, final) -> None:
        if final.name == "round-000003":
            raise OSError(28, "No space left on device")
        name_snapshot(temporary, final)

    options = {"keep_states": keep_states, "rounds": 4}
    whole, whole_left = whole_run(PFedST, **options)
    with monkeypatch.context() as patch:
        patch.setattr(name, refuse)
        with pytest.raises(StateError, match="No space left on device"):
            fit(tmp_path / "cut", PFedST(), **options)
    newest, after = merged_fits(tmp_path / "cut")
    assert newest.name == "round-000002"
    assert max(SiteState(tmp_path / "cut/run/sites", "site_a").numbers()) == 4
    assert after["site_a"] == 2
    assert without_times(go_on(tmp_path / "cut", PFedST(), **options)) == without_times(whole)
    same(left(tmp_path / "cut"), whole_left)


def test_a_half_written_record_and_half_a_round_are_dropped(tmp_path, interrupt, whole_run) -> None:
    whole, whole_left = whole_run(FedAvg)
    interrupt(tmp_path / "cut", FedAvg, 3)
    file = tmp_path / "cut/run/rounds.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # round 3 is saved, but one of its lines is not whole
    (tmp_path / "cut/run/state/.round-000009.1.part").mkdir()
    (tmp_path / "cut/run/.rounds.jsonl.1.part").write_text("{")
    assert without_times(go_on(tmp_path / "cut", FedAvg())) == without_times(whole)
    same(left(tmp_path / "cut"), whole_left)
    assert not list((tmp_path / "cut/run").rglob(".*"))


def test_callbacks_see_the_rounds_that_are_done(tmp_path, interrupt) -> None:
    class Seen(Callback):
        def __init__(self) -> None:
            self.found = []

        def on_validation_end(self, trainer, model) -> None:
            self.found.append((trainer.global_step, trainer.callback_metrics["federation/test/accuracy"].item()))

    whole, again = Seen(), Seen()
    fit(tmp_path / "whole", FedAvg(), rounds=4, trainer_options={"callbacks": [whole]})
    interrupt(tmp_path / "cut", FedAvg, 2)
    go_on(tmp_path / "cut", FedAvg(), callbacks=[again])
    assert again.found == whole.found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": lambda: data(seed=1)}, ["data was"]),
        ({"sites": lambda: data(split_seed=1)}, ["data was"]),
        ({"threads": 2}, ["threads was 1, is 2"]),
    ],
)
def test_what_the_run_is_made_of_may_not_change(tmp_path, interrupt, change, words) -> None:
    interrupt(tmp_path, FedAvg, 2)
    before = left(tmp_path)
    sites = change.pop("sites", data)()
    with pytest.raises(StateError) as caught:
        go_on(tmp_path, FedAvg(), sites=sites, **change)
    assert [word for word in [*words, "start a new run"] if word not in str(caught.value)] == []
    same(left(tmp_path), before)


def test_a_method_of_other_tensors_is_refused(tmp_path, interrupt) -> None:
    interrupt(tmp_path, PFedST, 2)
    with pytest.raises(StateError):
        go_on(tmp_path, PFedST(rank=3))


def test_more_rounds_go_on_from_a_finished_run(tmp_path) -> None:
    whole = fit(tmp_path / "whole", FedProx(), rounds=4)
    fit(tmp_path / "short", FedProx(), rounds=2)
    longer = go_on(tmp_path / "short", FedProx())
    assert without_times(longer) == without_times(whole)


def test_what_was_fine_tuned_is_no_start_for_fine_tuning(tmp_path) -> None:
    whole = fit(tmp_path, PFedST(finetune_epochs=1), rounds=3)
    before = left(tmp_path)
    (tmp_path / "run/summary.json").unlink()
    assert without_times(go_on(tmp_path, PFedST(finetune_epochs=1), rounds=3)) == without_times(whole)
    same(left(tmp_path), before)


def test_a_run_that_a_callback_ended_stays_ended(tmp_path) -> None:
    class Enough(Callback):
        def on_validation_end(self, trainer, model) -> None:
            trainer.should_stop = trainer.global_step == 2

    whole = fit(tmp_path, FedAvg(), rounds=4, trainer_options={"callbacks": [Enough()]})
    (tmp_path / "run/summary.json").unlink()
    assert without_times(go_on(tmp_path, FedAvg(), callbacks=[Enough()])) == without_times(whole)


def saved(folder) -> str:
    """The newest round."""
    return max((path.name for path in (folder / "run/state").glob("round-*")), default="")


def test_killed_at_any_moment_it_goes_on(tmp_path, whole_run) -> None:
    whole, whole_left = whole_run(PFedST, rounds=12)
    folder = tmp_path / "killed"
    for wait in (0.05, 0.2):
        child = programs.start(programs.run_or_go_on, tmp_path / "output", folder, 12)
        before = saved(folder)
        while child.process.exitcode is None and saved(folder) == before:
            time.sleep(0.01)
        time.sleep(wait)
        child.process.kill()
        child.process.join()
        assert saved(folder) > before, (tmp_path / "output").read_text()
        assert RunFolder(folder / "run").summary() is None
    resumed = go_on(folder, PFedST(), rounds=12)
    assert without_times(resumed) == without_times(whole)
    same(left(folder), whole_left)


CLI = [
    "fit",
    "--method=PFedST",
    "--model.encoder.model=vit-nano",
    "--model.encoder.weights=random",
    "--model.encoder.image_size=32",
    "--model.anchors=prototypes",
    "--data=SyntheticSites",
    "--data.sites=2",
    "--data.samples_per_site=[12,10]",
    "--data.test_samples_per_site=[8,8]",
    "--trainer.accelerator=cpu",
    "--coordinator.threads=1",  # as many in a process of its own as in the tests'
    "--name=a",
]


def command(tmp_path, *more):
    return main([*CLI, f"--runs_dir={tmp_path}", *more])


@pytest.fixture(scope="module")
def of_two_rounds(tmp_path_factory):
    """Leaves a run of the command in a folder: a copy of one that was made for all tests."""
    made = tmp_path_factory.mktemp("two_rounds")
    assert command(made, "--coordinator.rounds=2") == 0
    return lambda folder: shutil.copytree(made / "a", folder / "a")


def test_the_command_starts_goes_on_and_says_when_there_is_nothing_to_do(tmp_path, capsys) -> None:
    assert command(tmp_path, "--coordinator.rounds=2", "--resume=true") == 0
    assert command(tmp_path, "--coordinator.rounds=2") == 2
    assert "never overwritten" in capsys.readouterr().err
    summary = (tmp_path / "a/summary.json").read_bytes()
    assert command(tmp_path, "--coordinator.rounds=2", "--resume=true", "--coordinator.keep_states=3") == 0
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "a/summary.json").read_bytes() == summary
    assert command(tmp_path, "--coordinator.rounds=3", "--resume=true") == 0
    assert json.loads((tmp_path / "a/summary.json").read_text())["cost"]["resumed_after_round"] == 2
    whole = main([*CLI[:-1], "--name=b", f"--runs_dir={tmp_path}", "--coordinator.rounds=3"])
    assert whole == 0
    numbers = [json.loads((tmp_path / name / "summary.json").read_text())["personal"] for name in "ab"]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--coordinator.rounds=1"], 2, ["--coordinator.rounds was 2, is 1", "new --name"]),
        (["--data.batch_size=3"], 2, ["--data.init_args.batch_size was 32, is 3"]),
        (["--method.rank=4", "--seed_everything=4"], 2, ["rank was 2, is 4", "seed_everything was 0, is 4"]),
        (["--data.seed=1"], 2, ["--data.init_args.seed was 0, is 1"]),
    ],
)
def test_what_may_not_change_is_told_key_by_key(tmp_path, of_two_rounds, capsys, options, code, words) -> None:
    of_two_rounds(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command(tmp_path, "--coordinator.rounds=2", "--resume=true", *options) == code
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


CHECKED = f"config_format: {CONFIG_FORMAT}\ncoordinator: {{rounds: %d, lr_schedule: %s, warmup_rounds: 1}}\n"


@pytest.mark.parametrize(("kind", "refused"), [("constant", False), ("cosine", True), ("step", True)])
def test_more_rounds_would_change_the_learning_rates_of_finished_ones(tmp_path, kind, refused) -> None:
    (tmp_path / "config.yaml").write_text(CHECKED % (2, kind))
    check_same_configuration(tmp_path, CHECKED % (2, kind), {})
    with pytest.raises(ConfigurationError, match="rounds was 2, is 3") if refused else nullcontext():
        check_same_configuration(tmp_path, CHECKED % (3, kind), {})


def test_an_option_that_is_newer_than_the_run_may_be_at_its_default(tmp_path, of_two_rounds) -> None:
    of_two_rounds(tmp_path)
    file = tmp_path / "a/config.yaml"
    text = "".join(line for line in file.read_text().splitlines(True) if "lr_schedule" not in line)
    assert text.count("\n") == file.read_text().count("\n") - 1
    file.write_text(text)
    assert command(tmp_path, "--coordinator.rounds=3", "--resume=true", "--coordinator.lr_schedule=step") == 2
    assert command(tmp_path, "--coordinator.rounds=3", "--resume=true") == 0


def test_damaged_files_of_a_run_are_told(tmp_path, of_two_rounds, capsys) -> None:
    of_two_rounds(tmp_path)
    for name, words in (
        ("summary.json", "remove it"),
        ("identity.json", "start a new one"),
        ("config.yaml", "start a"),
    ):
        kept = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_text("{[")
        more = [] if name == "summary.json" else ["--coordinator.rounds=3"]
        capsys.readouterr()
        assert command(tmp_path, *(more or ["--coordinator.rounds=2"]), "--resume=true") == 5
        message = capsys.readouterr().err
        assert name in message
        assert words in message
        (tmp_path / "a" / name).write_bytes(kept)
    assert main(["fit", *CLI[1:-1], "--resume=true", f"--runs_dir={tmp_path}"]) == 2
    assert "give the --name" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_an_error_and_its_handler_comes_back(tmp_path, number) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(InterruptedRunError, match="--name a --resume true"),
        resumable("give --name a --resume true"),
    ):
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_signal_ends_a_run_with_how_to_go_on(tmp_path) -> None:
    output = tmp_path / "output"
    child = programs.start(
        programs.command, output, *CLI, f"--runs_dir={tmp_path}", "--resume=true", "--coordinator.rounds=500"
    )
    while child.process.exitcode is None and not list((tmp_path / "a/state").glob("round-*")):
        time.sleep(0.02)
    child.process.terminate()
    child.process.join(600)
    assert child.process.exitcode == 130
    assert "--name a --resume true" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert not list((tmp_path / "a/state").glob(".*"))
    rounds = int(max((tmp_path / "a/state").glob("round-*")).name[-6:])
    file = tmp_path / "a/config.yaml"
    file.write_text(file.read_text().replace("rounds: 500", f"rounds: {rounds}"))
    assert command(tmp_path, f"--coordinator.rounds={rounds + 1}", "--resume=true") == 0
