"""Tables of a report against numbers computed by hand."""

import re
from statistics import fmean, stdev

import pytest
from matplotlib.text import Text

from pfedst.reporting import report_tables as tables
from pfedst.reporting.figures import make_figures
from pfedst.reporting.formats import markdown
from pfedst.reporting.latex import latex_document
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.reporting.page import html_page
from pfedst.reporting.report_table import Cell, marked
from tests.reporting import small
from tests.reporting.fake_runs import write_comparison, write_run

METRIC = "balanced_accuracy"
ROWS = {
    "PFedST": {0: {"a": 0.6, "b": 0.8}, 1: {"a": 0.8, "b": 0.8}},
    "FedAvg": {0: {"a": 0.5, "b": 0.9}, 1: {"a": 0.5, "b": 0.7}},
}


@pytest.fixture
def compared(tmp_path):
    return load_compared([write_comparison(tmp_path / "c", ROWS, "PFedST")])


def column(table, heading):
    index = next(i for i, found in enumerate(table.headings) if found == heading)
    return [row[index] for row in table.rows]


def test_results_by_hand(compared) -> None:
    table = tables.results_table(compared, METRIC)
    assert table.headings[:3] == ("row", "a (10)", "b (10)")
    assert [cell.text for cell in column(table, "row")] == ["PFedST", "FedAvg"]
    at_a, average = column(table, "a (10)")
    assert (at_a.text, at_a.mark, average.text, average.mark) == ("70.0 ± 14.1", "best", "50.0 ± 0.0", "second")
    assert at_a.value == pytest.approx(0.7)
    assert at_a.spread == pytest.approx(stdev([0.6, 0.8]))
    # worst and deviation over sites are taken in each run, then over seeds
    assert [cell.value for cell in column(table, "worst site")] == pytest.approx([0.7, 0.5])
    assert [cell.value for cell in column(table, "std over sites")] == pytest.approx(
        [fmean([0.1, 0]), fmean([0.2, 0.1])]
    )
    assert [cell.mark for cell in column(table, "std over sites")] == ["", ""]
    assert [cell.value for cell in column(table, "mean")] == pytest.approx([0.75, 0.65])
    assert "Mean over 2 seeds" in table.caption


def test_sites_may_be_called_like_the_columns_over_sites(tmp_path) -> None:
    values = {"mean": 0.1, "std": 0.9, "worst": 0.5, "weighted_mean": 0.7}
    compared = load_compared([write_run(tmp_path / "a", values, method="FedAvg")])
    table = tables.results_table(compared, METRIC)
    row = {heading: column(table, heading)[0].text for heading in table.headings}
    assert [row[f"{site} (10)"] for site in values] == ["10.0", "90.0", "50.0", "70.0"]
    assert [row[over] for over in ("mean", "worst site", "std over sites")] == ["55.0", "10.0", "29.6"]
    assert row["generic mean"] == "55.0"
    (panel,) = [figure for figure in make_figures(compared) if figure.name == "bars"]
    titles = [text.get_text() for text in panel.figure.findobj(Text)]
    assert titles.count("mean over sites") == 1
    assert set(values) <= set(titles)


def test_sites_that_are_held_out_are_shown_beside_the_means(tmp_path) -> None:
    """Summaries leave them out; tables mark them, and tests over pairs and sums over images leave them out too."""
    values = {"a": 0.4, "b": 0.6, "far": 1.0}
    folders = [
        write_run(tmp_path / f"{method}{seed}", values, method=method, seed=seed, held_out_sites=["far"])
        for method in ("FedAvg", "Local")
        for seed in (0, 1)
    ]
    compared = load_compared(folders, "FedAvg")
    table = tables.results_table(compared, METRIC)
    assert column(table, "far (10, held out)")[0].value == 1.0
    assert [column(table, heading)[0].value for heading in ("mean", "worst site", "mean of held out")] == pytest.approx(
        [0.5, 0.4, 1.0]
    )
    assert "Held out, and in no other number" in table.caption
    assert "transductive" not in table.caption
    made = write_run(tmp_path / "seen", values, method="FACMIC", held_out_sites=["far"], transductive_sites=["far"])
    caption = tables.results_table(load_compared([*folders, made], "FedAvg"), METRIC).caption
    assert "FACMIC is transductive: it trains on images of far without their labels." in caption
    (row,) = tables.tests_table(compared, METRIC, tables.differences(compared, METRIC)).rows
    assert row[4].text == "4"  # pairs of two sites and two seeds
    run = compared.rows[0].first
    assert sum(map(sum, run.confusion)) == 2 * 10
    assert len(run.counted) == 2
    titles = {text.get_text() for figure in make_figures(compared) for text in figure.figure.findobj(Text)}
    assert {"a", "b", "far", "mean over sites"} <= titles


