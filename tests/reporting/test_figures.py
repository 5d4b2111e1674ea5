import random
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pfedst.evaluation.counts import BINS
from pfedst.reporting.comparison import Compared
from pfedst.reporting.figures import KINDS, ReportFigure, make_figures, save_figure, svg_text
from pfedst.reporting.figures.labels import Labelled, label_points
from pfedst.reporting.figures.reliability import Pooled
from pfedst.reporting.figures.style import (
    COLORS,
    GUIDE,
    TEXT,
    figure_style,
    new_figure,
    row_styles,
    settle,
    text_inches,
)
from tests.reporting.small import compared

NAMES = [
    "learning_curves",
    "bars",
    "confusion",
    "classes",
    "reliability",
    "calibrated_reliability",
    "risk_coverage",
    "cost",
]

SITES = ["Barcelona", "Vienna_Rosendahl", "Vienna_Kittler", "Vienna_dias", "MSKCC", "Sydney", "Leuven", "Queensland"]
CLASSES = [
    "melanoma",
    "nevus",
    "basal cell carcinoma",
    "keratosis",
    "benign keratosis",
    "dermatofibroma",
    "vascular",
    "squamous cell",
]
ROWS = [
    "ZeroShot", "Local", "FedAvg", "FedProx", "SCAFFOLD", "FedDyn", "FedPer", "FedBN", "Ditto", "APFL", "FedCLIP",
    "FedLoRA, rank 8", "FedDPA, adapter LoRAAdapter", "PromptFL", "Pooled", "PFedST",
]  # fmt: skip


def scattered_counts(draw: random.Random, value: float, classes: int) -> dict[str, Any]:
    confusion = [[0] * classes for _ in range(classes)]
    images, right, confidence = [0] * BINS, [0] * BINS, [0.0] * BINS
    for _ in range(200):
        target = min(classes - 1, int(draw.expovariate(0.5)))
        hit = draw.random() < value
        confusion[target][target if hit else draw.randrange(classes)] += 1
        told = min(0.999, max(1 / classes, draw.gauss(value + 0.12, 0.18)))
        images[int(told * BINS)] += 1
        right[int(told * BINS)] += hit
        confidence[int(told * BINS)] += told
    return {"confusion": confusion, "reliability": {"images": images, "right": right, "confidence": confidence}}


def large() -> Compared:
    """16 rows, 8 sites, 8 classes and 8 seeds."""
    draw = random.Random(0)
    hard = {site: draw.uniform(-0.15, 0.1) for site in SITES}
    rows = {
        label: {
            seed: {site: min(0.99, 0.5 + 0.02 * number + hard[site] + draw.gauss(0, 0.02)) for site in SITES}
            for seed in range(8)
        }
        for number, label in enumerate(ROWS)
    }
    costs = {
        label: {
            "peak_memory_bytes": int((3 + draw.random() * 3) * 2**30),
            "setup_upload_bytes": 16512 if label == "Local" else 0,
        }
        | ({"upload_bytes_per_round": 4e6 * (1 + number % 4)} if label not in ("Local", "Pooled", "ZeroShot") else {})
        for number, label in enumerate(ROWS)
    }
    made = compared(rows, costs=costs, classes=CLASSES, rounds=20, round=20)
    for row in made.rows:
        for run in row.runs:
            for site, value in rows[row.label][run.seed].items():
                run.summary["personal"]["counts"][site] = scattered_counts(draw, value, len(CLASSES))
    return made


def two_rows(**options: Any) -> Compared:
    rows = {
        "ZeroShot": {0: {"x": 0.2, "y": 0.3}, 1: {"x": 0.2, "y": 0.3}},
        "FedAvg": {0: {"x": 0.5, "y": 0.7}, 1: {"x": 0.7, "y": 0.9}},
        "PFedST": {0: {"x": 0.6, "y": 0.8}, 1: {"x": 0.8, "y": 1.0}},
    }
    return compared(rows, **options)


@pytest.fixture(scope="module")
def made() -> dict[str, ReportFigure]:
    return {figure.name: figure for figure in make_figures(two_rows())}


def drawn(kind: str, of: Compared, metric: str = "balanced_accuracy") -> ReportFigure:
    """One figure alone."""
    with figure_style():
        figure = next(found for found in KINDS if found.__name__ == kind)(of, metric)
        settle(figure.figure)
    return figure


def panel(figure: ReportFigure, title: str) -> Any:
    return next(axes for axes in figure.figure.axes if axes.get_title("left").startswith(title))


