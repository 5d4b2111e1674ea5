"""Push and load by the hub's routes, against a hub in memory: the way is real, the internet is not needed."""

import os
import subprocess
import sys

import pytest

from pfedst import load
from pfedst.cli import main
from pfedst.errors import ConfigurationError, StateError, WeightsError
from pfedst.inference.artefact import export
from pfedst.inference.artefact_files import FILES
from pfedst.inference.hub import local_folder, push
from tests.inference.fakehub import Hub

PROGRAM = """
import sys
from pathlib import Path
from pfedst.cli import main
from pfedst.inference.hub import local_folder

print(main(["push", sys.argv[1], "me/lesions", "--private"]))
found = local_folder("hf://me/lesions")
print(sorted(path.name for path in found.iterdir()))
print(all((found / path.name).read_bytes() == path.read_bytes() for path in Path(sys.argv[1]).iterdir() if path.suffix != ".txt"))
print(main(["predict", "hf://me/none", "x.png", "--out=p.csv"]))
"""


@pytest.fixture
def hub():
    """A hub that listens on this machine."""
    made = Hub()
    yield made
    made.close()


def test_a_model_travels_over_the_hub(hub, run_folder, tmp_path) -> None:
    """In a process of its own: the address of the hub is read once, at import."""
    run = load(run_folder)
    folder = export(run, run.model(), tmp_path / "model", "mit")
    (folder / "patients.txt").write_text("stays here")
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_fake", "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=os.environ | own,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ran.stdout.splitlines()
    assert lines[1:] == ["0", str(sorted(FILES)), "True", "4"], ran.stdout + ran.stderr
    assert sorted(hub.repositories["me/lesions"]) == sorted(FILES)  # and not the file of patients
    assert hub.private == {"me/lesions"}
    assert "hf://me/none: the model cannot be downloaded" in ran.stderr


def test_names_and_folders_are_checked_first(tmp_path) -> None:
    for name in ("lesions", "a/b/c", "/x", "x/"):
        with pytest.raises(ConfigurationError, match="USER/NAME"):
            local_folder(f"hf://{name}")
        with pytest.raises(ConfigurationError, match="USER/NAME"):
            push(tmp_path, name)
    with pytest.raises(StateError, match=r"has no config.json"):
        push(tmp_path, "me/lesions")


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(run_folder, tmp_path, monkeypatch, capsys) -> None:
    def refuse(*_, **__):
        raise OSError("no route to the hub\nand more")

    run = load(run_folder)
    folder = export(run, run.model(), tmp_path / "model", "mit")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert main(["push", str(folder), "me/lesions"]) == 4
    told = capsys.readouterr().err
    assert f"{folder} cannot be uploaded to me/lesions (no route to the hub); check the name" in told
    with pytest.raises(WeightsError, match=r"hf://me/lesions: the model cannot be downloaded \(no route to the hub\)"):
        local_folder("hf://me/lesions")