def test_differences_by_hand(compared) -> None:
    (row,) = tables.tests_table(compared, METRIC, tables.differences(compared, METRIC)).rows
    texts = [cell.text for cell in row]
    # FedAvg - PFedST: -0.1, 0.1, -0.3, -0.1; ranks of sizes 2, 2, 4, 2, so -8 + 2 of 10
    assert texts[:4] == ["FedAvg", "-10.0", "-", "-0.60"], "two seeds are too few for an interval"
    assert tables.differences(compared, METRIC)["FedAvg"].interval == pytest.approx((-0.2, 0.0))
    assert texts[4:6] == ["4", "2"]
    # the sum of positive ranks is 2 or less (none, or one of the three ties) for 4 of 16 signs, and as many above
    assert row[6].value == pytest.approx(8 / 16)
    assert row[7].value == 1.0
    assert texts[8] == "none"


CLEAR = {
    "PFedST": {seed: {"a": 0.7 + seed / 100, "b": 0.8} for seed in range(6)},
    "FedAvg": {seed: {"a": 0.5 + seed / 90, "b": 0.6} for seed in range(6)},
}


def marks_of(report):
    return {cell.mark for table in report.tables for row in table.rows for cell in row if cell.mark}


def test_enough_seeds_and_a_clear_difference_are_claimed(tmp_path) -> None:
    compared = load_compared([write_comparison(tmp_path / "c", CLEAR, "PFedST")])
    (row,) = tables.tests_table(compared, METRIC, tables.differences(compared, METRIC)).rows
    assert " to " in row[2].text
    assert marks_of(make_report(compared, METRIC)) == {"best", "second"}
    assert tables.tests_table(compared, METRIC, tables.differences(compared, METRIC)).rows[0][8].text == "lower"
    assert "Claimed, of these sites and images" in " ".join(make_report(compared, METRIC).notes)
    assert "FedAvg lower than PFedST" in " ".join(make_report(compared, METRIC).notes)


UNCLEAR = {
    "PFedST": {seed: {"a": 0.7 + seed / 100, "b": 0.8} for seed in range(6)},
    "FedAvg": {seed: {"a": 0.75, "b": 0.8} for seed in range(6)},
}
FEW = {label: {seed: seeds[seed] for seed in range(5)} for label, seeds in CLEAR.items()}


@pytest.mark.parametrize(
    ("rows", "protocol", "interval"),
    [
        (FEW, {}, False),
        (UNCLEAR, {}, True),
        (CLEAR, {"random_weights": True}, False),
        (CLEAR, {"data": "SYNTHETIC"}, False),
    ],
    ids=["few seeds", "no difference", "random weights", "synthetic images"],
)
def test_nothing_is_marked_where_nothing_may_be_claimed(tmp_path, rows, protocol, interval) -> None:
    """A table of one seed had a best method in bold on blue, below a note that nothing can be claimed."""
    compared = load_compared([write_comparison(tmp_path / "c", rows, "PFedST", **protocol)])
    report = make_report(compared, METRIC)
    assert marks_of(report) == set()
    for text in (markdown(report), latex_document(report), html_page(report).split("</style>")[1]):
        assert not re.search(r"\*\*\d|textbf\{\d|underline|<strong>|<strong class|<u>|in bold", text)
    (row,) = next(table for table in report.tables if table.name == "tests").rows
    assert (" to " in row[2].text, row[8].text) == (interval, "none")
    assert "Claimed" not in " ".join(report.notes)


