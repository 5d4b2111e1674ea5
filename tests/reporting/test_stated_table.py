"""The table at stated class priors, by hand, and in every format."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest

from pfedst.evaluation.stated import NOT_SHARED, OF_A_HOSPITAL, REASON
from pfedst.reporting import print_summary
from pfedst.reporting.formats import csv_text, markdown_table
from pfedst.reporting.latex import latex
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.reporting.page import html_page
from pfedst.reporting.stated_table import stated_table
from tests.reporting.fake_runs import PROTOCOL, write_run


def at_priors(split="test", **means):
    """The block of a summary: prior -> value of all of its metrics."""
    found = {
        prior: {
            "clients": {},
            "mean": dict.fromkeys(("balanced_accuracy",) if prior == "balanced" else OF_A_HOSPITAL, value),
        }
        for prior, value in means.items()
    }
    return {"last": {"round": 5, split: {"personal": found}}}


def summary(method="FedAvg", *, personalises=False, blocks=None, **protocol):
    about = PROTOCOL | {"method": method, "personalises": personalises} | protocol
    return {"protocol": about, "at_priors": at_priors(balanced=0.5, site=0.75, federation=0.25)} | (blocks or {})


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_a_global_model_has_a_derived_row_at_the_prior_of_each_site() -> None:
    table = stated_table([("FedAvg", [summary()]), ("PFedST", [summary("PFedST", personalises=True)])])
    assert table.headings == (
        "row", "balanced accuracy, balanced prior", "prior of the others", "accuracy", "macro F1", "ECE", "NLL", "Brier",
    )  # fmt: skip
    assert texts(table) == [
        ["FedAvg", "50.0", "federation", "25.0", "25.0", "25.0", "0.250", "0.250"],
        ["FedAvg + own prior", "= FedAvg", "site", "75.0", "75.0", "75.0", "0.750", "0.750"],
        ["PFedST", "50.0", "site", "75.0", "75.0", "75.0", "0.750", "0.750"],
    ]
    # the number is there for programs; the two rows are one model
    assert table.rows[1][1].value == 0.5
    assert table.rows[1][1].mark == ""
    # numbers of the federation are in no comparison with those of the sites
    assert [row[3].mark for row in table.rows] == ["", "best", "best"]
    assert "FedAvg + own prior: the model of FedAvg" in table.caption


@pytest.mark.parametrize(
    ("protocol", "priors"),
    [
        ({"pooled": True}, ["federation"]),
        ({"rounds": 0}, ["federation"]),
        ({"method_options": {"finetune_epochs": 2}}, ["site"]),
        ({"method_options": {"norm_statistics": "private"}}, ["site"]),
        ({"method_options": {"norm_statistics": "merged", "finetune_epochs": 0}}, ["federation", "site"]),
    ],
)
def test_which_rows_a_method_has(protocol, priors) -> None:
    """No derived row for a pooled one, one that does not train, and one that an option makes personal."""
    table = stated_table([("x", [summary(**protocol)])])
    assert [row[2].text for row in table.rows] == priors


def test_over_seeds() -> None:
    blocks = [{"at_priors": at_priors(balanced=v, site=v, federation=v)} for v in (0.4, 0.6)]
    table = stated_table([("FedAvg", [summary(blocks=block) for block in blocks])])
    assert texts(table)[0][1:4] == ["50.0 ± 14.1", "federation", "50.0 ± 14.1"]
    assert texts(table)[1][1] == "= FedAvg"


def test_without_shared_counts_the_prior_of_the_federation_is_missing_and_said_so() -> None:
    table = stated_table([("FedAvg", [summary(blocks={"at_priors": at_priors(balanced=0.5, site=0.75)})])])
    assert texts(table)[0] == ["FedAvg", "50.0", "federation", *["-"] * 5]
    assert "The prior of the federation is known only if sites share class counts." in table.caption


def test_a_row_without_numbers_says_why() -> None:
    reason = {prior: {"clients": {"a": {REASON: NOT_SHARED}}, "mean": {}} for prior in ("balanced", "site")}
    nothing = {"at_priors": {"last": {"round": 5, "test": {"personal": reason}}}}
    alone = summary("PFedST", personalises=True, blocks=nothing)
    assert stated_table([("PFedST", [alone])]) is None
    table = stated_table([("FedAvg", [summary()]), ("PFedST", [alone])])
    assert texts(table)[2] == ["PFedST", "-", "site", *["-"] * 5]
    assert "PFedST: no numbers, as class counts are not shared." in table.caption


def test_runs_of_older_versions_have_no_table(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "a", {"a": 0.5, "b": 0.7})])
    assert "priors" not in [table.name for table in make_report(compared, "balanced_accuracy").tables]
    old = summary(blocks={"at_priors": {}})
    del old["at_priors"]
    assert stated_table([("FedAvg", [old])]) is None


def test_every_format_names_the_prior_and_the_row_that_has_the_same_model() -> None:
    table = stated_table([("FedAvg", [summary()])])
    assert " = FedAvg |" in markdown_table(table)
    assert "= FedAvg &" in latex(table)
    lines = csv_text(table).splitlines()
    assert lines[2].startswith("FedAvg + own prior,0.5,site,0.75")


def test_a_report_holds_it_and_its_protocol_the_prior_of_predictions(tmp_path) -> None:
    block = at_priors(balanced=0.5, site=0.75, federation=0.25)
    folders = [
        write_run(tmp_path / "a", {"a": 0.5, "b": 0.7}, personalises=False, prior="site: x"),
        write_run(tmp_path / "b", {"a": 0.5, "b": 0.7}, method="PFedST", personalises=True),
    ]

    for folder in folders:
        file = folder / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"at_priors": block}))
    report = make_report(load_compared(folders), "balanced_accuracy")
    table = next(table for table in report.tables if table.name == "priors")
    assert {row[0].text for row in table.rows} == {"FedAvg", "FedAvg + own prior", "PFedST"}
    assert all(not cell.mark for row in table.rows for cell in row)  # nothing can be claimed
    (line,) = [line for line in report.protocol if line.startswith("class prior of predictions")]
    assert line == "class prior of predictions: site: x (FedAvg); none: logits as the model gives them (PFedST)"
    assert "FedAvg + own prior" in html_page(report, [])


def test_the_table_of_a_run_is_printed_below_its_metrics(tmp_path) -> None:

    folder = write_run(tmp_path / "a", {"a": 0.5, "b": 0.7}, personalises=False, prior="site: x", random_weights=False)
    found = json.loads((folder / "summary.json").read_text())
    found["protocol"] |= {"method_options": {}}
    for block, shown in ((at_priors(balanced=0.5, site=0.75, federation=0.25), True), ({}, False)):
        with redirect_stdout(StringIO()) as out:
            print_summary(found | {"at_priors": block})
        assert ("FedAvg + own prior" in out.getvalue()) == shown
        assert "prior    site: x" in out.getvalue()
