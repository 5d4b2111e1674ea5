"""`pfedst report` from the JSON of finished runs: every format, and what is refused."""

import json
import re
import shutil

import pandas as pd
import pytest

from pfedst.cli import main
from tests.cli.test_main import SMALL
from tests.reporting.fake_runs import write_comparison, write_run

ROWS = {
    "PFedST": {seed: {"a": 0.6 + seed / 50, "b": 0.8} for seed in (0, 1)},
    "FedAvg": {seed: {"a": 0.5, "b": 0.7 + seed / 50} for seed in (0, 1)},
}
FIGURES = ("learning_curves", "bars", "cost", "confusion", "reliability")
TABLES = ("results", "tests", "metrics", "recall", "calibration", "cost")


def test_every_format_is_written_and_tells_the_same(tmp_path, capsys) -> None:
    folder = write_comparison(tmp_path / "c", ROWS, "PFedST")
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "--figures png pdf" in printed
    report = folder / "report"
    names = {f"{name}.{kind}" for name in TABLES for kind in ("csv", "tex")}
    names |= {f"report.{kind}" for kind in ("md", "tex", "html", "json")}
    assert {file.name for file in report.iterdir()} == names
    results = pd.read_csv(report / "results.csv", index_col=0)
    assert results.loc["PFedST", "mean"] == pytest.approx(0.705)
    for text in (printed, *((report / f"report.{kind}").read_text() for kind in ("md", "tex", "html", "json"))):
        assert "70.5" in text
        assert "Too few seeds to claim" in text
    page = (report / "report.html").read_text()
    assert page.count('<svg role="img"') == len(FIGURES)
    # figures as files where they are asked for; a later report without the option keeps them up to date
    assert main(["report", str(folder), "--figures", "png", "pdf"]) == 0
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    assert {file.name for file in report.iterdir()} == names | figures
    assert (report / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "bars.pdf").read_bytes().startswith(b"%PDF")
    before = {file.name: undated(file) for file in report.iterdir()}
    (report / "bars.png").write_bytes(b"of an earlier report")
    assert main(["report", str(folder)]) == 0
    assert {file.name: undated(file) for file in report.iterdir()} == before


def undated(file):
    """The content without the minute at which the report was written."""
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", file.read_bytes())


def test_runs_that_are_named_by_hand(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])
    monkeypatch.chdir(tmp_path)
    paths = [str(write_run(tmp_path / name, {"a": 0.5}, method=name)) for name in ("FedAvg", "Local")]
    assert main(["report", *paths, "--reference", "Local", "--metric", "auroc"]) == 0
    assert "Against Local" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["tables"][0]["title"] == "AUROC by site"
    shutil.rmtree(tmp_path / "report")
    assert main(["report", paths[0], "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "report").exists()


def test_real_runs_that_differ_in_options_of_the_trainer_are_no_seeds_of_one_row(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])
    monkeypatch.chdir(tmp_path)
    fit = ["fit", *SMALL, "--coordinator.rounds=1", "--data.audit=off"]
    others = [
        "--trainer.precision=bf16-mixed",
        "--trainer.gradient_clip_val=0.01",
        "--trainer.accumulate_grad_batches=4",
    ]
    for seed, options in enumerate([[], ["--coordinator.threads=1"], others]):
        assert main([*fit, *options, f"--seed_everything={seed}", f"--name=run{seed}"]) == 0
    capsys.readouterr()
    assert main(["report", *(f"runs/run{seed}" for seed in range(3))]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row[0]["text"] for row in report["tables"][0]["rows"]] == [
        "PFedST",
        "PFedST, accumulate_grad_batches 4, gradient_clip_val 0.01, precision bf16-mixed",
    ]
    assert "2 rows, 2 sites, 3 seeds" in capsys.readouterr().out
    (note,) = [note for note in report["notes"] if "last digits" in note]
    assert "coordinator.threads" in note
    told = {note.split(" (")[0]: note.split(" (")[1] for note in report["notes"] if "rows differ" in note}
    assert told["Not the same: rows differ in trainer.precision"] == (
        "default: PFedST in runs/run0, runs/run1; bf16-mixed: PFedST, accumulate_grad_batches 4, gradient_clip_val 0.01, "
        "precision bf16-mixed in runs/run2)"
    )
    assert len(told) == 3


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--metric", "balanced_acuracy"], 2, 'no such metric. Did you mean "balanced_accuracy"'),
        (["--reference", "FedAvgg"], 2, 'no such row. Did you mean "FedAvg"'),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(tmp_path, capsys, options, code, told) -> None:
    run = write_run(tmp_path / "run", {"a": 0.5})
    assert main(["report", str(run), *options]) == code
    assert told in capsys.readouterr().err
    assert not (run / "report").exists()
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none: no folder" in capsys.readouterr().err


def test_a_disk_that_refuses_is_told(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])
    run = write_run(tmp_path / "run", {"a": 0.5})
    (tmp_path / "file").touch()
    assert main(["report", str(run), "--output", str(tmp_path / "file" / "x")]) == 5
    assert "cannot be written" in capsys.readouterr().err