def test_classes_have_their_numbers_and_intervals_of_one_run() -> None:
    rows = {"PFedST": {0: {"x": 0.6, "y": None}, 1: {"x": 0.9, "y": 0.9}}, "FedAvg": {0: {"x": 0.5, "y": 0.5}}}
    made = small.compared(rows)
    made.rows[0].first.class_metrics["x"]["without_unit"] = 3
    table = tables.classes_table(made)
    assert table.headings[4:] == (
        "sensitivity", "sensitivity, 95 %", "specificity", "specificity, 95 %", "average precision",
        "average precision, 95 %",
    )  # fmt: skip
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [
        ["x", "nevus", "10", "5", *["60.0", "50.0 to 70.0"] * 3],
        ["x", "melanoma", "10", "5", *["60.0", "50.0 to 70.0"] * 3],
        ["x", "keratosis", "0", "0", "-", "- (no image of the class)", "60.0", "50.0 to 70.0", "-",
         "- (no image of the class)"],
    ]  # fmt: skip
    assert table.rows[0][4].value == 0.6
    assert "x (3 of 20 images)" in table.caption
    assert "each image is drawn by itself" in table.caption
    assert "Not computed at y." in table.caption
    assert "PFedST with seed 0" in table.caption


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"units": 4, "sensitivity": {"value": 0.5, "low": None, "high": None}}, "- (fewer than 5 units)"),
        ({"units": 5, "sensitivity": {"value": 1.0, "low": None, "high": None}}, "- (all resamples agree)"),
        ({"units": 0, "sensitivity": {"value": None, "low": None, "high": None}}, "- (no image of the class)"),
    ],
)
def test_a_missing_interval_has_its_reason(change, text) -> None:
    made = small.compared({"PFedST": {0: {"x": 0.6}}})
    made.rows[0].first.class_metrics["x"]["personal"][0].update(change)
    assert tables.classes_table(made).rows[0][5].text == text


def test_runs_of_an_older_version_have_no_table_of_classes(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "r", {"a": 0.6})])
    assert tables.classes_table(compared) is None
    assert "classes" not in [table.name for table in make_report(compared, METRIC).tables]


def test_one_seed_claims_nothing(tmp_path) -> None:
    rows = {label: {0: {f"s{i}": value for i in range(20)}} for label, value in (("PFedST", 0.9), ("FedAvg", 0.1))}
    compared = load_compared([write_comparison(tmp_path / "c", rows, "PFedST")])
    (row,) = tables.tests_table(compared, METRIC, tables.differences(compared, METRIC)).rows
    assert [cell.text for cell in row] == ["FedAvg", "-80.0", "-", "-1.00", "20", "1", "-", "-", "none"]
    report = make_report(compared, METRIC)
    assert "One seed: nothing can be claimed of differences between rows." in report.notes
    assert report.tables[0].caption.count("One seed: no deviation, and no claim.") == 1
    assert all("±" not in cell.text for table in report.tables for line in table.rows for cell in line)


def test_too_few_seeds_are_told(compared) -> None:
    told = " ".join(make_report(compared, METRIC).notes)
    assert "Too few seeds to claim a difference between rows: 2, and 1 comparisons need 6 or more" in told


def test_recall_over_all_sites_by_hand(compared) -> None:
    table = tables.recall_table(compared)
    assert table.headings == ("row", "x (10)", "y (10)", "mean of classes")
    assert column(table, "mean of classes")[0].value == pytest.approx(fmean([0.7, 0.8, 1.0, 1.0]))
    # of 5 images of x a site finds round(5 * value): 3 + 4 and 4 + 4 of 10
    assert column(table, "x (10)")[0].value == pytest.approx(fmean([0.7, 0.8]))
    assert column(table, "y (10)")[0].value == 1.0


