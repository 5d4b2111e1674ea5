"""Small runs through the command line, with a W&B that knows nothing of this machine."""

import os
from pathlib import Path

import pytest
import wandb

from pfedst.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "--model.encoder.model=vit-nano",
    "--model.encoder.image_size=32",
    "--data.samples_per_site=[16,16,16,16]",
    "--data.test_samples_per_site=[8,8,8,8]",
    "--data.validation_fraction=0.25",
    "--coordinator.rounds=2",
    "--coordinator.evaluate_every=2",
]


def clean(patch: pytest.MonkeyPatch, folder: Path, **variables: str) -> None:
    """Work in a folder, with these variables of W&B and no others, and nothing of the user's home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    kept = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_CONFIG_DIR": "settings", "NETRC": "netrc"}
    for name, value in ({n: str(folder / "home" / v) for n, v in kept.items()} | variables).items():
        patch.setenv(name, value)
    patch.chdir(folder)


def run(folder: Path, arguments: list[str], **variables: str) -> int:
    """One command; W&B reads its variables once a process, unless it is put down."""
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, folder, **variables)
        patch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])  # tests/cli/test_report.py draws
        wandb.teardown()
        try:
            return main(arguments)
        finally:
            wandb.teardown()


def fit(folder: Path, *options: str, **variables: str) -> int:
    """A tiny run of the demo, `runs/a` in that folder."""
    common = ["fit", "--config", str(CONFIGS / "demo.yaml"), *TINY, f"--data.cache_folder={folder / 'taps'}"]
    return run(folder, [*common, f"--runs_dir={folder / 'runs'}", "--name=a", *options], **variables)
