"""Subgroups from a manifest to summary, report and card."""

import json

import pytest
import torch

from pfedst.cli import main
from pfedst.client.predictions import Predictions
from pfedst.evaluation.averages import SITE_METRICS
from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.subgroups import HIDING
from tests.fake_data.folder.data import image
from tests.fake_data.manifest.data import make, rows

MODEL = ["--model.encoder.model=vit-nano", "--model.encoder.weights=random", "--model.encoder.image_size=32"]
MODEL += ["--model.encoder.token_grid=2", "--coordinator.rounds=1", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of each class of a site six of eight test images are of women, two of men of whom one has no age."""
    folder = tmp_path_factory.mktemp("subgroups")
    table = []
    for row in rows(test=8):
        number = int(row["path"].split("_")[-1].removesuffix(".png"))
        table.append(row | {"group": "", "sex": "f" if number < 6 else "m", "age": "" if number == 7 else number * 10})
    manifest = make(folder, table)
    for seed, row in enumerate(table):
        image(folder / row["path"], seed)
    chosen = ["--data.subgroups=[sex,age]", '--data.subgroup_bands={"age": [20, 40]}', "--data.subgroup_minimum=6"]
    data = ["--data=ManifestSites", f"--data.manifest={manifest}", f"--data.cache_folder={folder}", *chosen]
    assert main(["fit", "--method=PFedST", *MODEL, *data, f"--runs_dir={folder}", "--name=run"]) == 0
    return folder / "run"


def test_summary_and_kept_predictions_agree(run) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["subgroups"]) == {"north", "south"}
    for site, found in summary["subgroups"].items():
        assert found["minimum"] == 6
        sizes = {
            column: {table["name"]: table.get("images", table.get("withheld")) for table in tables}
            for column, tables in found["columns"].items()
        }
        small = "fewer than 6 images, patients or lesions"
        assert sizes["sex"] == {"f": 18, "m": 6}
        assert sizes["age"] == {"below 20": 6, "20 to below 40": HIDING, "40 or above": 9, "not stated": small}
        kept = Predictions.load(run / "sites" / site, "test", 1)
        women = kept.tensors["subgroup.sex"] == kept.subgroups["sex"].index("f")
        for model in ("personal", "generic"):
            probabilities = kept.logits(model)[women].softmax(1)
            expected = classification_metrics(probabilities, kept.tensors["label"][women])
            for metric in SITE_METRICS:
                assert found["columns"]["sex"][0][model][metric]["value"] == pytest.approx(expected[metric])
                whole = summary["intervals"][site][model][metric]["value"]
                assert whole == pytest.approx(summary[model]["clients"][site][metric])


def test_report_and_card_show_them(run, capsys) -> None:
    assert main(["card", str(run)]) == 0
    assert main(["report", str(run), "--output", str(run / "report")]) == 0
    page = (run / "card.md").read_text()
    for text in (page, (run / "report" / "report.md").read_text(), (run / "report" / "report.html").read_text()):
        assert "withheld: fewer than 6 images" in text
    assert "| sex | f | north | 18 | 18 | 3 |" in page
    assert "Subgroups of the images" in (run / "report" / "report.html").read_text()


def test_predictions_of_other_subgroups_are_refused(run, tmp_path) -> None:
    kept = Predictions.load(run / "sites" / "north", "test", 1)
    for codes in (torch.full((24,), 2), torch.zeros(3, dtype=torch.long)):
        broken = Predictions(kept.site, kept.class_names, kept.tensors | {"subgroup.sex": codes}, kept.subgroups)
        broken.save(tmp_path, "test", 1)
        with pytest.raises(Exception, match=r"subgroup.sex holds no subgroups of 24 images"):
            Predictions.load(tmp_path, "test", 1)
