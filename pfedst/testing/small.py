"""A federation small enough for a test: a nano encoder with RANDOM weights, three SYNTHETIC sites."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pfedst import simulation
from pfedst.client.module import FederatedClient
from pfedst.client.training import LEAN_TRAINER, LocalTrainer
from pfedst.data import FederatedDataModule, SyntheticSites
from pfedst.data.sites import Sites
from pfedst.encoders import FrozenCLIP
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.simulation import make_client
from pfedst.testing.federation import Federation

LEAN = LEAN_TRAINER | {"accelerator": "cpu"}


@functools.cache
def encoder() -> FrozenCLIP:
    """One for all tests: it is frozen, and a test proves it."""
    return FrozenCLIP("vit-nano", weights="random")


@functools.cache
def _tap_cache() -> tempfile.TemporaryDirectory[str]:
    """The tap cache of this process: hundreds of runs on the same images need the encoder once, for the same bits."""
    return tempfile.TemporaryDirectory(prefix="pfedst-test-taps-")


def template(method: FederatedMethod | None = None, **options: Any) -> FederatedClient:
    """A client without classes, on the nano encoder, with the method's own adapter and anchors, else prototypes.

    Its loss is plain cross-entropy, which an oracle by hand can follow.
    """
    anchors = "prototypes" if method is None or method.requires_anchors is None else method.requires_anchors
    return FederatedClient(encoder(), **({"anchors": anchors, "loss": None} | options))


_drawn: dict[str, Sites] = {}
"""Images that were drawn in this process, by all that they depend on: hundreds of tests look at the same ones."""


class _DrawnOnce(SyntheticSites):
    """Synthetic sites whose images are drawn once in a process."""

    def read(self) -> Sites:
        """Return the images of these options."""
        of_images = (self.names, self.classes, self.image_size, self.sizes, self.heterogeneity, self.label_skew)
        key = repr((*of_images, self.noise, self.seed))
        if key not in _drawn:
            _drawn[key] = super().read()
        return _drawn[key]


def data(**options: Any) -> FederatedDataModule:
    """Three synthetic sites of 24, 18 and 15 training images in three classes."""
    chosen: dict[str, Any] = {
        "sites": 3,
        "classes": 3,
        "samples_per_site": [24, 18, 15],
        "test_samples_per_site": [12, 12, 12],
        "audit": "off",  # hundreds of small runs are made of these, and nothing of them depends on it
        "cache": "auto",
        "cache_folder": _tap_cache().name,
    } | options
    return _DrawnOnce(batch_size=8, **({"image_size": 32} | chosen))


def prepared(**options: Any) -> FederatedDataModule:
    """The same, ready for loaders."""
    sites = data(**options)
    sites.prepare(encoder().preprocessing)
    return sites


def federation(
    method: FederatedMethod, seed: int = 0, sites: FederatedDataModule | None = None, **options: Any
) -> Federation:
    """Server and clients with their prototypes, ready for the first round."""
    sites = sites or data()
    client = make_client(
        template(method, **options), sites, method, seed, local(method.fewest_local_epochs), sites=None
    )
    made = Federation(client, seed)
    made.begin()
    return made


def trainer(**options: Any) -> Trainer:
    """A lean Trainer on the CPU."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(**(LEAN | options))


@functools.cache
def local(epochs: int) -> LocalTrainer:
    """One for all fits of so many epochs, as in a run."""
    return LocalTrainer(trainer(max_epochs=epochs))


def train(made: Federation, name: str, sites: FederatedDataModule | None = None, epochs: int | None = None) -> None:
    """One local fit of a trainee, of the fewest epochs that its method runs with unless more are given.

    Does nothing for a method that trains nothing.
    """
    if made.trains:
        sites = sites or made.client.data
        trainer_of_fits = local(made.method.fewest_local_epochs)
        trainer_of_fits.fit(made.modules[name], sites.train_loader(made.sites_of(name), 1), epochs)


def fit(
    folder: Path,
    method: FederatedMethod,
    seed: int = 0,
    sites: FederatedDataModule | None = None,
    model: FederatedClient | None = None,
    trainer_options: dict[str, Any] | None = None,
    **coordinator: Any,
) -> dict[str, Any]:
    """A whole run of two rounds into `folder/run`; its summary."""
    run = RunFolder.create(folder, "run", "run")
    options = {"max_epochs": method.fewest_local_epochs} | (trainer_options or {})
    rounds = FederatedCoordinator(**({"rounds": 2} | coordinator))
    return simulation.fit(rounds, model or template(method), sites or data(), method, trainer(**options), run, seed)
