"""Flower's ClientApp and ServerApp: the fallback in which Flower starts a process for each message itself."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import get_args

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pfedst.deployment.hospital import Hospital
from pfedst.errors import ConfigurationError
from pfedst.messages.requests import Kind
from pfedst.transport.flower import FAULT, SITE, TYPES, packed


def client_app(make: Callable[[], Hospital]) -> ClientApp:
    """Return the app of a hospital.

    Args:
        make: builds the hospital; whatever it raises stays here, but for its kind.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        try:
            hospital = make()
        except Exception as error:
            logging.getLogger("pfedst").error("%s", "".join(traceback.format_exception(error)).rstrip())
            return Message(packed({SITE: "", FAULT: type(error).__name__}, {}), reply_to=message)
        return hospital.handle(message)

    app.train()(handle)
    app.evaluate()(handle)
    for kind in get_args(Kind):
        if kind not in TYPES:
            app.query(kind)(handle)
    return app


def server_app() -> ServerApp:
    """Return an app that refuses: the server of a run is `pfedst fit`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise ConfigurationError("the server of a run is pfedst fit: stop flower-superexec at the centre")

    return app
