"""Runs that an earlier version wrote still stand in a report.

tests/fixtures/run_of_format_1 and run_of_format_1_seed_1 were made by the commit before the modules moved:
`pfedst fit` of PFedST on three synthetic sites for two rounds, with seeds 0 and 1.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pfedst.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
RUNS = [FIXTURES / "run_of_format_1", FIXTURES / "run_of_format_1_seed_1"]
PARTS = ("mean", "weighted_mean", "worst", "std")
COLUMNS = ("mean", "weighted mean", "worst site", "std over sites")


def test_two_seeds_are_one_row_with_the_numbers_of_their_summaries(tmp_path) -> None:
    before = {file: file.read_bytes() for run in RUNS for file in run.rglob("*") if file.is_file()}
    assert main(["report", *map(str, RUNS), "--output", str(tmp_path)]) == 0
    results = pd.read_csv(tmp_path / "results.csv", index_col=0)
    assert list(results.index) == ["PFedST"]
    told = results.loc["PFedST"]
    summaries = [json.loads((run / "summary.json").read_text()) for run in RUNS]
    for column, part in zip(COLUMNS, PARTS, strict=True):
        scores = [summary["personal"][part]["balanced_accuracy"] for summary in summaries]
        assert told[column] == pytest.approx(np.mean(scores)), column
        assert told[f"{column} std"] == pytest.approx(np.std(scores, ddof=1)), column
    for site in ("site_a", "site_b", "site_c"):
        scores = [summary["personal"]["clients"][site]["balanced_accuracy"] for summary in summaries]
        assert told[f"{site} (8)"] == pytest.approx(np.mean(scores)), site
    generic = [summary["generic"]["mean"]["balanced_accuracy"] for summary in summaries]
    assert told["generic mean"] == pytest.approx(np.mean(generic))
    assert "2 seeds" in (tmp_path / "report.md").read_text()
    # a report leaves the runs as they are
    assert {file: file.read_bytes() for run in RUNS for file in run.rglob("*") if file.is_file()} == before
