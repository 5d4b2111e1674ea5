"""The fits of a round: requests to clients, checks of their replies, the merge, and the clients that are excluded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfedst.errors import TooFewClientsError, listed
from pfedst.messages.faults import Fault, FaultTexts
from pfedst.messages.payload import Payload, payload_bytes
from pfedst.messages.requests import Reply, Request, SplitName
from pfedst.messages.transport import Transport
from pfedst.server.schedule import Schedule
from pfedst.server.screening import outliers
from pfedst.server.server import Server
from pfedst.tracking import RunProgress

Record = dict[str, Any]
MakeRequest = Callable[..., Request]
"""`make_request(kind, name, **fields)`: a request with the current message and state of a client."""


@dataclass(frozen=True)
class FitOptions:
    """Options of the coordinator for local fits; `FederatedCoordinator` documents and checks them."""

    keep_optimizer: bool
    min_clients: int
    max_norm_ratio: float | None
    schedule: Schedule


@dataclass
class Reported:
    """The outcome of the fits of a round.

    Attributes:
        records: records of the clients whose messages were merged, by name.
        left_out: of the other clients that were asked: the kind of the fault, and the bytes that were sent to them.
    """

    records: dict[str, Record] = field(default_factory=dict)
    left_out: dict[str, Record] = field(default_factory=dict)


class Fits:
    """Asks clients for local fits and merges their replies.

    A client that raises, sends what no client may send, or does not answer is excluded from its round. The server then
    counts the fit before as the client's last one, so that the client continues from there when it is drawn again.

    Attributes:
        faults: which faults of clients have been logged.

    Args:
        options: the options.
        server: whose messages are sent and merged.
        transport: the way to the clients.
        make_request: makes requests.
        progress: shows each fit.
    """

    def __init__(
        self,
        options: FitOptions,
        server: Server,
        transport: Transport,
        make_request: MakeRequest,
        progress: RunProgress,
    ) -> None:
        self.options = options
        self.server = server
        self.transport = transport
        self.make_request = make_request
        self.progress = progress
        self.faults = FaultTexts()

    def run_round(
        self, round_number: int, names: Sequence[str], activity: str, evaluate: tuple[SplitName, ...]
    ) -> Reported:
        """Run the fits of a round and merge the replies.

        Args:
            round_number: from 1.
            names: the clients that are asked.
            activity: text for the progress.
            evaluate: splits on which the fitted models are evaluated before the merge.

        Raises:
            TooFewClientsError: fewer clients reported than `min_clients`.
        """
        reported = Reported()
        for group in [[name] for name in names] if self.server.method.sequential else [list(names)]:
            self._run_group(round_number, group, activity, evaluate, reported)
        self._require_enough(reported, f"round {round_number}")
        reported.records = {name: reported.records[name] for name in names if name in reported.records}
        return reported

    def finetune(self, round_number: int, names: Sequence[str], epochs: int) -> Reported:
        """Fine-tune clients after the last merge; nothing is sent after it.

        The schedule ends with the last round: fine-tuning has the learning rate of the configuration.

        Raises:
            TooFewClientsError: fewer clients were fine-tuned than `min_clients`.
        """
        reported = Reported()
        keep = self.options.keep_optimizer
        requests = {
            name: self.make_request("fit", name, round=round_number, finetune_epochs=epochs, keep_optimizer=keep)
            for name in names
        }
        for name, reply in self._ask(requests, "fine-tuning"):
            if isinstance(reply, Fault):
                self._exclude(name, round_number, reply, reported)
            else:
                reported.records[name] = reply.values["record"]
        self._require_enough(reported, "fine-tuning")
        return reported

    def _run_group(
        self,
        round_number: int,
        names: Sequence[str],
        activity: str,
        evaluate: tuple[SplitName, ...],
        reported: Reported,
    ) -> None:
        """Run the fits whose messages are merged together."""
        fields = {
            "round": round_number,
            "keep_optimizer": self.options.keep_optimizer,
            "evaluate": evaluate,
            "lr_factor": self.options.schedule.factor(round_number),
        }
        requests = {name: self.make_request("fit", name, **fields) for name in names}
        sent = {name: request.message for name, request in requests.items()}
        messages: dict[str, Payload] = {}
        for name, reply in self._ask(requests, activity):
            fault = reply if isinstance(reply, Fault) else self._refused(name, reply)
            if fault is not None:
                self._exclude(name, round_number, fault, reported)
                continue
            assert isinstance(reply, Reply)
            messages[name] = reply.parts
            reported.records[name] = reply.values["record"] | {"upload_bytes": payload_bytes(reply.parts)}
        received = {name: sent[name] for name in messages}
        for name, error in outliers(messages, received, self.options.max_norm_ratio).items():
            del messages[name], reported.records[name]
            self._exclude(name, round_number, Fault.of(error), reported)
        for name, message in sent.items():
            record = reported.records.get(name) or reported.left_out[name]
            record["download_bytes"] = payload_bytes(message)
        if messages:
            self.server.merge(messages)

    def _ask(self, requests: Mapping[str, Request], activity: str) -> Iterator[tuple[str, Reply | Fault]]:
        """Yield each client with its reply, or with the fault."""
        for name, reply in self.transport.ask(requests, lambda name: self.progress.say(f"{activity}, {name}")):
            self.progress.fitted(earlier=isinstance(reply, Reply) and bool(reply.values.get("repeated")))
            yield name, reply

    def _refused(self, name: str, reply: Reply) -> Fault | None:
        try:
            self.server.check_upload(name, reply.parts)
        except Exception as error:
            return Fault.of(error)
        return None

    def _exclude(self, name: str, round_number: int, fault: Fault, reported: Reported) -> None:
        """Note a fault."""
        reported.left_out[name] = {"left_out": fault.kind}
        text = self.faults.text(name, fault)
        logging.getLogger("pfedst").warning("client %s is excluded from round %d: %s", name, round_number, text)

    def _require_enough(self, reported: Reported, when: str) -> None:
        count = len(reported.records) + len(reported.left_out)
        if len(reported.records) >= min(self.options.min_clients, count):
            return
        faults = [f"{name} ({record['left_out']})" for name, record in sorted(reported.left_out.items())]
        raise TooFewClientsError(
            f"{when}: {len(reported.records)} of {count} clients reported, --coordinator.min_clients is "
            f"{self.options.min_clients}; excluded: {listed(faults)}. The state is saved: correct the cause above, "
            f"then continue with the same command, --name and --resume true"
        )
