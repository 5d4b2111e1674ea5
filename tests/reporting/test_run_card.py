"""The card of a run holds its facts, and claims nothing that the run has not recorded."""

import json
from pathlib import Path

import pytest

from pfedst.cli import main
from pfedst.errors import ConfigurationError, StateError
from pfedst.reporting.claim_items import claim_items
from pfedst.reporting.data_card import KEYS, read_data_card
from pfedst.reporting.earlier_formats import present_summary
from pfedst.reporting.run_card import card

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_of_format_1"
OLD = json.loads((OLD_RUN / "summary.json").read_text())


def summary_of(**changes):
    """A summary in the present format, of a run that recorded little, with changes of its protocol."""
    found = present_summary(OLD, OLD_RUN / "summary.json")
    return {**found, "protocol": {**found["protocol"], **changes}}


def status(summary, number, data_card=None):
    items = {item.number: item for item in claim_items(summary, data_card or {})}
    assert sorted(items) == list(range(1, 45))
    assert (items[number].where == "") == (items[number].status == "to be stated")
    return items[number].status


def test_what_was_not_recorded_is_to_be_stated() -> None:
    old = summary_of()
    for number in (1, 8, 15, 20, 23, 29, 33, 41, 44):
        assert status(old, number) == "to be stated", number
    for number in (19, 22, 25, 26, 28, 32, 37, 38, 39):
        assert status(old, number) == "answered", number


def test_an_item_is_answered_where_its_fact_is_there() -> None:
    audited = {"opened": True, "findings": {"error": 0, "warning": 0, "note": 0}, "codes": []}
    assert status(summary_of(data_audit=audited), 20) == "answered"
    assert status(summary_of(data_audit={**audited, "codes": ["groups_unknown"]}), 20) == "to be stated"
    assert status(summary_of(data_audit={**audited, "not_audited": ["site_b"]}), 20) == "to be stated"
    assert status(summary_of(held_out_sites=["site_c"]), 33) == "answered"
    sensitivity = {"value": 0.5, "low": 0.2, "high": 0.8}
    with_interval = {**summary_of(), "class_metrics": {"site_a": {"personal": [{"sensitivity": sensitivity}]}}}
    assert status(with_interval, 29) == "answered"
    without = {
        **summary_of(),
        "class_metrics": {"site_a": {"personal": [{"sensitivity": sensitivity | {"low": None}}]}},
    }
    assert status(without, 29) == "to be stated"
    assert status(summary_of(), 15, {"reference_standard": "histology"}) == "in part"
    assert status({**summary_of(), "environment": {"pfedst": "0.2.0"}}, 23) == "answered"


def test_the_page_and_the_json_of_an_old_run(tmp_path, capsys) -> None:
    said = tmp_path / "said.yaml"
    said.write_text("licence: CC BY-NC 4.0\npopulation: 'adults | two clinics'\n")
    assert main(["card", str(OLD_RUN), "--output", str(tmp_path / "out"), "--data_card", str(said)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'card.md'}\n" in printed
    assert "TO BE STATED by people" in printed
    page = (tmp_path / "out" / "card.md").read_text()
    for words in (
        "not a medical device",
        "RANDOM WEIGHTS",
        "site_a 12 / 4 / 8",
        "| Licence of the images | CC BY-NC 4.0 |",
        "adults \\| two clinics",
        "| Funding and interests | TO BE STATED |",
        "| site_a | personal | 8 | 62.5 |",
    ):
        assert words in page, words
    content = json.loads((tmp_path / "out" / "card.json").read_text())
    assert content["facts"]["Training"]["rounds"] == 2
    assert content["data_card"]["licence"] == "CC BY-NC 4.0"
    assert content["data_card"]["ethics"] == "TO BE STATED"
    assert len(content["claim_2024"]) == 44


def test_the_data_card_of_the_folder_is_read(tmp_path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(OLD))
    assert card(tmp_path).data_card == {}
    (tmp_path / "data_card.yaml").write_text("devices: dermatoscope\n")
    assert card(tmp_path).data_card == {"devices": "dermatoscope"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("license: x\n", 'unknown entry license. Did you mean "licence"'),
        ("licence: [a]\n", "licence: give a text"),
        ("licence:\n", "licence: give a text"),
        ("- a\n", "give entries"),
        ("a: [\n", "card.yaml"),
    ],
)
def test_a_data_card_that_cannot_be_read_is_refused(tmp_path, text, words) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")):
        read_data_card(tmp_path / "card.yaml")
    with pytest.raises(ConfigurationError, match="none.yaml"):
        read_data_card(tmp_path / "none.yaml")
    assert "licence" in KEYS


def test_a_run_that_is_not_finished_has_no_card(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(StateError, match=r"not finished; continue it with --name \S+ --resume"):
        card(tmp_path)
