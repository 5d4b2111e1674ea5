"""What a report and `pfedst env` say of versions, date, command and hardware."""

import json
import re
import sys
from importlib.metadata import version

from pfedst.cli import main
from pfedst.reporting.environment import MOST_CHARACTERS, environment, environment_lines, runs_text
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.version import __version__
from tests.reporting.fake_runs import write_run

HERE = {
    "pfedst": "1.2.3",
    "date": "2026-01-02 03:04 UTC",
    "command": "pfedst fit",
    "python": "3.12.1",
    "packages": {"torch": "2.9.0"},
    "system": "Linux 6, x86_64",
    "processor": "A processor",
    "cores": 4,
    "memory_bytes": 8 * 2**30,
    "gpus": [],
}


def test_it_names_versions_command_date_and_hardware(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/pfedst/__main__.py", "report", "a run"])
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert (found["pfedst"], found["command"]) == (__version__, "pfedst report 'a run'")
    assert found["packages"]["torch"] == version("torch")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert found["cores"] >= 1
    monkeypatch.setattr(sys, "argv", ["/bin/pfedst", *(f"run{n}" for n in range(1000))])
    assert len(environment()["command"]) == MOST_CHARACTERS


def test_in_words() -> None:
    assert environment_lines(HERE) == [
        "pfedst 1.2.3, 2026-01-02 03:04 UTC",
        "command: pfedst fit",
        "Python 3.12.1, torch 2.9.0",
        "hardware: A processor, 4 cores, 8 GiB of memory, no NVIDIA GPU; Linux 6, x86_64",
    ]
    other = HERE | {"processor": "", "memory_bytes": None, "gpus": ["NVIDIA X"], "date": "2026-01-01 00:00 UTC"}
    assert runs_text([HERE, HERE, other, None]) == (
        "runs: 2 with pfedst 1.2.3, torch 2.9.0, A processor, 4 cores, 8 GiB of memory, no NVIDIA GPU; 1 with pfedst "
        "1.2.3, torch 2.9.0, unknown processor, 4 cores, GPU: NVIDIA X; 1 that did not record versions and hardware, "
        "finished 2026-01-01 00:00 UTC to 2026-01-02 03:04 UTC"
    )
    assert runs_text([None]) == "runs: 1 that did not record versions and hardware"


def test_a_report_names_those_of_its_runs_and_its_own(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "run", {"a": 0.5}, environment=HERE)])
    assert make_report(compared, "auroc").protocol[-1].startswith("runs: 1 with pfedst 1.2.3, torch 2.9.0, A processor")
    lines = make_report(compared, "auroc", HERE | {"command": "pfedst report run"}).protocol
    assert lines[-1].startswith("report: pfedst 1.2.3, 2026-01-02 03:04 UTC; command: pfedst report run; Python 3.12.1")


def test_the_command_prints_the_same(capsys, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.cli.environment.environment", lambda: HERE)
    assert main(["env"]) == 0
    assert capsys.readouterr().out.splitlines() == environment_lines(HERE)
    assert main(["env", "--none"]) == 2
