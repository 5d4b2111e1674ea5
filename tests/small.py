"""A federation small enough for a test: a nano encoder with random weights, three synthetic sites."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from pfedst.adapters import SideNetwork
from pfedst.cli.federated import LEAN_TRAINER
from pfedst.client import FederatedClient
from pfedst.coordinator import FederatedCoordinator, build_federation
from pfedst.data import FederatedDataModule, SyntheticSites
from pfedst.encoders import FrozenCLIP
from pfedst.federation import Federation
from pfedst.method import FederatedMethod
from pfedst.reporting import RunFolder

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

LEAN = LEAN_TRAINER | {"accelerator": "cpu"}
_encoders: dict[str, FrozenCLIP] = {}


def encoder() -> FrozenCLIP:
    """One for all tests: it is frozen, and a test proves it."""
    if not _encoders:
        _encoders["nano"] = FrozenCLIP("vit-nano", weights="random")
    return _encoders["nano"]


def template(**options: Any) -> FederatedClient:
    options = {"anchors": "prototypes", "adapter": partial(SideNetwork, width=16, head_width=8)} | options
    return FederatedClient(encoder(), **options)


def data(**options: Any) -> FederatedDataModule:
    options = {
        "sites": 3,
        "classes": 3,
        "samples_per_site": [24, 18, 15],
        "test_samples_per_site": [12, 12, 12],
    } | options
    return SyntheticSites(batch_size=8, image_size=32, **options)


def federation(method: FederatedMethod, seed: int = 0, **options: Any) -> Federation:
    """Server and clients with their prototypes, ready for the first round."""
    sites = data()
    made = build_federation(template(**options), sites, method, seed)
    if made.generic.anchors == "prototypes":
        made.gather_prototypes(lambda name: sites.evaluation_loader(name, "train"), torch.device("cpu"))
    return made


def trainer(**options: Any) -> Trainer:
    return Trainer(**(LEAN | options))


def fit(
    folder: Path,
    method: FederatedMethod,
    seed: int = 0,
    sites: FederatedDataModule | None = None,
    model: FederatedClient | None = None,
    trainer_options: dict[str, Any] | None = None,
    **coordinator: Any,
) -> dict[str, Any]:
    """A whole run into `folder/run`; its summary."""
    run = RunFolder.create(folder, "run", "run")
    return FederatedCoordinator(**({"rounds": 2} | coordinator)).fit(
        model or template(), sites or data(), method, trainer(**(trainer_options or {})), run, seed
    )
