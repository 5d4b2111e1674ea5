"""A comparison that is killed in the middle, with the processes of its runs, and started again, gives the same report."""

import functools
import json
import time

import yaml

from pfedst.cli import main
from pfedst.cli.compare import resolver
from tests import programs
from tests.comparison.in_process import InProcessGrid
from tests.comparison.test_run import BASE

PLAN = {
    "base": "base.yaml",
    "options": {"coordinator.rounds": 8, "coordinator.threads": 1},
    "seeds": [0],
    "folds": 2,
    "rows": {"average": {"method": "FedAvg"}, "side": {"method": "PFedST"}},
    "claims": [{"row": "side", "against": "average", "measure": "accuracy"}],
}
OF_TIME = ("peak memory", "seconds of fits", "seconds in all")


def without_times(report):
    """The report but for what a run of the same numbers may take, and the folder's name."""
    for table in report["tables"]:
        keep = [index for index, heading in enumerate(table["headings"]) if heading not in OF_TIME]
        table["rows"] = [[row[index] for index in keep] for row in table["rows"]]
    report["protocol"] = [line for line in report["protocol"] if not line.startswith(("runs: ", "report: "))]
    return report


def test_killed_and_started_again(tmp_path, monkeypatch) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    arguments = ["compare", "--config", str(tmp_path / "plan.yaml"), "--runs_dir"]
    killed = tmp_path / "killed" / "compare-plan"
    child = programs.start(programs.command, tmp_path / "output", *arguments, tmp_path / "killed")
    deadline = time.monotonic() + 600
    while not any(file.read_text().count("\n") > 5 for file in killed.glob("runs/side-*/rounds.jsonl")):
        assert child.process.exitcode is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.02)
    child.process.kill()
    child.process.join()
    (first,) = killed.glob("runs/average-*/summary.json")
    finished = first.stat().st_mtime_ns
    assert not list(killed.glob("runs/side-*/summary.json"))
    assert not (killed / "report").exists()

    resolve = functools.cache(resolver())
    monkeypatch.setattr("pfedst.cli.compare.resolver", lambda: resolve)
    monkeypatch.setattr("pfedst.cli.compare.Grid", InProcessGrid)
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])  # tests/cli/test_report.py draws
    assert main([*arguments, str(tmp_path / "killed")]) == 0
    assert first.stat().st_mtime_ns == finished
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    reports = [
        json.loads((tmp_path / name / "compare-plan" / "report" / "report.json").read_text())
        for name in ("killed", "whole")
    ]
    assert without_times(reports[0]) == without_times(reports[1])
    names = [sorted(path.name for path in (tmp_path / name / "compare-plan" / "runs").iterdir() if path.is_dir())
             for name in ("killed", "whole")]  # fmt: skip
    assert names[0] == names[1]
