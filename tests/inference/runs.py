"""Small finished runs, made by the real command line: a nano encoder with RANDOM weights, SYNTHETIC sites."""

from pathlib import Path

from pfedst.cli import main

SITES, CLASSES = ("site_a", "site_b", "site_c"), 3
OPTIONS = [
    "--model.encoder.model=vit-nano",
    "--model.encoder.weights=random",
    "--model.encoder.image_size=32",
    "--model.anchors=prototypes",
    "--data=SyntheticSites",
    f"--data.classes={CLASSES}",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.audit=off",
    "--data.cache=auto",
    "--trainer.accelerator=cpu",
    "--coordinator.rounds=2",
    "--coordinator.threads=1",
]


def fitted(folder: Path, method: str = "PFedST", sites: int = 3, *more: str) -> Path:
    """Run `pfedst fit`; return the folder of the run."""
    sizes = [f"--data.sites={sites}", f"--data.samples_per_site={[24, 18, 15, 12][:sites]}"]
    sizes.append(f"--data.test_samples_per_site={[12] * sites}")
    arguments = ["fit", f"--method={method}", *OPTIONS, *sizes, f"--runs_dir={folder}", f"--name={method}", *more]
    assert main(arguments) == 0
    return folder / method
