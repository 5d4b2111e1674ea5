"""What is installed is whole: the wheel and an editable install run outside the clone, with and without the baselines.

`make check-wheel` runs these tests; `make test` does not, as they build and install the package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN as CLIP_MEAN
from open_clip import OPENAI_DATASET_STD as CLIP_STD
from PIL import Image

from pfedst.data.transforms import evaluation_transform
from pfedst.encoders import Preprocessing

ROOT = Path(__file__).parents[1]
PACKAGES = {"pfedst": "pfedst", "baselines/pfedst_baselines": "pfedst_baselines", "configs": "pfedst/configs"}
"""Folder of a package in the clone -> folder of the package in the wheel."""
SHORT = [
    "--model.encoder.model=vit-nano",
    "--model.encoder.weights=random",
    "--model.encoder.image_size=32",
    "--model.anchors=prototypes",
    "--data=SyntheticSites",
    "--data.sites=2",
    "--data.image_size=32",
    "--data.samples_per_site=[8,8]",
    "--data.test_samples_per_site=[4,4]",
    "--data.audit=off",
    "--coordinator.rounds=1",
    "--trainer.accelerator=cpu",
]
PROGRAM = """
import json, sys
import pfedst
from pfedst.cli import main
print(pfedst.__file__)
for arguments in json.loads(sys.argv[1]):
    print("-- next", file=sys.stderr, flush=True)
    assert main(arguments) == 0, arguments
