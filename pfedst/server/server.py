"""The server's half of a run: the state of the method, participation, merges, and the checks at the border.

The server holds no image and no personal tensor. It knows clients by name and by what they reply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pfedst.encoders import prototypes_from_sums
from pfedst.errors import ConfigurationError, PfedstError, StateError, listed, nearest
from pfedst.messages.payload import (
    NET,
    Payload,
    State,
    check_keys,
    check_message,
    check_plain,
    check_tensors,
    payload_bytes,
)
from pfedst.messages.requests import ANCHORS, GENERIC, POOLED, PRIORS, PROTOTYPES, RESERVED_PARTS
from pfedst.methods.interface import FederatedMethod, ServerState, Start
from pfedst.seeds import derive_seed, generator
from pfedst.server.priors import ClassCounts, FederationPriors
from pfedst.state.snapshot import saved_table

MakeStart = Callable[[Tensor | None], Start]
"""Class anchors (K, E), or None before they are known -> the model that all clients start from."""


COUNT_ALIKE = ("median", "trimmed_mean")
"""Merge rules in which all clients have the same weight."""


class Server:
    """State and rules of the server.

    Attributes:
        sites: names of all sites, sorted: the order in a configuration changes nothing.
        names: names of the clients that train: the sites, or for a pooled method one client.
        held_out: sites that are evaluated and never drawn.
        state: the method's server state.
        start: the model that all clients start from.
        anchors: class prototypes (K, E), once they are merged; None where anchors come from elsewhere.
        setup_upload_bytes: bytes that all clients together sent before the first round (class prototypes).
        priors: what the server knows of class frequencies.

    Args:
        method: the plugin.
        train_samples: number of training images by site.
        make_start: makes the start.
        run_seed: the seed of the run.
        held_out: sites to hold out.
        class_counts: by site, where sites share them.
        balanced: the sites whose sampler shows all classes equally often.
        most_samples: the largest number of images that a site counts as, in merges and class prototypes; the number of
            images is the site's own claim. None for no limit.

    Raises:
        ConfigurationError: an unknown site to hold out, no site left to train on, or a limit without effect.
    """

    def __init__(
        self,
        method: FederatedMethod,
        train_samples: Mapping[str, int],
        make_start: MakeStart,
        run_seed: int,
        held_out: Sequence[str] = (),
        class_counts: Mapping[str, ClassCounts] | None = None,
        balanced: Collection[str] = (),
        most_samples: int | None = None,
    ) -> None:
        if reserved := sorted(set(method.extra_messages) & set(RESERVED_PARTS)):
            raise ConfigurationError(f"method {type(method).__name__}: extra_messages may not be called {reserved}")
        self.method = method
        self.run_seed = run_seed
        self.sites = sorted(train_samples)
        self.held_out = _checked_sites(held_out, self.sites)
        self.names = [POOLED] if method.pooled else self.sites
        limit = float("inf") if most_samples is None else most_samples
        self._shares = {site: min(1.0, limit / max(1, samples)) for site, samples in train_samples.items()}
        samples = {POOLED: 1} if method.pooled else train_samples
        counts = method.weighting == "samples"
        self.weights = {name: float(min(samples[name], limit)) if counts else 1.0 for name in self.names}
        self.state: ServerState = {}
        self.anchors: Tensor | None = None
        self.setup_upload_bytes = 0
        self._train_samples = dict(train_samples)
        self._make_start = make_start
        self.start = make_start(None)
        if most_samples is not None:
            self._check_limit(most_samples)
        loss, classes = self.start.loss, self.start.anchors_shape[0]
        self.priors = FederationPriors.of(
            loss, method.uses_criterion, classes, self._site_weights(), class_counts or {}, balanced
        )
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def _check_limit(self, most_samples: int) -> None:
        """Check that a limit on the images that a site counts as has an effect.

        Raises:
            ConfigurationError: no merge weighs numbers of images, and there are no class prototypes.
        """
        method = self.method
        merges = self.trains and method.has_generic and not method.pooled
        weighs = merges and method.weighting == "samples" and method.merge_rule not in COUNT_ALIKE
        if not weighs and not self.needs_prototypes:
            raise ConfigurationError(
                f"--coordinator.most_samples {most_samples} has no effect: with --method.weighting {method.weighting} "
                f"and --method.merge_rule {method.merge_rule} method {type(method).__name__} weighs no numbers of "
                f"images, and the class anchors are not prototypes; leave it out"
            )

    def _site_weights(self) -> dict[str, float]:
        """Return how the sites that train count in a merge."""
        if self.method.merge_rule in COUNT_ALIKE:
            return dict.fromkeys(self.training_sites, 1.0)
        weights = self._train_samples if self.method.pooled else self.weights
        return {site: float(weights[site]) for site in self.training_sites}

    @property
    def knows_merged_prior(self) -> bool:
        """True if the class frequencies that a merged model has learned are known, at a site or here."""
        return self.priors.merged is not None or not self.trains or self.method.pooled

    @property
    def members(self) -> list[str]:
        """The names of all that records are kept of: sites, and the client of a pooled method."""
        return [*self.sites, *(name for name in self.names if name not in self.sites)]

    @property
    def drawable(self) -> list[str]:
        """The names of the clients that may be drawn: all that are not held out."""
        return [name for name in self.names if name not in self.held_out]

    @property
    def training_sites(self) -> list[str]:
        """The sites that are not held out: their images make the class prototypes, and means are over them."""
        return [site for site in self.sites if site not in self.held_out]

    @property
    def trains(self) -> bool:
        """True if the method trains anything."""
        return self.start.trains

    @property
    def needs_prototypes(self) -> bool:
        """True if the class anchors are class means that clients send."""
        return self.start.anchors == "prototypes"

    @property
    def gathers_prototypes(self) -> bool:
        """True if the clients still have to send class means."""
        return self.needs_prototypes and self.anchors is None

    def merge_prototypes(self, sums: Sequence[Tensor], counts: Sequence[Tensor]) -> None:
        """Make the class anchors.

        Args:
            sums: of each site, in the order of `training_sites`: sums (K, E) of unit embeddings by class.
            counts: of each site: number of images by class (K,).
        """
        shares = [self._shares[site] for site in self.training_sites]
        parts = [{PROTOTYPES: {"sums": s, "counts": c}} for s, c in zip(sums, counts, strict=True)]
        self.setup_upload_bytes = sum(payload_bytes(part) for part in parts)
        # of a site above the limit on images, the sums of as many as it counts as: the direction of a mean is its sum's
        sums = [total if share == 1 else share * total for total, share in zip(sums, shares, strict=True)]
        self.set_anchors(prototypes_from_sums(sums, counts))

    def set_anchors(self, anchors: Tensor) -> None:
        """Take class anchors (K, E)."""
        self.anchors = anchors.float().cpu()
        self.start = self._make_start(self.anchors)

    def warm_start(self, shared: State, anchors: Tensor | None) -> None:
        """Begin with given tensors in place of random ones; call it before `begin`.

        Args:
            shared: all shared tensors, by their key in the adapter.
            anchors: class prototypes (K, E), which are not gathered then; None for other anchors.
        """
        if anchors is not None:
            self.set_anchors(anchors)
        self.start = replace(self.start, state=dict(shared))

    def begin(self) -> None:
        """Make the method's first state, once the class anchors are known."""
        self.state = {}
        self.method.setup(self.state, self.start, self.drawable)

    # -- the border --------------------------------------------------------------------------------------------

    def message_to(self, name: str) -> Payload:
        """Return the current message to a client, checked and copied.

        Raises:
            StateError: the method sends a name that it does not declare, or keys that are not declared shared.
        """
        payload = self.method.broadcast(self.state, name)
        self._check(payload, f"the message to client {name}")
        return {part: {key: self._copy(tensor) for key, tensor in state.items()} for part, state in payload.items()}

    def parts_for(self, name: str) -> Payload:
        """Return everything that a request to a client carries: the message, and the class anchors."""
        anchors: Payload = {} if self.anchors is None else {ANCHORS: {"classes": self._copy(self.anchors)}}
        return self.message_to(name) | anchors

    def parts_to_evaluate(self, name: str, is_trained: bool) -> Payload:
        """Return everything that a request to evaluate carries: the generic model too, where the message is another.

        Args:
            name: the client.
            is_trained: False before the first merge.
        """
        classes = self.start.anchors_shape[0]
        priors = self.priors.parts(classes, is_trained and self.trains)
        parts = self.parts_for(name) | ({PRIORS: priors} if priors else {})
        generic = {key: self._copy(tensor) for key, tensor in self.state[NET].items()}
        same = all(parts[NET][key] is tensor for key, tensor in generic.items())
        return parts if same else parts | {GENERIC: generic}

    def check_upload(self, name: str, payload: Payload) -> None:
        """Check the message from a client.

        Raises:
            StateError: it is not what the method declares, or a number is not finite.
        """
        self._check(payload, f"the message from client {name}")

    def check_prototypes(self, name: str, parts: Payload) -> State:
        """Check the sums of class prototypes from a site; return them.

        Raises:
            StateError: other shapes, numbers that are not finite, or sums that these images cannot have.
        """
        what = f"the class prototypes from site {name}"
        check_plain(parts, what)
        check_keys(parts, {PROTOTYPES}, what)
        found, images = parts[PROTOTYPES], self._train_samples[name]
        sums = torch.empty(self.start.anchors_shape, dtype=torch.float64)
        check_tensors(found, {"sums": sums, "counts": torch.empty(len(sums), dtype=torch.long)}, what)
        counts = found["counts"].double()
        # a sum of n unit vectors is no longer than n
        if counts.min() < 0 or counts.sum() != images or (found["sums"].norm(dim=1) > 1.001 * counts).any():
            raise StateError(f"{what} are not the sums of {images} unit embeddings")
        return found

    def merge(self, messages: Mapping[str, Payload]) -> None:
        """Merge the messages of the clients that reported, in the order of their names.

        Raises:
            StateError: the method cannot merge them: nobody but the method knows what its extra messages must hold.
        """
        uploads = {name: messages[name] for name in sorted(messages)}
        try:
            self.method.merge(self.state, uploads, {name: self.weights[name] for name in uploads})
        except PfedstError:
            raise
        except Exception as error:
            raise StateError(
                f"method {type(self.method).__name__} cannot merge the messages of {listed(list(uploads))} "
                f"({type(error).__name__}: {error})"
            ) from error
        self._copies.clear()

    def _copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor of the server; all clients get the same copy between two merges."""
        source, copied = self._copies.get(id(tensor), (None, tensor))
        if source is not tensor:
            copied = tensor.detach().to("cpu", copy=True)
            self._copies[id(tensor)] = tensor, copied
        return copied

    def _check(self, payload: Payload, what: str) -> None:
        check_message(payload, self.start.state, self.method.extra_messages, type(self.method).__name__, what)

    # -- state -------------------------------------------------------------------------------------------------

    def state_parts(self) -> dict[str, dict[str, Any]]:
        """Return what is saved of the server: nested dicts of its tensors, not copies."""
        anchors = {} if self.anchors is None else {"anchors": {"classes": self.anchors}}
        return {"server": {"method": self.state, "frozen": self.start.frozen, **anchors}}

    def load_state_parts(self, parts: Mapping[str, Mapping[str, Any]]) -> State:
        """Load what `state_parts` returned; return the frozen tensors of the adapter that the run was made with.

        Raises:
            StateError: other keys or shapes than this server's.
        """
        check_keys(parts, {"server"}, "the saved state")
        saved = {"method": {}, "frozen": {}} | dict(parts["server"])
        method, anchors, frozen = (saved_table(saved, key) for key in ("method", "anchors", "frozen"))
        check_plain({NET: {}} | method, "the saved server's state")
        check_plain({"anchors": anchors}, "the saved state")
        wanted = {"classes": torch.empty(self.start.anchors_shape)} if self.needs_prototypes else {}
        check_tensors(anchors, wanted, "the saved class anchors")
        check_plain({"frozen": frozen}, "the saved state")
        check_tensors(frozen, self.start.frozen, "the saved frozen tensors of the adapter")
        if anchors:
            self.set_anchors(anchors["classes"])
        self.start = replace(self.start, frozen=frozen)
        self.state = {NET: {}} | method
        check_tensors(self.state[NET], self.start.state, "the saved shared tensors")
        self._copies.clear()
        return frozen

    # -- participation -----------------------------------------------------------------------------------------

    def draw(self, round_number: int, participation: float) -> list[str]:
        """Draw the clients of a round: a share of all not held out, at least one, by (run seed, round) alone."""
        names = self.drawable
        count = max(1, round(participation * len(names)))
        order = torch.randperm(
            len(names), generator=generator(derive_seed(self.run_seed, "participation", round_number))
        )
        return sorted(names[index] for index in order[:count].tolist())


def _checked_sites(held_out: Sequence[str], sites: Sequence[str]) -> tuple[str, ...]:
    for site in held_out:
        if site not in sites:
            raise ConfigurationError(
                f'--coordinator.held_out_sites: there is no site "{site}".{nearest(site, sites)} '
                f"There are: {', '.join(sites)}"
            )
    if len(set(held_out)) == len(sites):
        raise ConfigurationError("--coordinator.held_out_sites: all sites are held out; leave one to train on")
    return tuple(held_out)
