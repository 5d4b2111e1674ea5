"""Records that no run writes are found before anything is made of them, whatever sums they have."""

import copy
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedst.baselines.fedavg import FedAvg
from pfedst.errors import StateError
from pfedst.reporting import check_records
from pfedst.state import RunState
from pfedst.state.snapshot import name_snapshot, read_snapshot, write_snapshot
from pfedst.testing.small import fit
from tests.test_resume import go_on


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    fit(folder, FedAvg(), rounds=2)
    return folder / "run"


@pytest.fixture(scope="module")
def written(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def names(records):
    return {record["client"] for record in records}


def test_what_a_run_writes_passes(run, written) -> None:
    check_records(run / "rounds.jsonl", written, names(written), last_round=2)


def places(value, path=()):
    """Every place within JSON, but for what is only shown (counts)."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if key != "counts":
            yield from places(part, (*path, key))


def changed(records, path, value):
    records = copy.deepcopy(records)
    at = records
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return records


ODD = [KeyError, None, "x", [], {}, True, -1, 10**30, float("nan"), float("inf"), 7]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_change_is_refused_or_can_be_used(run, written, data) -> None:
    """Nothing but a StateError comes of a change; what passes can be shown to a summary again."""
    path = data.draw(st.sampled_from([path for path in places(written) if path]))
    records = changed(written, path, data.draw(st.sampled_from(ODD)))
    try:
        check_records(run / "rounds.jsonl", records, names(written), last_round=2)
    except StateError:
        return
    json.dumps(records, allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, "round"), 1),
        ((0, "round"), False),
        ((-1, "round"), 3),
        ((2, "client"), "nobody"),
        ((0, "setup_upload_bytes"), KeyError),
        ((3, "train_loss"), float("nan")),
        ((3, "participated"), 1),
        ((3, "received", "test", "personal", "accuracy"), "x"),
        ((3, "received", "test", "personal", "accuracy"), KeyError),
        ((3, "received", "test", "generic"), KeyError),
        ((3, "counts"), KeyError),
        ((3, "counts", "test", "personal"), 1),
        ((3,), 5),
    ],
)
def test_what_no_run_writes_is_refused(run, written, path, value) -> None:
    with pytest.raises(StateError, match=r"rounds.jsonl"):
        check_records(run / "rounds.jsonl", changed(written, path, value), names(written), last_round=2)


def test_records_of_another_last_round_are_refused(run, written) -> None:
    for records in ([], written[:-3]):
        with pytest.raises(StateError, match="no record of round 2"):
            check_records(run / "rounds.jsonl", records, names(written), last_round=2)


def test_records_whose_sums_were_made_right_again_end_in_one_error(tmp_path) -> None:
    """By whoever may write the folder: the records and, in every state, their size and sum."""
    fit(tmp_path, FedAvg(), rounds=2)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    content = "".join(json.dumps(line | {"received": 3}) + "\n" for line in lines).encode()
    (run / "rounds.jsonl").write_bytes(content)
    state = RunState(run / "state")
    for snapshot in list(state.whole_rounds(finetuned=False)):
        size = sum(len(line) + 1 for line in content.split(b"\n")[: 3 * (state.round_of(snapshot.name) + 1)])
        mark = {"bytes": size, "sha256": hashlib.sha256(content[:size]).hexdigest()}
        folder = state.folder / snapshot.name
        parts = read_snapshot(folder).parts
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        name_snapshot(write_snapshot(folder, snapshot.about | {"records": mark}, parts), folder)
    with pytest.raises(StateError, match=r"rounds.jsonl, line 1: not what a run writes"):
        go_on(tmp_path, FedAvg(), rounds=2)
