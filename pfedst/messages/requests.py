"""Requests and replies: everything that the server asks of a client, and everything that comes back.

Both are plain JSON values and named tensors, whatever carries them: a call in this process, a pipe to a worker process,
or a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pfedst.messages.payload import NET, Payload, State, raw_bytes

Kind = Literal["hello", "prototypes", "fit", "evaluate", "class_metrics", "calibrate", "cost"]
"""`hello`: which data and options a client has; `prototypes`: sums and counts of embeddings by class; `fit`: train;
`evaluate`: metrics of the personal and the generic model; `class_metrics`: of the predictions on test that the client
has kept; `calibrate`: fit a temperature and a threshold on its kept predictions on validation; `cost`: FLOPs of
training on one image."""
SplitName = Literal["train", "validation", "test"]
ANCHORS = "anchors"
"""The part of a request that holds the class anchors (K, E) under `classes`."""
GENERIC = "generic"
"""The part of a request to evaluate that holds the shared tensors of the generic model, where those of the message are
a client's own."""
PRIORS, MERGED, FEDERATION = "priors", "merged", "federation"
"""The part of a request to evaluate that holds class priors (K,): `merged`, what a merged model has learned, and
`federation`, the mean over sites; each where it is known."""
PROTOTYPES = "prototypes"
"""The part of a reply that holds `sums` (K, E) and `counts` (K,)."""
POOLED = "pooled"
"""The name of the one client of a pooled method, which trains on the images of all sites."""
RESERVED_PARTS = (ANCHORS, GENERIC, PRIORS, PROTOTYPES)


@dataclass(frozen=True)
class Request:
    """One request of the server to one client.

    Attributes:
        kind: what the client does.
        run: name of the run.
        round: the current round, from 1; 0 before the first.
        after: number of the last fit of this client that the server merged; the client continues from the state after
            that fit. 0 means the state that every client starts from. A lost reply, a refused message, a skipped round
            and a resumed run need no more than this number.
        pinned: numbers of the fits whose state the client keeps besides the last two. Always the whole current set.
        keep_optimizer: keep the state of the optimiser for the next fit.
        evaluate: splits on which models are evaluated: after a fit the trained model, for `evaluate` both models.
        finetune_epochs: number of epochs of the fine-tuning after the last round; 0 for the fit of a round. For
            `calibrate`: of the fine-tuning that the evaluated models have had.
        lr_factor: factor on all learning rates of the fit, > 0.
        generic_only: evaluate the generic model in place of a personal one: the site was not in the run.
        parts: the message of the method, the class anchors, what the generic model is made of, and class priors.
    """

    kind: Kind
    run: str
    round: int = 0
    after: int = 0
    pinned: tuple[int, ...] = ()
    keep_optimizer: bool = False
    evaluate: tuple[SplitName, ...] = ()
    finetune_epochs: int = 0
    lr_factor: float = 1.0
    generic_only: bool = False
    parts: Payload = field(default_factory=dict)

    @property
    def fit_number(self) -> int:
        """The number under which the client saves its state after this fit: fine-tuning follows the last round."""
        return self.round + bool(self.finetune_epochs)

    @property
    def message(self) -> Payload:
        """The message of the method alone."""
        return {part: state for part, state in self.parts.items() if part not in RESERVED_PARTS}

    @property
    def generic(self) -> State:
        """The shared tensors of the generic model."""
        return self.parts.get(GENERIC, self.parts[NET])

    @property
    def anchors(self) -> Tensor | None:
        """The class anchors (K, E), if the request carries them."""
        return self.parts[ANCHORS]["classes"] if ANCHORS in self.parts else None

    @property
    def priors(self) -> State:
        """The class priors that the request carries."""
        return self.parts.get(PRIORS, {})

    def values(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "parts"}
        return plain | {"pinned": list(self.pinned), "evaluate": list(self.evaluate)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], parts: Payload) -> Request:
        """The inverse of `values`."""
        lists = {"pinned": tuple(values["pinned"]), "evaluate": tuple(values["evaluate"])}
        return cls(**{**values, **lists, "parts": parts})

    def digest(self) -> str:
        """SHA-256 of values and tensors: a request with the same digest has the same reply.

        The pinned fits do not enter: they change no reply. Neither do newer fields at their default, so that the
        replies of older runs are found.
        """
        left_out = {"pinned"} | ({"lr_factor"} if self.lr_factor == 1 else set())
        left_out |= set() if self.generic_only else {"generic_only"}
        values = {key: value for key, value in self.values().items() if key not in left_out}
        found = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for part, state in sorted(self.parts.items()):
            for key, tensor in sorted(state.items()):
                found.update(json.dumps([part, key, str(tensor.dtype), list(tensor.shape)]).encode())
                found.update(raw_bytes(tensor))
        return found.hexdigest()


@dataclass(frozen=True)
class Reply:
    """The reply of one client.

    Attributes:
        values: what JSON can hold: sizes, options, records, metrics and counts.
        parts: the message of the method, or the sums of class prototypes.
    """

    values: dict[str, Any]
    parts: Payload = field(default_factory=dict)
