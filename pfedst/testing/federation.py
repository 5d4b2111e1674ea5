"""Server and clients in memory, each client with a model of its own: for tests that look at single steps of a round."""

from __future__ import annotations

import copy

from torch import Tensor

from pfedst.client.client import Client
from pfedst.client.exchange import make_upload, receive_message, start_maker
from pfedst.client.model import ClientModel
from pfedst.client.module import FederatedClient
from pfedst.messages.payload import NET, Payload
from pfedst.messages.requests import PROTOTYPES, Request
from pfedst.methods.interface import FederatedMethod, ServerState
from pfedst.server.server import Server


class Federation:
    """A server and the models of its clients, with the steps of a round as calls.

    Attributes:
        client: answers requests; its own model is at the start of the run.
        server: the server.
        modules: by name, the LightningModule around each model.
        generic: the model whose personal tensors stay at their start.

    Args:
        client: built for the data and the method.
        run_seed: the seed of the run.
    """

    def __init__(self, client: Client, run_seed: int) -> None:
        self.client = client
        samples = {site: client.data.samples(site, "train") for site in client.data.sites}
        self.server = Server(client.method, samples, start_maker(client.model), run_seed, client.held_out)
        self.modules: dict[str, FederatedClient] = {}
        for name in self.server.members:
            model = copy.deepcopy(client.model)
            model.name = name
            model.class_counts = client.class_counts(name)
            self.modules[name] = client.module.around(model, client.method)
        self.generic: ClientModel = copy.deepcopy(client.model)

    @property
    def method(self) -> FederatedMethod:
        """The plugin."""
        return self.client.method

    @property
    def members(self) -> dict[str, ClientModel]:
        """All models by name: those of the sites, and that of a pooled method."""
        return {name: module.model for name, module in self.modules.items()}

    @property
    def clients(self) -> dict[str, ClientModel]:
        """The models of all sites, by name."""
        return {name: self.modules[name].model for name in self.server.sites}

    @property
    def trainees(self) -> dict[str, ClientModel]:
        """The models that are trained, by name."""
        return {name: self.modules[name].model for name in self.server.names}

    @property
    def state(self) -> ServerState:
        """The server's state."""
        return self.server.state

    @property
    def trains(self) -> bool:
        """True if the method trains anything."""
        return self.server.trains

    def begin(self) -> None:
        """Gather prototypes where anchors are prototypes, and make the server's first state."""
        if self.server.needs_prototypes:
            request = Request("prototypes", "test")
            parts = [self.client.answer(name, request).parts[PROTOTYPES] for name in self.server.training_sites]
            self.server.merge_prototypes([part["sums"] for part in parts], [part["counts"] for part in parts])
            assert self.server.anchors is not None
            self._show(self.server.anchors)
        self.server.begin()

    def set_anchors(self, anchors: Tensor) -> None:
        """Give the server and every model the same class anchors (K, E)."""
        self.server.set_anchors(anchors)
        self._show(anchors)

    def _show(self, anchors: Tensor) -> None:
        for model in (*self.members.values(), self.generic):
            model.set_anchors(anchors)

    def sites_of(self, name: str) -> list[str]:
        """Return the sites whose training images a client sees."""
        return self.client.sites_of(name)

    def deliver(self, name: str) -> None:
        """Send the server's current message to a client."""
        receive_message(self.members[name].move_to("cpu"), self.method, self.server.message_to(name))

    def collect(self, name: str) -> Payload:
        """Return a client's message after its fit, checked at both ends."""
        message = make_upload(self.members[name], self.method)
        self.server.check_upload(name, message)
        return message

    def merge(self, messages: dict[str, Payload]) -> None:
        """Merge messages; the generic model gets the merged shared tensors."""
        self.server.merge(messages)
        self.generic.load_shared(self.server.state[NET])