def test_a_class_without_images_has_no_column(tmp_path) -> None:
    run = write_run(tmp_path / "r", {"a": 0.6}, classes=["x", "y"])
    compared = load_compared([run])
    compared.rows[0].first.summary["personal"]["counts"]["a"]["confusion"] = [[3, 2], [0, 0]]
    assert tables.recall_table(compared).headings == ("row", "x (5)", "mean of classes")


def test_cost_by_hand(compared) -> None:
    table = tables.cost_table(compared)
    assert column(table, "bytes in all")[0].value == 5 * (1000 + 3000) + 500
    assert column(table, "GFLOP an image")[0].text == "2"
    assert column(table, "TFLOP in all")[0].value == pytest.approx(2e9 * 1000 / 1e12)
    assert column(table, "peak memory")[0].text == "1.00 GiB"
    assert column(table, "trained a client")[0].text == "100"


def test_flops_that_were_not_counted_are_a_dash(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "r", {"a": 0.6}, cost={"flops_per_image": None})])
    table = tables.cost_table(compared)
    assert [column(table, heading)[0].text for heading in ("GFLOP an image", "TFLOP in all")] == ["-", "-"]


def test_lower_is_better_of_calibration(compared) -> None:
    table = tables.calibration_table(compared)
    assert [cell.mark for cell in column(table, "ECE, personal mean")] == ["second", "best"]


def test_pooled_takes_no_part_in_best(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "p", {"a": 0.9}, method="Pooled", pooled=True),
        write_run(tmp_path / "x", {"a": 0.8}, method="X"),
    ]
    table = tables.results_table(load_compared(paths), METRIC)
    assert [cell.mark for cell in column(table, "mean")] == ["", "best"]
    assert "Pooled: the images of all sites in one place" in table.caption


@pytest.mark.parametrize(
    ("values", "higher", "marks"),
    [
        ([1.0, 3.0, 2.0], True, ["", "best", "second"]),
        ([1.0, 3.0, 2.0], False, ["best", "", "second"]),
        ([2.0, 2.0, 1.0], True, ["best", "best", "second"]),
        ([0.1 + 0.2, 0.3, None], True, ["best", "best", ""]),
        ([None, None, None], True, ["", "", ""]),
    ],
)
def test_marks(values, higher, marks) -> None:
    cells = [Cell("-" if value is None else str(value), value) for value in values]
    assert [cell.mark for cell in marked(cells, higher, [True] * 3)] == marks


def test_what_a_reader_may_not_miss(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "a", {"a": 0.9}, data="SYNTHETIC", random_weights=True, left_out={"a": {"timeout": 2}}),
        write_run(tmp_path / "b", {"a": 0.8}, method="X", data="SYNTHETIC", random_weights=True, rounds=9),
    ]
    told = make_report(load_compared(paths), METRIC).notes
    for words in ("RANDOM WEIGHTS", "SYNTHETIC", "Sites were left out of rounds: FedAvg, seed 0: a", "rounds (5: "):
        assert any(words in note for note in told), words


def test_a_single_row_is_reported_without_tests(tmp_path) -> None:
    report = make_report(load_compared([write_run(tmp_path / "a", {"a": 0.9})]), METRIC)
    assert "tests" not in [table.name for table in report.tables]
    assert report.title == "a: 1 row, 1 site, 1 seed"


def test_optimisers_that_differ_are_told_by_row(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "a", {"a": 0.9}),
        write_run(tmp_path / "b", {"a": 0.9}, method="X", optimizer={"class": "SGD", "lr": 0.1}),
    ]
    budget = make_report(load_compared(paths), METRIC).protocol[2]
    assert "AdamW (lr 0.001, weight decay 0.01, state: reset): FedAvg; SGD (lr 0.1, state: reset): X" in budget


def test_losses_that_differ_are_told_by_row_and_older_runs_had_one(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "a", {"a": 0.9}),
        write_run(tmp_path / "b", {"a": 0.9}, method="X", loss="BalancedSoftmax(tau=0.7)"),
    ]
    budget = make_report(load_compared(paths), METRIC).protocol[2]
    assert "loss CrossEntropy(): FedAvg; BalancedSoftmax(tau=0.7): X" in budget
