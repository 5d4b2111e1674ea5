"""State on disk: whole or not at all, verified on reading."""

import json
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import StateError
from pfedst.state import RunState, StateSaver
from pfedst.state.snapshot import flatten, unflatten

PARTS = {
    "server": {"method": {"net": {"side.up.weight": torch.arange(6.0).reshape(2, 3)}}},
    "client site a": {"model": {"n": torch.tensor(3)}, "memo": {"h": {"w": torch.ones(2).bfloat16()}}},
}


def save_round(folder, round_number, parts, keep):
    with StateSaver(folder, keep) as saver:
        saver.save(RunState.round_name(round_number), {}, parts)
    return folder / f"round-{round_number:06d}"


def last(folder):
    found = RunState(folder).last_round()
    return RunState.round_of(found.name), found.parts


def equal(one, other) -> bool:
    a, b = flatten(one), flatten(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip_and_the_last_are_kept(tmp_path) -> None:
    for round_number in (1, 2, 3):
        save_round(tmp_path, round_number, PARTS | {"server": {"w": torch.tensor(float(round_number))}}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["round-000002", "round-000003"]
    round_number, parts = last(tmp_path)
    assert round_number == 3
    assert parts["server"]["w"].item() == 3
    assert equal(parts["client site a"], PARTS["client site a"])


def test_saving_a_round_again_replaces_it(tmp_path) -> None:
    save_round(tmp_path, 1, PARTS, keep=1)
    save_round(tmp_path, 1, PARTS | {"server": {}}, keep=1)
    assert last(tmp_path)[1]["server"] == {}


@given(
    st.recursive(
        st.integers(0, 9).map(torch.tensor),
        lambda t: st.dictionaries(st.text("ab.", min_size=1), t, min_size=1),
    )
)
def test_flatten_and_back(tree) -> None:
    tree = {"root": tree}
    assert equal(unflatten(flatten(tree)), tree)


@pytest.mark.parametrize("tree", [{"a|b": torch.ones(1)}, {"a": 3}, {"a": {"b": "text"}}])
def test_what_cannot_be_saved_is_named(tree) -> None:
    with pytest.raises(StateError, match="a"):
        flatten(tree)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_format(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("server.safetensors", flip, ["server.safetensors", "damaged"]),
        ("server.safetensors", lambda path: path.unlink(), ["missing or damaged"]),
        ("manifest.json", lambda path: path.unlink(), ["manifest.json", "missing or damaged"]),
        ("manifest.json", lambda path: path.write_text("{"), ["manifest.json", "missing or damaged"]),
        ("manifest.json", lambda path: path.write_text("{}"), ["manifest.json", "missing or damaged"]),
        ("manifest.json", other_format, ["format 99"]),
    ],
)
def test_damage_is_told(tmp_path, file, damage, words) -> None:
    damage(save_round(tmp_path, 1, PARTS, keep=1) / file)
    with pytest.raises(StateError) as caught:
        last(tmp_path)
    assert all(word in str(caught.value) for word in words)


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
from pfedst.state import RunState, StateSaver
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
