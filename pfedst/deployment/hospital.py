"""A hospital: answers the requests of a centre with its own images, and keeps its state in its own folder."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message

from pfedst.client.client import Client
from pfedst.client.state import SITES
from pfedst.data.sets.remote import RemoteSites
from pfedst.deployment.agreement import differences
from pfedst.deployment.message_log import MessageLog
from pfedst.errors import ConfigurationError, PfedstError
from pfedst.messages.payload import Payload
from pfedst.messages.requests import Request
from pfedst.transport.flower import AGREEMENT, DIFFERENCES, FAULT, SITE, packed, size_and_digest, unpacked

RUN_NAME = r"[\w][\w.\-]{0,99}"


class Hospital:
    """One site of runs between hospitals.

    Whatever goes wrong here, the centre learns the kind of the error and no more: its text may hold the name of a file,
    and that of a patient. The text is in the log of the hospital.

    Args:
        client: answers for this site alone.
        site: its name.
        folder: its state; a folder a run.
        agreed: what it must have in common with the centre, by key.
    """

    def __init__(self, client: Client, site: str, folder: Path, agreed: Mapping[str, Any]) -> None:
        self.client = client
        self.site = site
        self.folder = folder
        self.agreed = dict(agreed)
        self.log = MessageLog(folder)

    def handle(self, message: Message) -> Message:
        """Return the reply to a message; it never raises."""
        try:
            values, parts = unpacked(message.content)
            asked = str(values.get("kind"))[:40], str(values.get("run"))[:100], _number(values.get("round"))
            size, digest = size_and_digest(message.content)
            self.log.add("received", *asked, size, digest, list(parts))
        except Exception as error:
            _log(error)
            return Message(packed({SITE: self.site, FAULT: type(error).__name__}, {}), reply_to=message)
        reply_values, reply_parts = self._answer(values, parts)
        content = packed({SITE: self.site, **reply_values}, reply_parts)
        size, digest = size_and_digest(content)
        kind = f"{asked[0]}: {reply_values[FAULT]}" if FAULT in reply_values else asked[0]
        self.log.add("sent", kind, *asked[1:], size, digest, list(reply_parts))
        return Message(content, reply_to=message)

    def _answer(self, values: Mapping[str, Any], parts: Payload) -> tuple[dict[str, Any], Payload]:
        """Return what leaves: values and tensors of a reply, or the kind of an error."""
        try:
            if found := differences(self.agreed, values.get(AGREEMENT) or {}):
                logging.getLogger("pfedst").error("this hospital refuses a request: %s", "; ".join(found))
                return {FAULT: ConfigurationError.__name__, DIFFERENCES: found}, {}
            known = {key: value for key, value in values.items() if key != AGREEMENT}
            request = Request.from_values(known, parts)
            if not re.fullmatch(RUN_NAME, request.run) and request.kind != "hello":
                raise ConfigurationError("the centre names a run that is no name of a folder")
            if request.kind != "hello":
                self.client.keep_state_in(self.folder / request.run / SITES)
            reply = self.client.answer(self.site, request)
            packed(reply.values, reply.parts)  # what JSON does not take is a fault, too
            if request.kind == "hello":  # the label of data names their folder
                reply.values["protocol"] = reply.values["protocol"] | {"data": RemoteSites.label}
            return reply.values, reply.parts
        except Exception as error:
            _log(error)
            return {FAULT: type(error).__name__}, {}


def _log(error: Exception) -> None:
    """Log the text of an error here, where it may be read."""
    text = str(error) if isinstance(error, PfedstError) else "".join(traceback.format_exception(error)).rstrip()
    logging.getLogger("pfedst").error("%s: %s", type(error).__name__, text)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