"""
"""Several commands in one process: the import of torch is most of the time of each."""

pytestmark = pytest.mark.wheel


def run(*command, folder):
    """Run a command that sees neither the clone nor settings of this process; its output and its errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "PFEDST"))}
    environment = kept | {"PFEDST_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    ran = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr


class Environment:
    """A new virtual environment in which `package` is installed, and which sees the dependencies of this one."""

    def __init__(self, folder, *package):
        self.folder = folder
        self.empty = folder / "empty"
        self.empty.mkdir(parents=True)
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=self.empty)
        self.bin = folder / "venv" / "bin"
        scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.site = Path(sysconfig.get_path("purelib", "venv", scheme))
        # a .pth file adds a folder and reads no .pth file in it: an editable install of the clone there stays unseen
        folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (self.site / "dependencies.pth").write_text("".join(f"{path}\n" for path in folders))
        # --ignore-installed: the pfedst of the other environment is not touched
        install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet")
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check")
        run(*pip, *install, *package, folder=self.empty)

    def commands(self, *commands):
        """Where pfedst lies, what the commands print, and their warnings, a text a command."""
        output, errors = run(self.bin / "python", "-c", PROGRAM, json.dumps(commands), folder=self.empty)
        origin, _, printed = output.partition("\n")
        return Path(origin), printed, errors.split("-- next\n")[1:]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is built from: a build leaves files behind."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < 77:
        pytest.skip("setuptools>=77 is not installed (the extra `dev` has it), and a build finds no other offline")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the list of the package's files comes from git, and this is no clone")
    folder = tmp_path_factory.mktemp("source")
    parts = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *PACKAGES)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *parts]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", folder, source, folder=folder)
    (file,) = folder.glob("pfedst-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


def methods_of(source):
    """The names under the entry point, as pyproject.toml lists them."""
    table = (source / "pyproject.toml").read_text().split('[project.entry-points."pfedst.methods"]')[1]
    return re.findall(r"^(\w+) = ", table.split("\n[")[0], re.MULTILINE)


def listed_in(printed, methods):
    return [name for name in methods if re.search(rf"^│ {name} ", printed, re.MULTILINE)]


def test_the_wheel_holds_the_packages_and_no_other_file(source, wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(points).decode()
    expected = set()
    for folder, package in PACKAGES.items():
        files = [path for path in (source / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"{package}/{path.relative_to(source / folder).as_posix()}" for path in files}
    assert set(names) == expected
    assert {"pfedst/py.typed", "pfedst_baselines/py.typed", "pfedst/configs/compare/demo.yaml"} <= expected
    assert any(name.startswith("pfedst/encoders/models/") and name.endswith(".json") for name in names)
    assert "pfedst = pfedst.cli:main" in text
    assert len(methods_of(source)) == 24
    for name in methods_of(source):
        assert re.search(rf"^{name} = [\w.]+:{name}$", text, re.MULTILINE), name


def test_the_installed_wheel_lists_every_method_and_trains(source, installed) -> None:
    methods = methods_of(source)
    # the script once: what the other tests call is the function behind it
    printed, warned = run(installed.bin / "pfedst", "methods", folder=installed.empty)
    assert listed_in(printed, methods) == methods
    assert warned == ""
    fit = ["fit", "--method=FedAvg", *SHORT, "--name=first"]
    origin, _, (warned,) = installed.commands(fit)
    assert origin.is_relative_to(installed.site)
    assert "WARNING" not in warned
    assert json.loads((installed.empty / "runs" / "first" / "summary.json").read_text())["protocol"]["rounds"] == 1


def test_a_model_leaves_the_environment_that_trained_it(installed) -> None:
    """Train, export, move the folder, predict, ONNX, and join a hospital that was not there."""
    folder, draws = installed.empty, np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(9):
        pixels = draws.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    three = ["--data.sites=3", "--data.samples_per_site=[170,16,16]", "--data.test_samples_per_site=[4,4,4]"]
    four = ["--data.sites=4", "--data.samples_per_site=[170,16,16,160]", "--data.test_samples_per_site=[4,4,4,8]"]
    installed.commands(
        ["fit", "--method=PFedST", *SHORT, *three, "--name=way_out"],
        ["export", "runs/way_out", "personal", "--site=site_a", "--licence=mit"],
        ["export", "runs/way_out", "generic", "--generic", "--onnx", "images"],
        ["predict", "runs/way_out", "images", "--site=site_a", "--out=run.csv"],
    )
    (folder / "elsewhere").mkdir()
    for name in ("personal", "generic"):
        shutil.move(folder / name, folder / "elsewhere" / name)
    shutil.move(folder / "runs" / "way_out", folder / "elsewhere" / "way_out")
    installed.commands(
        ["predict", "elsewhere/personal", "images", "--out=moved.csv"],
        ["predict", "elsewhere/generic", "images", "--out=generic.csv"],
        ["join", "elsewhere/way_out", *four, "--site=site_d", "--name=joined"],
        ["predict", "runs/joined", "images", "--site=site_d", "--out=joined.csv"],
        ["export", "runs/joined", "of_site_d", "--site=site_d"],
        ["calibrate", "runs/joined", "--site=site_d", "--coverage=0.5"],
    )
    before, after, generic = (pd.read_csv(folder / f"{name}.csv") for name in ("run", "moved", "generic"))
    columns = [name for name in before if name.startswith("probability ")]
    assert abs(before[columns] - after[columns]).to_numpy().max() <= 1e-5
    assert not before["abstained"].isna().all()
    assert len(pd.read_csv(folder / "joined.csv")) == 9
    session = onnxruntime.InferenceSession(folder / "elsewhere" / "generic" / "model.onnx")
    transform = evaluation_transform(Preprocessing(32, CLIP_MEAN, CLIP_STD))
    images = torch.stack([transform(Image.open(path)) for path in generic["image"].map(lambda name: folder / name)])
    found = session.run(["probabilities"], {"images": images.numpy()})[0]
    assert abs(found - generic[columns].to_numpy()).max() < 1e-4


def test_an_editable_install_lists_every_method_and_trains(source, tmp_path) -> None:
    environment = Environment(tmp_path, "--editable", source)
    origin, printed, warned = environment.commands(["fit", "--method=FedAvg", *SHORT, "--name=first"], ["methods"])
    assert origin.is_relative_to(source)
    assert listed_in(printed, methods_of(source)) == methods_of(source)
    assert "WARNING" not in "".join(warned)
    assert (environment.empty / "runs" / "first" / "summary.json").is_file()


QUICK = (
    "--model.encoder.model vit-demo --model.encoder.weights random --model.anchors prototypes --coordinator.rounds 1"
)
IN_THE_README = {
    "pfedst fit --config demo ": "pfedst fit --config demo --coordinator.rounds 2 --name demo ",
    "/data/lesions": "../lesions",
    " --name mine\n": f" {QUICK} --name mine\n",  # the weights of CLIP come from a hub
}
"""What the test changes in the commands of the README: fewer rounds, a folder that is there, no network."""


def test_readme_and_tutorials_run_in_an_empty_folder_with_the_wheel_alone(installed) -> None:
    pytest.importorskip("sybil", reason="the extra dev has it")
    folder, draws = installed.empty, np.random.default_rng(0)
    for site in ("north", "south"):
        for shade, label in enumerate(("nevus", "melanoma")):
            (folder / "lesions" / site / label).mkdir(parents=True)
            for number in range(12):
                pixels = draws.integers(80 * shade, 160 + 80 * shade, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "lesions" / site / label / f"{number}.png")
    text = (ROOT / "README.md").read_text()
    for given, small in IN_THE_README.items():
        assert given in text
        text = text.replace(given, small)
    (folder / "README.md").write_text(text)
    pages = [folder / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
    assert len(pages) == 4  # a method of one's own is a wheel of its own: tests/test_tutorial.py
    output, _ = run(installed.bin / "python", ROOT / "tests" / "docs" / "pages.py", *pages, folder=folder)
    for page in pages:
        assert re.search(rf"^{re.escape(str(page))} \d+$", output, re.MULTILINE), page
    assert (folder / "README" / "runs" / "mine" / "summary.json").is_file()
    assert "not a medical device" in (folder / "README" / "runs" / "readme" / "card.md").read_text()


# the last test of the module, as it takes the baselines away
def test_without_the_baselines_pfedst_runs_and_tells_once_what_is_left_out(source, installed) -> None:
    shutil.rmtree(installed.site / "pfedst_baselines")
    # fit first: it sets up how warnings are printed, and a library would do so for a second time after `methods`
    fit = ["fit", "--method=PFedST", *SHORT, "--name=alone"]
    _, printed, warned = installed.commands(fit, ["methods"])
    methods = methods_of(source)
    assert listed_in(printed, methods) == ["PFedST"]
    assert (installed.empty / "runs" / "alone" / "summary.json").is_file()
    names = [name for name in methods if name != "PFedST"]
    for text in warned:
        assert text.count("left out") == 1, text
        found = re.search(r"left out: (.*) \((.*)\)", text)
        assert found is not None, text
        assert sorted(found[1].split(", ")) == sorted(names)
        assert found[2] == "ModuleNotFoundError(\"No module named 'pfedst_baselines'\")"
