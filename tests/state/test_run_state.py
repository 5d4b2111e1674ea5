"""The server's rounds on disk: the last ones are kept, and saving hides no error."""

import logging
import subprocess
import sys
import time

import pytest
import torch

from pfedst.errors import ConfigurationError, StateError
from pfedst.state.run_state import RunState, StateSaver

PARTS = {"server": {"method": {"net": {"side.up.weight": torch.arange(6.0).reshape(2, 3)}}}}


def save_round(folder, round_number, parts, keep):
    with StateSaver(folder, keep) as saver:
        saver.save(RunState.round_name(round_number), {}, parts)
    return folder / f"round-{round_number:06d}"


def last(folder):
    found = RunState(folder).last_round()
    return RunState.round_of(found.name), found.parts


def test_the_last_rounds_are_kept(tmp_path) -> None:
    for round_number in (1, 2, 3):
        save_round(tmp_path, round_number, {"server": {"w": torch.tensor(float(round_number))}}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["round-000002", "round-000003"]
    round_number, parts = last(tmp_path)
    assert round_number == 3
    assert parts["server"]["w"].item() == 3


def test_a_round_that_a_kill_left_too_many_goes_when_the_run_ends_well(tmp_path) -> None:
    """A process may be killed between the new round and the removal of the old one, after the last round too."""
    for round_number in (1, 2, 3):
        save_round(tmp_path, round_number, PARTS, keep=3)
    with pytest.raises(KeyError), StateSaver(tmp_path, 2):
        raise KeyError
    assert len(RunState(tmp_path).rounds()) == 3
    with StateSaver(tmp_path, 2):
        pass
    assert [path.name for path in RunState(tmp_path).rounds()] == ["round-000002", "round-000003"]


def test_the_best_round_is_kept_under_its_own_name(tmp_path) -> None:
    with StateSaver(tmp_path, 1) as saver:
        for round_number in (1, 2, 3):
            saver.save(RunState.round_name(round_number), {}, PARTS)
            if round_number == 1:
                saver.save(RunState.BEST, {"round": 1}, PARTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "round-000003"]
    assert [path.name for path in RunState(tmp_path).rounds()] == ["round-000003"]


def test_a_fine_tuned_round_goes_when_its_run_has_continued(tmp_path) -> None:
    with StateSaver(tmp_path, 2) as saver:
        for number, finetuned in ((1, False), (2, False), (2, True)):
            saver.save(RunState.round_name(number, finetuned), {}, PARTS)
        saver.wait()
        names = ["round-000001", "round-000002", "round-000002-finetuned"]
        assert [path.name for path in saver.state.rounds()] == names
        assert saver.state.last_round().name == names[-1]
        assert next(saver.state.whole_rounds(finetuned=False)).name == "round-000002"
        saver.save(RunState.round_name(3), {}, PARTS)
    assert [path.name for path in RunState(tmp_path).rounds()] == ["round-000002", "round-000003"]


def test_of_damaged_rounds_the_older_ones_are_found(tmp_path, caplog) -> None:
    folders = [save_round(tmp_path, number, PARTS, keep=3) for number in (1, 2, 3)]
    (folders[2] / "server.safetensors").unlink()
    (folders[1] / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert [found.name for found in RunState(tmp_path).whole_rounds()] == ["round-000001"]
    assert caplog.text.count("missing or damaged") == 2
    assert caplog.text.count("using an older round, round-000001") == 2
    assert not RunState(tmp_path).is_last("round-000001")
    assert RunState(tmp_path).is_last("round-000003")
    (folders[0] / "manifest.json").write_text("{")
    with pytest.raises(StateError, match=r"round-000003"):  # the newest is told
        list(RunState(tmp_path).whole_rounds())
    assert list(RunState(tmp_path / "none").whole_rounds()) == []


def test_other_folders_are_no_rounds(tmp_path) -> None:
    for name in ("round-12", "round-000001x", "x-round-000001", "round-of-someone", ".round-000002.1.new.part"):
        (tmp_path / name).mkdir()
    assert RunState(tmp_path).rounds() == []


def test_saving_a_round_again_replaces_it(tmp_path) -> None:
    save_round(tmp_path, 1, PARTS, keep=1)
    save_round(tmp_path, 1, PARTS | {"server": {}}, keep=1)
    assert last(tmp_path)[1]["server"] == {}


def test_an_empty_folder_is_told(tmp_path) -> None:
    with pytest.raises(StateError, match="no saved round"):
        last(tmp_path)


def test_a_saver_saves_what_the_state_was(tmp_path) -> None:
    weight = torch.zeros(3)
    with StateSaver(tmp_path, keep=2) as saver:
        for round_number in (1, 2, 3):
            weight.fill_(round_number)
            saver.save(RunState.round_name(round_number), {}, {"server": {"w": weight}})
            weight.fill_(-1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["round-000002", "round-000003"]
    assert last(tmp_path)[1]["server"]["w"].tolist() == [3, 3, 3]


@pytest.fixture
def broken_disk(monkeypatch) -> None:
    def refuse(_) -> None:
        raise OSError("broken disk")

    monkeypatch.setattr("pfedst.state.run_state.sync_folder", refuse)


def save_rounds(folder, rounds, error=None) -> None:
    with StateSaver(folder, keep=1) as saver:
        for round_number in range(rounds):
            saver.save(RunState.round_name(round_number), {}, PARTS)
        if error is not None:
            raise error


@pytest.mark.usefixtures("broken_disk")
@pytest.mark.parametrize("rounds", [1, 3])
def test_what_failed_while_saving_is_raised_at_the_end_or_the_next_round(tmp_path, rounds) -> None:
    with pytest.raises(StateError, match="broken disk"):
        save_rounds(tmp_path, rounds)


@pytest.mark.usefixtures("broken_disk")
def test_another_error_is_not_hidden_by_one_of_saving(tmp_path) -> None:
    with pytest.raises(KeyError):
        save_rounds(tmp_path, 1, KeyError())


SAVING = """
import sys, torch
from pathlib import Path
from pfedst.state.run_state import RunState, StateSaver
with StateSaver(Path(sys.argv[1]), keep=2) as saver:
    for round_number in range(1, 10**6):
        saver.save(RunState.round_name(round_number), {}, {"server": {"w": torch.full((10**6,), float(round_number))}})
"""


def test_a_process_killed_while_saving_leaves_whole_rounds(tmp_path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)])
    try:
        while not list(tmp_path.glob("round-*")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    round_number, parts = last(tmp_path)
    assert set(parts["server"]["w"].tolist()) == {round_number}


def test_a_signal_while_a_snapshot_is_written_leaves_nothing_of_it(tmp_path, monkeypatch) -> None:
    class Signal(BaseException):
        """What the handler of a signal raises, wherever the program is."""

    def interrupt(_) -> None:
        raise Signal

    def save_two() -> None:
        with StateSaver(tmp_path, keep=2) as saver:
            saver.save("round-000001", {}, PARTS)
            saver.wait()
            monkeypatch.setattr("pfedst.state.snapshot.save", interrupt)
            saver.save("round-000002", {}, PARTS)

    with pytest.raises(Signal):
        save_two()
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def chosen(folder, choice):
    number, found = RunState(folder).chosen(choice)
    return number, found.name


def test_a_round_is_chosen_by_its_number_or_as_the_last_or_the_best_one(tmp_path) -> None:
    best = {"best": {"round": 1, "after": {}}, "after": {"a": 3}}
    with StateSaver(tmp_path, 2) as saver:
        for round_number in (1, 2, 3):
            saver.save(RunState.round_name(round_number), best, PARTS)
            if round_number == 1:
                saver.save(RunState.BEST, best | {"round": 1}, PARTS)
    assert chosen(tmp_path, "last") == (3, "round-000003")
    assert chosen(tmp_path, "2") == (2, "round-000002")
    assert chosen(tmp_path, "best") == chosen(tmp_path, "1") == (1, "best")
    for choice in ("4", "0", "first", "-1"):
        with pytest.raises(ConfigurationError, match=rf"round {choice} of .* is not kept. Kept are 1, 2, 3;"):
            chosen(tmp_path, choice)


def test_a_fine_tuned_state_stands_for_its_round_and_may_be_the_best(tmp_path) -> None:
    plain = {"best": {"round": 1, "after": {"a": 1}}, "after": {"a": 2}}
    tuned = {"best": {"round": 2, "after": {"a": 3}}, "after": {"a": 3}}
    with StateSaver(tmp_path, 2) as saver:
        saver.save(RunState.BEST, plain | {"round": 1}, PARTS)
        saver.save(RunState.round_name(2), plain, PARTS)
        saver.save(RunState.round_name(2, finetuned=True), plain | {"after": {"a": 3}}, PARTS)
    assert chosen(tmp_path, "2") == chosen(tmp_path, "last") == (2, "round-000002-finetuned")
    assert chosen(tmp_path, "best") == (1, "best")
    with StateSaver(tmp_path, 2) as saver:
        saver.save(RunState.round_name(2, finetuned=True), tuned, PARTS)
    assert chosen(tmp_path, "best") == (2, "round-000002-finetuned")


def test_a_run_without_validation_images_has_no_best_round(tmp_path) -> None:
    save_round(tmp_path, 1, PARTS, keep=1)
    with pytest.raises(ConfigurationError, match=r"no best round, as no site has validation images"):
        chosen(tmp_path, "best")