def line(axes: Any, label: str) -> Any:
    return next(found for found in axes.lines if found.get_label() == label)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_every_figure_is_made_and_told(made) -> None:
    assert list(made) == NAMES
    for figure in made.values():
        assert figure.title
        assert "Personal model" in " ".join(texts(figure.figure))
        of_one_run = figure.name in ("classes", "calibrated_reliability", "risk_coverage")
        seeds = "seed 0" if of_one_run else "2 seeds (0, 1)"
        assert seeds in " ".join(texts(figure.figure))
        assert "after the last merge" in figure.caption


def test_learning_curves_are_means_over_seeds_on_validation(made) -> None:
    # on validation 0.05 less than on test; half of it before the first round, three quarters after one of two
    axes = panel(made["learning_curves"], "x")
    fedavg = line(axes, "FedAvg")
    assert list(fedavg.get_xdata()) == [0, 1, 2]
    assert fedavg.get_ydata() == pytest.approx([27.5, 41.25, 55])
    assert line(axes, "ZeroShot").get_ydata() == pytest.approx([15, 15])
    assert list(line(axes, "ZeroShot").get_xdata()) == [0, 2]
    assert line(panel(made["learning_curves"], "mean"), "PFedST").get_ydata()[-1] == pytest.approx(75)
    band = axes.collections[1].get_paths()[0].vertices
    at_end = band[band[:, 0] == 2][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((45, 65))


def test_fine_tuning_is_no_round(made) -> None:
    one = two_rows()
    for run in one.row("FedAvg").runs:
        last = run.records[-1]
        changed = {"validation": {"personal": {"balanced_accuracy": 1.0}}}
        run.records.append(last | {"finetuned": True, "received": changed})
    axes = panel(drawn("learning_curves", one), "y")
    assert line(axes, "FedAvg").get_ydata()[-1] == pytest.approx(75)


def test_sites_show_the_mean_and_each_seed(made) -> None:
    axes = panel(made["bars"], "y")
    seeds = [found for found in axes.lines if found.get_label() == "seeds"]
    means = [found for found in axes.lines if found.get_label() == "mean"]
    assert [list(found.get_xdata()) for found in seeds] == [pytest.approx(v) for v in ([30, 30], [70, 90], [80, 100])]
    assert [found.get_xdata()[0] for found in means] == pytest.approx([30, 80, 90])
    assert [found.get_ydata()[0] for found in means] == [0, 1, 2]
    overall = panel(made["bars"], "mean over sites")
    assert [found.get_xdata()[0] for found in overall.lines if found.get_label() == "mean"] == pytest.approx(
        [25, 70, 80]
    )
    assert line(axes, "reference").get_xdata()[0] == pytest.approx(90)
    left, right = zip(*(found.get_xlim() for found in made["bars"].figure.axes), strict=True)
    assert np.subtract(right, left) == pytest.approx([right[0] - left[0]] * 3)  # a percent is as wide everywhere


def test_cost_is_of_the_whole_run() -> None:
    costs = {"FedAvg": {"upload_bytes_per_round": 1000.0, "download_bytes_per_round": 500.0, "setup_upload_bytes": 7}}
    costs["PFedST"] = {"peak_memory_bytes": None}
    figure = drawn("cost", two_rows(costs=costs)).figure
    moved, memory = figure.axes
    assert line(moved, "FedAvg").get_xdata()[0] == pytest.approx(2 * 1500 + 7)
    assert line(moved, "PFedST").get_xdata()[0] == pytest.approx(4e6)
    assert line(moved, "ZeroShot").get_xdata()[0] == 0
    assert line(moved, "FedAvg").get_ydata()[0] == pytest.approx(70)
    ticks = [tick.get_text() for tick in moved.get_xticklabels()]
    assert ticks[0] == "0"  # marked, though the axis is logarithmic
    assert moved.get_xscale() == "symlog"
    assert [found.get_label() for found in memory.lines if not found.get_label().startswith("_")] == [
        "ZeroShot",
        "FedAvg",
    ]
    assert memory.get_xscale() == "linear"


def test_confusion_is_the_share_of_a_class(made) -> None:
    # at both sites and seeds 6, 8, 8 and 10 of 10 images of a class are right
    image = panel(made["confusion"], "PFedST").images[0].get_array().tolist()
    assert image[0] == pytest.approx([80, 20, 0])
    assert image[2] == pytest.approx([20, 0, 80])
    assert [axes.get_title("left") for axes in made["confusion"].figure.axes] == [
        "ZeroShot: 25.0 %",
        "FedAvg: 70.0 %",
        "PFedST: 80.0 %",
    ]
    assert "80" in [text.get_text() for text in panel(made["confusion"], "PFedST").texts]


def test_reliability_is_pooled(made) -> None:
    axes = panel(made["reliability"], "PFedST")
    assert axes.get_title("left").endswith("pooled ECE 30.0 %")  # 80 % right with a confidence of 50 %
    assert line(axes, "accuracy").get_xydata().tolist() == [pytest.approx([50, 80])]
    assert line(axes, "gap").get_ydata() == pytest.approx([50, 80])
    histogram = made["reliability"].figure.axes[3]
    assert [round(bar.get_height()) for bar in histogram.patches] == [0] * 7 + [100] + [0] * 7


def test_the_ece_is_that_of_its_bins() -> None:
    found = Pooled((4, 0, 6), (1, 0, 6), (1.2, 0.0, 5.4))
    assert found.points == [pytest.approx((30, 25)), pytest.approx((90, 100))]
    assert found.ece == pytest.approx(100 * (0.4 * 0.05 + 0.6 * 0.1))
    assert Pooled((0,), (0,), (0.0,)).ece is None


def test_at_most_six_rows_are_confused_in_the_order_of_the_table() -> None:
    rows = {f"row {n}": {0: {"x": 0.1 * n}} for n in range(9)}
    figure = drawn("confusion", compared(rows, reference="row 2"))
    titles = [axes.get_title("left").split(":")[0] for axes in figure.figure.axes]
    assert titles == ["row 2", "row 4", "row 5", "row 6", "row 7", "row 8"]
    assert "the 5 best of the other rows" in figure.caption
    by_error = drawn("confusion", compared(rows, reference="row 2"), "ece")
    assert by_error.figure.axes[-1].get_title("left").startswith("row 8")  # the least error


@pytest.mark.parametrize(
    ("rows", "options", "names"),
    [
        ({"PFedST": {3: {"x": 0.5}}}, {}, NAMES),
        ({"ZeroShot": {0: {"x": 0.5, "y": 0.4}}}, {}, NAMES),
        ({"A": {0: {"x": 0.5, "y": None}, 1: {"x": None, "y": None}}, "B": {0: {"x": 0.1, "y": None}}}, {}, NAMES),
        ({"A": {0: {"x": None}}, "B": {0: {"x": None}}}, {}, ["bars", "confusion", "reliability"]),
        ({"A": {0: {"x": 0.5}, 1: {"x": 0.6}}}, {"validation": False}, ["bars", "confusion", "classes", "reliability", "cost"]),
        ({"$A$ <b> & $": {0: {"$x$": 0.5}}}, {"classes": ["$1$", "<2>"]}, NAMES),
        ({"A": {0: {"x": 0.5}}}, {"costs": {"A": {"peak_memory_bytes": None}}}, NAMES),
    ],
    ids=["one of each", "nothing trained", "undefined", "nothing defined", "no validation", "odd names", "no memory"],
)  # fmt: skip
def test_whatever_is_missing_is_left_out(rows, options, names, tmp_path: Path) -> None:
    made = make_figures(compared(rows, **options))
    assert [figure.name for figure in made] == names
    assert svg_text(made[0])


def test_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for number in range(2):
        figure = drawn("cost", two_rows())
        for again in range(2):
            files = save_figure(figure, tmp_path / f"{number}{again}", ("png", "pdf"))
            assert [file.name for file in files] == ["cost.png", "cost.pdf"]
            contents.append([file.read_bytes() for file in files] + [svg_text(figure).encode()])
    assert contents[0] == contents[1] == contents[2] == contents[3]
    assert b"CreationDate" not in contents[0][1]
    assert sorted(path.name for path in (tmp_path / "00").iterdir()) == ["cost.pdf", "cost.png"]


def test_an_svg_goes_into_a_page(made) -> None:
    svgs = [svg_text(figure) for figure in made.values()]
    ids = [found for svg in svgs for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        assert svg.startswith("<svg")
        assert svg.count("<text ") > 10  # letters, not outlines
        assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"'DejaVu Sans', Verdana, sans-serif"}
        assert "*{" not in svg  # a style of the whole page
        assert "<dc:date>" not in svg
        assert not re.findall(r'(?:href|src)="(?!#)', svg.replace("data:image/png", "#"))
        known = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= known


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ({"random_weights": True}, "RANDOM WEIGHTS: a demonstration, no result"),
        ({"data": "SYNTHETIC lesions"}, "SYNTHETIC IMAGES: a demonstration, no result"),
        ({}, None),
    ],
)
def test_a_picture_says_what_is_not_real(protocol, told) -> None:
    for figure in make_figures(two_rows(**protocol)):
        found = [text for text in texts(figure.figure) if "demonstration" in text]
        assert found == ([told] if told else []), figure.name
        assert (told or "demonstration") in figure.caption or told is None


