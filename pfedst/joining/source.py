"""What a hospital joins: the merged model of a run, from its folder or from an exported model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pfedst.client.client import Client
from pfedst.client.exchange import start_maker
from pfedst.errors import ConfigurationError
from pfedst.inference.artefact_files import MODEL_FILE, is_model, read_config, read_tensors
from pfedst.inference.rebuild import ANCHORS, GENERIC
from pfedst.messages.payload import hash_of
from pfedst.methods.priors import uniform
from pfedst.server.merged import Merged
from pfedst.server.priors import FederationPriors
from pfedst.server.server import Server
from pfedst.server.warm_start import WarmStart, chosen_round_of
from pfedst.state.snapshot import saved_table

COMMAND = "pfedst join"


@dataclass(frozen=True)
class Source:
    """What a hospital joins: the merged model of a run, and what the server knew. Nothing personal is part of it.

    Attributes:
        start: shared and frozen tensors, class anchors, and the identity of the run.
        server: what the run saved of its server, as `Server.state_parts` returns it; empty if it is not known.
        priors: the class priors of the run.
        trained_sites: sites with a personal part in the run, which need not join.
        pixel_range: grey values that become black and white; None if nothing is known of them.
    """

    start: WarmStart
    server: Mapping[str, Any] = field(repr=False)
    priors: FederationPriors
    trained_sites: Collection[str] = ()
    pixel_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, text: str) -> Source:
        """Read an exported model, or a run: `RUN`, `RUN@best`, or `RUN@N`; see the two ways."""
        return cls.of_model(Path(text)) if is_model(Path(text)) else cls.of_run(text)

    @classmethod
    def of_run(cls, text: str) -> Source:
        """Read the folder of a run: `RUN`, `RUN@best`, or `RUN@N`.

        Raises:
            ConfigurationError: there is no such run, or that round is not kept.
            StateError: the saved round is damaged.
        """
        start = WarmStart.of_run(text, COMMAND)
        _, _, saved = chosen_round_of(text, COMMAND)
        priors = FederationPriors.from_about(saved.about, len(start.classes))
        merged = Merged.from_about(saved.about)
        if not merged.any:  # the start of the run, which has learned no class frequencies
            priors = FederationPriors(uniform(len(start.classes)), priors.federation)
        return cls(start, saved.parts["server"], priors, [name for name, number in merged.after.items() if number])

    @classmethod
    def of_model(cls, folder: Path) -> Source:
        """Read the generic model in a folder of `pfedst export`.

        Raises:
            ConfigurationError: it is the personal model of a site.
            StateError: a file is missing, damaged, or of a newer version.
        """
        config = read_config(folder)
        if config["which"] != GENERIC:
            raise ConfigurationError(
                f"{COMMAND} {folder}: this is the model of site {config['site']}; export the generic model of the run "
                f"(pfedst export RUN FOLDER --generic)"
            )
        tensors = read_tensors(folder / MODEL_FILE, config)
        about = {"name": folder.resolve().name, "round": config["source"].get("round"), "sha256": hash_of(tensors)}
        anchors = tensors.pop(ANCHORS, None)
        if config["options"]["model"].get("anchors") != "prototypes":
            anchors = None  # made from the texts again
        identity = {"classes": config["classes"], "encoder_weights": config["encoder"]["sha256"]}
        effective, pixels = config["effective_prior"], config["pixel_range"]
        return cls(
            WarmStart(about, identity, tensors, anchors, COMMAND),
            {},
            FederationPriors(None if effective is None else torch.tensor(effective, dtype=torch.float64)),
            pixel_range=None if pixels is None else (pixels[0], pixels[1]),
        )

    def server_for(self, client: Client, names: Sequence[str]) -> Server:
        """Return a server that holds the model of the source, bit for bit; its frozen tensors go to the client.

        Args:
            client: built for the classes of the source.
            names: of the sites that the server knows.

        Raises:
            StateError: the client has another encoder, another adapter or other class anchors.
        """
        model = client.model
        self.start.check_encoder(client.module.encoder.compute_hash())
        init, frozen = self.start.for_run(model.start(), model.adapter.state_dict())
        client.load_frozen(frozen)
        server = Server(client.method, dict.fromkeys(names, 1), start_maker(model), client.run_seed)
        assert init.shared is not None
        server.warm_start(init.shared, init.anchors)
        server.begin()
        if saved_table(self.server, "method").keys() == server.state.keys():
            # a method of another kind, and what a server keeps of single clients, begin anew
            server.load_state_parts({"server": self.server})
        server.priors = self.priors
        return server
