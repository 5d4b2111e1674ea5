"""`pfedst methods`: what is installed, what it shares, what it costs."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pfedst.client import FederatedClient
from pfedst.encoders import FrozenCLIP
from pfedst.errors import PfedstError
from pfedst.method import FederatedMethod
from pfedst.payload import payload_bytes
from pfedst.registry import registered_methods
from pfedst.reporting import bytes_text
from pfedst.tracking import parameters_sent, parameters_trained

MODEL, CLASSES = "ViT-B-16-quickgelu", 8


def list_methods(arguments: Sequence[str]) -> int:
    """Print a table of every registered method; the exit code."""
    parser = argparse.ArgumentParser(prog="pfedst methods", description="List the installed methods.")
    parser.parse_args(arguments)
    table = Table(title=f"Methods, with defaults on {MODEL} and {CLASSES} classes with frozen anchors")
    for heading in ("method", "what it is", "shared", "personal", "trained", "sent a round", "source"):
        table.add_column(heading, justify="right" if heading in ("trained", "sent a round") else "left")
    for name, method in registered_methods().items():
        table.add_row(name, (inspect.getdoc(method) or "").split("\n")[0], *_described(method), method.source)
    Console(width=None if Console().is_terminal else 200).print(table, highlight=False)
    return 0


def method_cost(method: FederatedMethod) -> dict[str, Any]:
    """What a method with these options trains and sends on ViT-B/16 with 8 classes, from shapes alone."""
    with torch.device("meta"):
        encoder = FrozenCLIP(MODEL, weights="random")
        client = FederatedClient(encoder, anchors="prototypes").with_classes(
            [f"class {index}" for index in range(CLASSES)], method, 0
        )
    return {
        "shared": _groups(client.partition.keys("shared")),
        "personal": _groups(client.partition.keys("personal")),
        "parameters_trained": parameters_trained(client),
        "parameters_sent": parameters_sent(client),
        "upload_bytes": payload_bytes(method.upload(client)),
    }


def _described(method: type[FederatedMethod]) -> tuple[str, str, str, str]:
    try:
        cost = method_cost(method())
    except PfedstError as error:
        return f"not on this encoder: {error}", "", "", ""
    return (
        cost["shared"],
        cost["personal"],
        f"{cost['parameters_trained']:,}",
        f"{cost['parameters_sent']:,} = {bytes_text(cost['upload_bytes'])}",
    )


def _groups(keys: Sequence[str]) -> str:
    """Keys without layer numbers and tensor names: `side.down, side.blocks.o, ...`, LoRA told apart."""
    groups = dict.fromkeys(
        ".".join([part for part in key.split(".")[:-1] if not part.isdigit()])
        + (" LoRA" if key.endswith(("lora_A", "lora_B")) else "")
        for key in keys
    )
    return ", ".join(groups) or "nothing"
