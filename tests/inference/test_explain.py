"""Maps of a personal and a generic model: figures, numbers, and a sentence that says what they are worth."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pfedst.errors import ConfigurationError, DataError
from pfedst.inference import predict as predict_module
from pfedst.inference.explain import CENTRE, RANDOM, Against, MapSummary, explain, summarise
from pfedst.inference.explain_report import figure_bytes, verdict, write_explanations
from pfedst.inference.occlusion import Grid
from pfedst.testing.small import encoder
from tests.inference.models import pictures, site_model

GRID = Grid.of(32, stride=8)


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """Two models, three images, and their maps."""
    models = [site_model(encoder()), site_model(encoder(), "generic", seed=6)]
    files = pictures(tmp_path_factory.mktemp("images"), 3)
    return models, files, explain(models, files, stride=8)


def test_both_models_explain_the_class_that_the_first_one_predicts(explained) -> None:
    models, files, found = explained
    tables = [model.predict(files) for model in models]
    for number, image in enumerate(found):
        assert image.name == str(files[number])
        assert image.sha256 == tables[0]["sha256"][number]
        assert image.class_name == tables[0]["prediction"][number]
        assert [single.which for single in image.maps] == ["personal", "generic"]
        for single, table in zip(image.maps, tables, strict=True):
            assert single.prediction == table["prediction"][number]
            assert single.probability == pytest.approx(table[f"probability {image.class_name}"][number], abs=1e-5)
            assert single.cells.shape == (4, 4)
            # the ends of the curves are the image and the blurred image
            assert single.curves.deletion[0] == single.curves.insertion[-1]
            assert single.curves.deletion[0] == pytest.approx(single.probability, abs=1e-5)
            assert single.others[RANDOM].deletion[-1] == single.curves.insertion[0]
    assert not np.allclose(found[0].maps[0].cells, found[0].maps[1].cells, atol=1e-4)


def test_the_same_images_have_the_same_maps(explained) -> None:
    models, files, found = explained
    again = explain(models, files[:1], stride=8)[0]
    for one, other in zip(again.maps, found[0].maps, strict=True):
        assert np.allclose(one.cells, other.cells, atol=1e-6)
        assert one.others[RANDOM].deletion == pytest.approx(other.others[RANDOM].deletion, abs=1e-6)


def test_a_named_class_and_one_model(explained) -> None:
    models, files, _ = explained
    (found,) = explain(models[1:], files[0], "keratosis", stride=16)
    assert found.class_name == "keratosis"
    assert len(found.maps) == 1
    with pytest.raises(ConfigurationError, match='--class keratoses: .*Did you mean "keratosis"'):
        explain(models, files, "keratoses")


def test_an_image_that_cannot_be_read_and_a_missing_package(explained, tmp_path, monkeypatch) -> None:
    models, files, _ = explained
    for name in ("broken.png", "empty.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 3 images cannot be read, .*: .*broken\.png: .*; .*empty\.jpg: "):
        explain(models, [files[0], tmp_path])
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pfedst\[explain\]'"):
        explain(models, files[:1])


def test_the_time_left_is_shown(explained, monkeypatch) -> None:
    models, files, _ = explained
    monkeypatch.setattr(predict_module, "SECONDS_BETWEEN_LINES", 0.0)
    console = Console(file=io.StringIO(), width=200)
    explain(models[:1], files[:2], stride=16, console=console)
    assert "explain: 1 of 2 images, about " in console.file.getvalue()


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_summary_is_the_mean_difference_over_images(explained) -> None:
    _, _, found = explained
    personal = summarise(found)[0]
    own = np.array([image.maps[0].curves.score for image in found])
    other = np.array([image.maps[0].others[CENTRE].score for image in found])
    against = personal.against[1]
    assert against.other == CENTRE
    assert personal.score == pytest.approx(own.mean())
    assert against.score == pytest.approx(other.mean())
    assert against.difference == pytest.approx((own - other).mean())
    assert against.standard_error == pytest.approx((own - other).std(ddof=1) / np.sqrt(3))
    assert against.better == (own > other).sum()
    assert summarise(found[:1])[0].against[0].standard_error is None


@pytest.mark.parametrize(
    ("difference", "error", "images", "words"),
    [
        (0.03, 0.01, 30, "order the cells of these images better than a Gaussian at the centre does (+0.030 +- 0.010"),
        (0.007, 0.037, 30, "do NOT order the cells of these images better than a Gaussian at the centre does (+0.007"),
        (-0.2, 0.01, 30, "do NOT order"),
        (0.3, None, 1, "One image says nothing"),
    ],
)
def test_it_is_said_whether_the_centre_is_beaten(difference, error, images, words) -> None:
    centre = Against(CENTRE, 0.1, difference, error, 14)
    summary = MapSummary("personal", images, 0.1 + difference, (Against(RANDOM, 0.0, 0.5, 0.01, images), centre))
    assert words in verdict(summary)
    assert ("NOT" in verdict(summary)) == ("NOT" in words)


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_figures_numbers_and_the_sentence(explained, tmp_path) -> None:
    models, _, found = explained
    folder = tmp_path / "maps"
    written = write_explanations(folder, models, found, GRID)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in written)
    figures = [path for path in written if path.suffix == ".png"]
    assert [path.name for path in figures] == ["0001-0.png", "0002-1.png", "0003-2.png"]
    content = json.loads((folder / "explain.json").read_text())
    assert content["grid"] == {"side": 32, "window": 16, "stride": 8}
    assert [model["id"] for model in content["models"]] == [model.id for model in models]
    assert np.allclose(content["images"][1]["maps"][0]["cells"], found[1].maps[0].cells)
    text = (folder / "README.md").read_text()
    for summary, stated in zip(summarise(found), content["summary"], strict=True):
        assert f"**{verdict(summary)}**" in text
        assert stated["verdict"] == verdict(summary)
        assert f"| {summary.which} | 3 | {summary.score:+.3f} | a Gaussian at the centre |" in text
    for path in figures:
        assert f"]({path.name}) |" in text


def test_a_figure_has_the_colours_of_its_cells(explained) -> None:
    """The cell with the largest fall has the darkest orange of the scale, in one flat colour."""
    _, _, found = explained
    pixels = np.asarray(Image.open(io.BytesIO(figure_bytes(found[0], GRID))).convert("RGB")).astype(int)
    largest = max(float(np.abs(single.cells).max()) for single in found[0].maps)
    values = np.concatenate([single.cells.ravel() for single in found[0].maps])
    extreme = (127, 59, 8) if values[np.abs(values).argmax()] > 0 else (45, 0, 75)  # the ends of PuOr
    count = (np.abs(pixels - np.array(extreme)).max(2) <= 2).sum()
    assert largest > 0
    assert count > 2000  # a cell has about 90 x 90 pixels; the bar of colours has only a line of it
    assert figure_bytes(found[0], GRID) == figure_bytes(found[0], GRID)
