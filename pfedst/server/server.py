"""Server and clients, and the border between them: what a method declares is enforced here.

Whatever crosses the border is checked against the declared partition and copied, so that no tensor of one side is
ever an alias of the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pfedst.client.module import FederatedClient, require_trainable_anchors
from pfedst.client.state import client_part, load_client_part, part_name, saved_table
from pfedst.encoders import Inputs, Need, class_sums, prototypes_from_sums
from pfedst.errors import ConfigurationError, StateError, nearest
from pfedst.messages.payload import (
    NET,
    Payload,
    State,
    Uploads,
    check_finite,
    check_keys,
    check_plain,
    check_tensors,
    copy_payload,
    payload_bytes,
)
from pfedst.methods.interface import FederatedMethod, ServerState
from pfedst.seeds import derive_seed, generator

POOLED = "pooled"
"""The name of the one trainee of a pooled method."""


class Federation:
    """The clients by name (sorted: the order in a configuration changes nothing), and the server's state.

    Attributes:
        clients: one module a site.
        trainees: who is fitted, by name: the clients, or for a pooled method one client that sees all images.
        held_out: sites that are evaluated and never drawn.
        generic: a client that never trains: its personal tensors stay at their start, so with the merged shared
            tensors it is what a newly joined hospital gets.
        server: the method's server state.
        setup_upload_bytes: what all clients together sent before the first round (class prototypes), or 0.

    Args:
        template: the configured client without classes.
        class_names: names of the K classes.
        train_samples: number of training images by site.
        method: the plugin.
        run_seed: the seed of the run.
        held_out: see there.

    Raises:
        ConfigurationError: a site to hold out that there is not, or none left.
    """

    def __init__(
        self,
        template: FederatedClient,
        class_names: Sequence[str],
        train_samples: Mapping[str, int],
        method: FederatedMethod,
        run_seed: int,
        held_out: Sequence[str] = (),
    ) -> None:
        self.method = method
        self.run_seed = run_seed
        self.class_names = tuple(class_names)
        first = template.with_classes(class_names, method, run_seed)
        require_trainable_anchors(first)
        self.encoder = first.encoder
        self.clients = {name: first.copy_as(name) for name in sorted(train_samples)}
        self.generic = first.copy_as("generic")
        self.held_out = _checked_sites(held_out, self.clients)
        if method.pooled and POOLED in self.clients:
            raise ConfigurationError(f'method {type(method).__name__}: no site may be called "{POOLED}"; rename it')
        self.trainees = {POOLED: first.copy_as(POOLED)} if method.pooled else self.clients
        samples = {POOLED: 1} if method.pooled else train_samples
        self.weights = {name: float(samples[name]) if method.weighting == "samples" else 1.0 for name in self.trainees}
        for client in self.trainees.values():
            self._check_unlabelled(client)
        self.server: ServerState = {}
        self.anchors: Tensor | None = None
        self.setup_upload_bytes = 0
        self._allowed = {NET, *method.extra_messages}
        self._current: dict[str, int] = {}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def members(self) -> dict[str, FederatedClient]:
        """Clients and trainees."""
        return {**self.clients, **self.trainees}

    @property
    def needs(self) -> Need:
        """What the clients' adapter needs of the encoder."""
        return self.generic.adapter.needs

    @property
    def drawable(self) -> list[str]:
        """Names of the trainees that may be drawn: all that are not held out."""
        return [name for name in self.trainees if name not in self.held_out]

    def sites_of(self, name: str) -> list[str]:
        """Sites whose training images a trainee sees: its own, or for the pooled one all that are not held out."""
        return [site for site in self.clients if site not in self.held_out] if name not in self.clients else [name]

    @property
    def personalises(self) -> bool:
        """Whether a client predicts otherwise than the merged model alone: with tensors, a `predict` or
        fine-tuning of its own."""
        own = any(self.generic.kind(key) == "personal" for key in self.generic.own_keys())
        return own or self.method.finetune_epochs > 0 or type(self.method).predict is not FederatedMethod.predict

    def start(self) -> None:
        """Give the server its first state, once the class anchors are set."""
        self.method.setup(self.server, {name: self.trainees[name] for name in self.drawable})

    @property
    def trains(self) -> bool:
        """Whether the method trains anything at all."""
        return bool(self.generic.learnable)

    # -- class prototypes --------------------------------------------------------------------------------------

    def gather_prototypes(
        self, batches: Callable[[str], Iterable[tuple[Inputs, Tensor]]], device: torch.device
    ) -> None:
        """Make class anchors from the clients' training images: each sends K sums and K counts, once.

        Args:
            batches: client name -> its training batches of (images or their cached embeddings, targets), not augmented.
            device: where the encoder runs.
        """
        self.encoder.to(device)
        uploads: list[Payload] = []
        for name in self.clients:
            embeddings, targets = [], []
            for inputs, labels in batches(name):
                embeddings.append(self.encoder.taps_of(inputs.to(device), "pooled").tensors[0].cpu())
                targets.append(labels)
            sums, counts = class_sums(torch.cat(embeddings), torch.cat(targets), len(self.class_names))
            uploads.append({"prototypes": {"sums": sums, "counts": counts}})
        self.setup_upload_bytes = sum(payload_bytes(upload) for upload in uploads)
        self.set_anchors(
            prototypes_from_sums(
                [upload["prototypes"]["sums"] for upload in uploads],
                [upload["prototypes"]["counts"] for upload in uploads],
            )
        )

    def set_anchors(self, anchors: Tensor) -> None:
        """Give every client the same frozen class anchors (K, E)."""
        self.anchors = anchors.float().cpu()
        for client in (*self.members.values(), self.generic):
            client.set_anchors(self.anchors)

    # -- the border --------------------------------------------------------------------------------------------

    def deliver(self, name: str) -> int:
        """Send the server's current message to a client, unless it has it already; bytes of that message.

        Raises:
            StateError: the method sends a name that it does not declare, or keys that are not declared shared.
        """
        client = self.members[name]
        if name in self._current:
            return self._current[name]
        payload = self.method.broadcast(self.server, client)
        self._check(payload, client, f"the message to client {name}")
        client.move_to("cpu").received = {
            part: {key: self._sent(tensor) for key, tensor in state.items()} for part, state in payload.items()
        }
        client.derived.clear()
        self.method.receive(client, client.received)
        self._current[name] = payload_bytes(payload)
        return self._current[name]

    def _sent(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the server; the same one for all clients that are sent it between two merges."""
        source, copied = self._copies.get(id(tensor), (None, tensor))
        if source is not tensor:
            copied = tensor.detach().to("cpu", copy=True)
            self._copies[id(tensor)] = tensor, copied
        return copied

    def collect(self, name: str) -> Payload:
        """A client's message after its fit, checked and copied.

        Raises:
            StateError: see `outgoing`.
        """
        return copy_payload(self.outgoing(name))

    def outgoing(self, name: str) -> Payload:
        """A client's message after its fit, checked; it may hold the client's own tensors until the merge.

        Raises:
            StateError: something that is not declared shared is about to leave the client, or numbers are not finite.
        """
        client = self.trainees[name].move_to("cpu")
        payload = self.method.upload(client)
        self._check(payload, client, f"the message from client {name}")
        return payload

    def merge(self, messages: Mapping[str, Payload]) -> None:
        """Join the messages of the clients that reported, in the order of their names."""
        uploads = Uploads(messages)
        self.method.merge(self.server, uploads, {name: self.weights[name] for name in uploads})
        self._current.clear()
        self._copies.clear()
        self.generic.load_shared(self.server[NET])

    def _check(self, payload: Payload, client: FederatedClient, what: str) -> None:
        check_plain(payload, what)
        if undeclared := sorted(set(payload) - self._allowed):
            raise StateError(
                f"{what}: method {type(self.method).__name__} sends {undeclared}, which its extra_messages do not "
                f"declare (declared: {sorted(self._allowed)})"
            )
        for part, state in payload.items():
            if part == NET:
                check_tensors(state, client.shared_tensors(), what)
            else:
                check_finite(state, f"{what}, {part}")

    def _check_unlabelled(self, client: FederatedClient) -> None:
        place = self.method.unlabelled(client)
        if place is not None and place[0] != client.name and place[0] not in self.held_out:
            raise ConfigurationError(
                f'method {type(self.method).__name__} shows images of site "{place[0]}" to client {client.name}: only '
                f"a site that is held out may give its images away; add --coordinator.held_out_sites [{place[0]}]"
            )

    # -- state -------------------------------------------------------------------------------------------------

    def state_parts(self) -> dict[str, dict[str, Any]]:
        """All that a run needs to go on or to be evaluated: nested dicts of tensors, `server` and one a client.

        They are the tensors themselves, not copies.
        """
        anchors = {} if self.anchors is None else {"anchors": {"classes": self.anchors}}
        return {"server": {"method": self.server, "frozen": self._frozen_state(), **anchors}} | {
            part_name(name): client_part(client) for name, client in self.members.items()
        }

    def _frozen_state(self) -> State:
        """Frozen tensors of the adapter, the same on all clients (never the encoder's)."""
        state = self.generic.adapter.state_dict()
        return {key: state[key] for key in self.generic.partition.keys("frozen")}

    def _saved_anchors(self) -> State:
        """Of the shape of class anchors that are saved: text is embedded anew, and learned ones are the head's."""
        if self.generic.anchors != "prototypes":
            return {}
        return {"classes": torch.empty(len(self.class_names), self.encoder.spec.embedding)}

    def load_state_parts(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `state_parts` gave, and send every client the server's state.

        Raises:
            StateError: other clients, other keys or other shapes than this federation's.
        """
        check_keys(parts, {"server", *map(part_name, self.members)}, "the saved state")
        server = {"method": {}, "frozen": {}} | dict(parts["server"])
        check_plain({NET: {}} | saved_table(server, "method"), "the saved server's state")
        self.server = {NET: {}} | server["method"]
        anchors = saved_table(server, "anchors")
        check_plain({"anchors": anchors}, "the saved state")
        check_tensors(anchors, self._saved_anchors(), "the saved class anchors")
        if anchors:
            self.set_anchors(anchors["classes"])
        frozen = saved_table(server, "frozen")
        check_plain({"frozen": frozen}, "the saved state")
        check_tensors(frozen, self._frozen_state(), "the saved frozen tensors of the adapter")
        for client in (*self.members.values(), self.generic):
            client.adapter.load_state_dict(frozen, strict=False)
        self._current.clear()
        self._copies.clear()
        self.generic.load_shared(self.server[NET])
        for name in self.members:
            self.put_back(name, parts[part_name(name)])

    def put_back(self, name: str, part: Mapping[str, Any]) -> None:
        """Give a client its personal state as it was, and the server's message as it is now."""
        load_client_part(self.members[name], part)
        self._current.pop(name, None)
        self.deliver(name)

    # -- participation -----------------------------------------------------------------------------------------

    def draw(self, round_number: int, participation: float) -> list[str]:
        """Who is fitted in a round: a share of all not held out, at least one, drawn by (run seed, round) alone."""
        names = self.drawable
        count = max(1, round(participation * len(names)))
        order = torch.randperm(
            len(names), generator=generator(derive_seed(self.run_seed, "participation", round_number))
        )
        return sorted(names[index] for index in order[:count].tolist())


def _checked_sites(held_out: Sequence[str], clients: Mapping[str, FederatedClient]) -> tuple[str, ...]:
    for site in held_out:
        if site not in clients:
            raise ConfigurationError(
                f'--coordinator.held_out_sites: there is no site "{site}".{nearest(site, clients)} '
                f"There are: {', '.join(clients)}"
            )
    if len(set(held_out)) == len(clients):
        raise ConfigurationError("--coordinator.held_out_sites: all sites are held out; leave one to train on")
    return tuple(held_out)