def test_rows_look_different_in_colour_and_in_grey() -> None:
    one = compared({f"row {n}": {0: {"x": 0.5}} for n in range(16)}, reference="row 7")
    styles = row_styles(one)
    assert (styles["row 7"].color, styles["row 7"].marker) == ("#000000", "o")
    assert styles["row 7"].width > max(style.width for label, style in styles.items() if label != "row 7")
    assert len({(style.marker, style.face == "#FFFFFF") for style in styles.values()}) == 16
    assert len({(style.color, str(style.line)) for style in styles.values()}) == 16
    for style in styles.values():
        red, green, blue = to_rgb(style.color)
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 0.75  # seen on white


def test_no_text_is_small_and_nothing_leaves_the_figure() -> None:
    for figure in make_figures(large()):
        figure.figure.draw_without_rendering()  # puts panels of a given aspect into place
        width, height = figure.figure.bbox.size
        assert figure.figure.get_size_inches()[0] == 7.2, "all are as wide as a page"
        for text in figure.figure.findobj(matplotlib.text.Text):
            if (text.get_text() and text.get_visible() and text.axes is not None) or text in figure.figure.texts:
                assert text.get_fontsize() >= 7, text.get_text()
                box = text.get_window_extent()
                outside = (-box.x0, -box.y0, box.x1 - width, box.y1 - height)
                # an axis keeps labels of ticks beyond its limits, which are not drawn
                drawn = text in figure.figure.texts or text in [*text.axes.texts, text.axes._left_title]
                assert not drawn or max(outside) < 2, (figure.name, text.get_text(), outside)


