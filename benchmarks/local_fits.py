"""Local fits of every site through the client's own code: no coordinator, no merge and no evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pfedst.client.module import FederatedClient
from pfedst.client.training import LEAN_TRAINER, LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.messages.requests import Request
from pfedst.methods.interface import FederatedMethod
from pfedst.server.server import Server
from pfedst.simulation import make_client, start_maker


def lean_trainer(accelerator: str = "cpu") -> Trainer:
    """Return a Trainer that does what a local fit needs and no more."""
    return Trainer(**LEAN_TRAINER | {"accelerator": accelerator})


class LocalFits:
    """A client of all sites, and a server that has begun.

    Attributes:
        client: answers for all sites.
        samples: training images by site.
    """

    def __init__(
        self,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        folder: Path,
        accelerator: str = "cpu",
    ) -> None:
        self.client = make_client(template, data, method, 0, LocalTrainer(lean_trainer(accelerator)), folder)
        self.samples = {name: data.samples(name, "train") for name in data.sites}
        self.server = Server(method, self.samples, start_maker(self.client.model), 0)
        self.server.begin()

    def requests(self, number: int) -> dict[str, Request]:
        """Return the requests of a round, by site."""
        return {name: Request("fit", "benchmark", number, parts=self.server.parts_for(name)) for name in self.samples}

    def fit(self, requests: Mapping[str, Request]) -> list[dict[str, Any]]:
        """Run the fits; return their records."""
        return [self.client.answer(name, request).values["record"] for name, request in requests.items()]
