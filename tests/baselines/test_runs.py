"""Every registered method from the command line on synthetic sites, and on real images of the four FedISIC sites."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from torch.optim import SGD

from pfedst.cli import main
from pfedst.data import FedISIC2019
from pfedst.methods.registry import registered_methods
from pfedst.testing import encoder, fit, template
from tests.cli.test_main import SMALL

METHODS = registered_methods()
REAL = Path(__file__).parents[3] / "shared" / "data" / "fedisic_ham4"
PLAIN_SGD = {"PFedMe": ["--model.optimizer=SGD", "--model.optimizer.lr=0.005"]}


@pytest.fixture(scope="module")
def smaller(tmp_path_factory) -> list[str]:
    """Options of a run with one round of few and small images, which pass the encoder once for all methods."""
    taps = tmp_path_factory.mktemp("taps")
    few = ["--data.samples_per_site=[8,6]", "--data.test_samples_per_site=[4,4]", "--data.image_size=32"]
    return [*few, "--data.audit=off", "--data.cache=auto", f"--data.cache_folder={taps}", "--coordinator.rounds=1"]


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_from_the_command_line_and_its_saved_run_is_evaluated_again(name, smaller, tmp_path, capsys) -> None:
    arguments = [*SMALL[1:], *smaller, f"--method={name}", *PLAIN_SGD.get(name, [])]
    arguments += [f"--trainer.max_epochs={METHODS[name]().fewest_local_epochs}"]
    arguments += [f"--model.anchors={anchors}"] if (anchors := METHODS[name].requires_anchors) else []
    assert main(["fit", *arguments, f"--runs_dir={tmp_path}", "--name=a"]) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["protocol"]["method"] == name
    assert summary["protocol"]["method_options"] == METHODS[name]().options
    assert set(summary["personal"]["clients"]) == {"site_a", "site_b"}
    assert main(["test", *arguments, f"--ckpt_path={tmp_path / 'a'}"]) == 0
    tested = json.loads((tmp_path / "a" / "test.json").read_text())
    assert tested["personal"] == summary["personal"]
    assert tested["generic"] == summary["generic"]
    assert name in capsys.readouterr().out


@pytest.fixture(scope="module")
def few_real_images(tmp_path_factory) -> FedISIC2019:
    """Two training and two test images of each site and class, through an encoder with RANDOM weights."""
    if not REAL.is_dir():
        pytest.skip("the real images of four FedISIC centres are not on this machine")
    with (REAL / "train_test_split_tiny").open() as file:
        rows = list(csv.DictReader(file))
    taken: dict[tuple[str, ...], int] = {}
    kept = []
    for row in rows:
        place = (row["center"], row["target"], row["fold"])
        taken[place] = taken.get(place, 0) + 1
        kept += [row] if taken[place] <= 2 else []
    folder = tmp_path_factory.mktemp("real")
    split = folder / "train_test_split"
    with split.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    taps = {"cache": "auto", "cache_folder": folder / "taps"}
    sites = FedISIC2019(root=REAL, split_file=split, centers=[1, 2, 3, 5], batch_size=16, verify_images=False, **taps)
    sites.prepare(encoder().preprocessing)
    return sites


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_the_four_real_sites(name, few_real_images, tmp_path) -> None:
    model = template(METHODS[name](), **({"optimizer": partial(SGD, lr=0.005)} if name == "PFedMe" else {}))
    summary = fit(tmp_path, METHODS[name](), sites=few_real_images, model=model, rounds=1)
    assert set(summary["personal"]["clients"]) == {"vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias"}
    assert all(metrics["balanced_accuracy"] is not None for metrics in summary["personal"]["clients"].values())
    assert "RANDOM WEIGHTS" in summary["protocol"]["encoder"]