def test_no_label_lies_on_another() -> None:
    with figure_style():
        one = compared({f"a long name {n}": {0: {"x": 0.5}} for n in range(16)})
        figure = new_figure(one, "told", 3.6, 3.6)
        axes = figure.subplots()
        draw, styles = random.Random(1), row_styles(one)
        points = []
        for label, style in styles.items():
            x, y = draw.choice([1.0, 1.0, 3.0]), draw.random()
            points.append(Labelled(label, x, y, y, y, style))
            axes.plot([x], [y], "o")
        axes.set_xlim(0, 4)
        settle(figure)
        label_points(axes, points)
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 16
    for number, box in enumerate(boxes):
        assert not [other for other in boxes[number + 1 :] if box.overlaps(other)]
        assert axes.get_window_extent().padded(12).contains(box.x0, box.y0)


def test_settings_of_matplotlib_stay_as_they_are(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 31.0, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        figure = drawn("confusion", two_rows())
        save_figure(figure, tmp_path, ("png", "pdf"))
        svg_text(figure)
        assert dict(matplotlib.rcParams) == before
        assert max(text.get_fontsize() for text in figure.figure.findobj(matplotlib.text.Text)) < 13


def test_widths_of_text_are_in_inches() -> None:
    assert 0.3 < text_inches("PFedST", TEXT) < 0.5
    assert text_inches(" ", TEXT) == 0


def test_classes_have_a_mark_and_a_line_each_and_a_dash_where_nothing_is_defined(made) -> None:
    figure = made["classes"]
    assert [axes.get_title("left") for axes in figure.figure.axes] == [
        "Sensitivity, %",
        "Specificity, %",
        "Average precision, %",
    ]
    names = [label.get_text() for label in figure.figure.axes[0].get_yticklabels()]
    of_site = ["nevus (10, 5)", "melanoma (10, 5)", "keratosis (0, 0)"]
    assert names == ["x", *of_site, "y", *of_site]
    sensitivity, _, precision = figure.figure.axes
    # PFedST with seed 0: 0.6 at x and 0.8 at y, with 0.1 less and more at the ends; no image of the last class
    assert line(sensitivity, "value").get_xydata().tolist() == [
        pytest.approx(place) for place in ([60, 1], [60, 2], [80, 5], [80, 6])
    ]
    ends = [tuple(segment[:, 0]) for segment in sensitivity.collections[0].get_segments()]
    assert ends == [pytest.approx(pair) for pair in ((50, 70), (50, 70), (70, 90), (70, 90))]
    assert [(text.get_text(), text.get_position()[1]) for text in sensitivity.texts] == [("-", 3), ("-", 7)]
    assert set(line(precision, "share").get_xdata()) == {50.0}


def test_of_many_classes_the_largest_sites_are_drawn() -> None:
    sites = {f"s{n}": 0.5 for n in range(9)}
    made = compared({"PFedST": {0: sites}}, classes=[f"c{n}" for n in range(17)])
    for number, site in enumerate(sites):
        made.rows[0].first.class_metrics[site]["images"] += number % 5
    figure = drawn("classes", made)
    names = [label.get_text() for label in figure.figure.axes[0].get_yticklabels()]
    assert [name for name in names if name in sites] == ["s2", "s3", "s4", "s8"]
    assert "Shown are the 4 sites with most images, 5 are left out." in figure.caption


def test_reliability_before_and_after_and_the_risk_are_those_of_a_site(made) -> None:
    axes = panel(made["calibrated_reliability"], "x, T = 2.00")
    (before,), (after,) = line(axes, "T = 1").get_xydata(), line(axes, "fitted T").get_xydata()
    assert (*before, *after) == pytest.approx((90, 90, 70, 90))
    axes = panel(made["risk_coverage"], "y")
    assert line(axes, "risk").get_xydata().ravel() == pytest.approx([50, 5, 100, 10])
    assert line(axes, "threshold").get_xydata().ravel() == pytest.approx([75, 5])


def test_of_many_sites_those_with_most_images_are_calibrated_in_a_figure() -> None:
    made = compared({"PFedST": {0: {f"site {n:02}": 0.5 for n in range(15)}}})
    for number, found in enumerate(made.rows[0].first.calibration.values()):
        found["test"]["images"] += number
    titles = [axes.get_title("left") for axes in drawn("risk_coverage", made).figure.axes]
    assert titles == [f"site {n:02}" for n in range(3, 15)]


def test_each_figure_says_what_it_shows(made) -> None:
    assert {name: figure.finding for name, figure in made.items() if name in ("bars", "cost", "confusion", "reliability")} == {
        "bars": "Balanced accuracy, mean over sites: highest PFedST (80.0 %); lowest ZeroShot (25.0 %). "
        "Balanced accuracy of PFedST by site: highest y (90.0 %); lowest x (70.0 %).",
        "cost": "Balanced accuracy, mean over sites: highest PFedST (80.0 %); lowest ZeroShot (25.0 %). Bytes moved in the "
        "whole run: highest FedAvg, PFedST (3.81 MiB); lowest ZeroShot (0 B). Peak memory: ZeroShot, FedAvg, PFedST (600.00 MiB).",
        "confusion": "Share of a class that PFedST predicts right: nevus, melanoma, keratosis (80.0 %). "
        "Most frequent error: 20.0 % of nevus predicted as melanoma.",
        "reliability": "Pooled calibration error (ECE): highest PFedST (30.0 %); lowest FedAvg (20.0 %). "
        "PFedST has a mean confidence of 50.0 % and an accuracy of 80.0 %.",
    }  # fmt: skip
    assert "PFedST: 37.5 % after round 0, 75.0 % after round 2, best after round 2" in made["learning_curves"].finding
    assert made["classes"].finding.startswith(
        "Sensitivity: highest nevus at y, melanoma at y (80.0 %); lowest nevus at x"
    )
    assert "at 0 of 2 sites. Largest change: x, from 0.0 % to 20.0 %." in made["calibrated_reliability"].finding
    assert (
        "With the threshold: x, y (5.0 %). Coverage with the threshold: x, y (75.0 %)." in made["risk_coverage"].finding
    )
    assert svg_text(made["bars"]).startswith(f'<svg role="img" aria-label="{made["bars"].finding}"')


def test_a_finding_of_nothing_says_so() -> None:
    nothing = drawn("bars", compared({"A": {0: {"x": None}}, "B": {0: {"x": None}}}))
    assert nothing.finding == (
        "Balanced accuracy, mean over sites: no value is defined. Balanced accuracy of A by site: no value is defined."
    )


def test_lines_have_a_contrast_of_3_on_white() -> None:
    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert {
        color: 1.05 / (luminance(color) + 0.05) for color in (*COLORS, GUIDE) if 1.05 / (luminance(color) + 0.05) < 3
    } == {}


def test_a_name_cannot_leave_its_figure() -> None:
    hostile = '"</text></svg><script>x</script>-->'
    for figure in make_figures(compared({hostile: {0: {hostile: 0.5}}}, classes=[hostile, "b"])):
        svg = svg_text(figure)
        assert "<script" not in svg
        assert svg.count("</svg>") == svg.count("<svg") == 1
        assert "&lt;script&gt;" in svg
