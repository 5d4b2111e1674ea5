"""Records are read again only if they are what a run writes."""

import json
from pathlib import Path

import pytest

from pfedst.errors import StateError
from pfedst.evaluation import METRICS
from pfedst.reporting.records import check_records

SAMPLES = {"a": {"train": 5, "validation": 0, "test": 3}, "b": {"train": 5, "validation": 2, "test": 3}}
MEMBERS = ["a", "b", "pooled"]
SOME = dict.fromkeys(METRICS, 0.5) | {"auroc": None}
FIT = {
    "upload_bytes": 1,
    "download_bytes": 1,
    "train_loss": 0.1,
    "fit_seconds": 1,
    "images": 4,
    "skipped_steps": 0,
    "peak_memory_bytes": None,
}


def evaluated(client: str) -> dict:
    models = {"personal": SOME, "generic": SOME}
    none = {model: dict.fromkeys(METRICS) for model in models}
    counts = {split: {model: {"confusion": []} for model in models} for split in ("validation", "test")}
    return {"received": {"validation": none if client == "a" else models, "test": models}, "counts": counts}


def records() -> list[dict]:
    """Of two rounds: `a` is left out of the second, the pooled trainee is never evaluated."""
    lines = []
    for number in (0, 1):
        for client in MEMBERS:
            line = {"round": number, "client": client, "participated": number == 1 and client != "a"}
            line |= {} if number else {"setup_upload_bytes": 3}
            line |= FIT if line["participated"] else {}
            line |= {"left_out": "NotFiniteError", "download_bytes": 1} if number and client == "a" else {}
            lines.append(line | (evaluated(client) if client != "pooled" else {}))
    return json.loads(json.dumps(lines))


def check(lines, last_round=1) -> None:
    check_records(Path("rounds.jsonl"), json.loads(json.dumps(lines)), MEMBERS, SAMPLES, last_round)


def test_what_a_run_writes_is_let_through() -> None:
    check(records())
    check([line | {"some": {"personal": []}, "finetuned": True} for line in records()])


FOREIGN = [
    (lambda r: r.clear(), 1, "no record of round 0, client a"),
    (lambda r: r.pop(), 6, "no record of round 1, client pooled"),
    (lambda r: r.append(r[-1]), 7, "after those of the last round"),
    (lambda r: r.__setitem__(1, None), 2, "client b"),
    (lambda r: r[4].update(round=True), 5, "round 1, client b"),
    (lambda r: r[3].update(round=1.0), 4, "round 1, client a"),
    (lambda r: r[0].update(participated=0), 1, '"participated"'),
    (lambda r: r[1].update(setup_upload_bytes=-(2**64)), 2, '"setup_upload_bytes"'),
    (lambda r: r[3].update(left_out={}), 4, '"left_out"'),
    (lambda r: r[3].pop("download_bytes"), 4, '"download_bytes"'),
    (lambda r: r[4].pop("peak_memory_bytes"), 5, '"peak_memory_bytes"'),
    (lambda r: r[4].update(train_loss=float("inf")), 5, '"train_loss"'),
    (lambda r: r[4].update(fit_seconds=1e300), 5, '"fit_seconds"'),
    (lambda r: r[1].pop("received"), 2, "no evaluation"),
    (lambda r: r[3].pop("counts"), 4, '"counts"'),
    (lambda r: r[3]["counts"]["test"].update(generic=3), 4, '"counts"'),
    (lambda r: r[3]["counts"]["test"]["personal"].update(confusion=[[1, 2]]), 4, '"counts"'),
    (lambda r: r[3]["counts"]["test"]["personal"].update(confusion=[["1"]]), 4, '"counts"'),
    (lambda r: r[3]["counts"]["test"]["personal"].update(confusion=[[-1]]), 4, '"counts"'),
    (lambda r: r[3].update(received=None), 4, "no metrics of validation and test"),
    (lambda r: r[5].update(received=r[4]["received"], counts=r[4]["counts"]), 6, "no metrics of validation and test"),
    (lambda r: r[4]["received"].update(validation=[]), 5, "no metrics of validation"),
    (lambda r: r[3]["received"]["validation"]["generic"].update(accuracy=1.0), 4, "no metrics of validation, generic"),
    (lambda r: r[4]["received"]["test"]["generic"].update(auroc="1"), 5, "no metrics of test, generic"),
    (lambda r: r[4]["received"]["test"]["generic"].update(auroc_ovo=1.0), 5, "other metrics of test, generic"),
]


@pytest.mark.parametrize(("change", "line", "words"), FOREIGN)
def test_what_no_run_writes_is_told_by_its_line(change, line, words) -> None:
    lines = records()
    change(lines)
    with pytest.raises(StateError, match=rf"^rounds.jsonl, line {line}: .*{words}.*; restore the original file"):
        check(lines)


def test_a_number_of_rounds_beyond_measure_is_not_counted_to() -> None:
    with pytest.raises(StateError, match="line 7: no record of round 2"):
        check(records(), last_round=10**15)
