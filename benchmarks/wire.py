"""Bytes on the wire in a round: messages that one client receives and sends, for every registered method.

    python benchmarks/wire.py run
    python benchmarks/wire.py table

Each method is built with its defaults on an encoder with RANDOM WEIGHTS. Its first message is delivered to a client and
the client's answer is collected, as in a round but without training. The bytes of the tensors in both messages are
counted. Setup is the message that a client sends once before the first round: sums and counts of its class prototypes.
The numbers include no compression and no framing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from environment import environment

from pfedst.client.module import FederatedClient
from pfedst.encoders import FrozenCLIP
from pfedst.errors import PfedstError
from pfedst.messages.payload import payload_bytes
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.registry import registered_methods
from pfedst.server.server import Federation
from pfedst.tracking import parameters_sent, parameters_trained

RESULT = Path(__file__).resolve().parent / "results" / "wire.json"
CLASSES, SITE_SAMPLES = 8, 16
REFERENCE = "FedAvg"
"""Federated averaging of the side network, with which the methods are compared."""


def measure(method: FederatedMethod, encoder: FrozenCLIP) -> dict[str, Any]:
    """Measure one method's messages to and from one client."""
    names = [f"class {index}" for index in range(CLASSES)]
    template = FederatedClient(encoder, anchors="prototypes")
    federation = Federation(template, names, {"site": SITE_SAMPLES}, method, run_seed=0)
    gather_prototypes(federation)
    federation.start()
    (name,) = federation.trainees
    download_bytes = federation.deliver(name)
    upload_bytes = payload_bytes(federation.collect(name))
    client = federation.trainees[name]
    return {
        "adapter": type(client.adapter).__name__,
        "parameters_trained": parameters_trained(client),
        "parameters_sent": parameters_sent(client),
        "download_bytes": download_bytes,
        "upload_bytes": upload_bytes,
        "setup_upload_bytes": federation.setup_upload_bytes,
    }


def gather_prototypes(federation: Federation) -> None:
    """Compute prototypes from random images of the encoder's size, as many as a site has."""
    size = federation.encoder.spec.image_size
    images = torch.randn(SITE_SAMPLES, 3, size, size)
    federation.gather_prototypes(lambda _: [(images, torch.arange(SITE_SAMPLES) % CLASSES)], torch.device("cpu"))


def run(model: str, image_size: int) -> None:
    """Measure all methods. A method that cannot run on this encoder is listed with the reason."""
    encoder = FrozenCLIP(model, "random", image_size)
    rows: dict[str, dict[str, Any]] = {}
    for name, method in registered_methods().items():
        try:
            rows[name] = measure(method(), encoder)
        except PfedstError as error:
            rows[name] = {"missing": str(error)}
        print(f"counted: {name}", flush=True)
    protocol = {"encoder": encoder.label, "classes": CLASSES, "image_tower_bytes": encoder.nbytes}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment(), "protocol": protocol, "rows": rows}, indent=2) + "\n")


def table() -> None:
    """Print the table from the result file, most bytes first."""
    result = json.loads(RESULT.read_text())
    rows, protocol = result["rows"], result["protocol"]
    tower = 2 * protocol["image_tower_bytes"]
    print(
        "| method | adapter | trained | sent | up, bytes | down, bytes | setup, bytes | a round against FedAvg "
        f"| image tower / this |\n|{'---|' * 9}"
    )
    for name, row in sorted(rows.items(), key=lambda item: -round_bytes(item[1])):
        if "missing" in row:
            print(f"| {name} | not on this encoder: {row['missing']} {'| ' * 7}|")
            continue
        numbers = ("parameters_trained", "parameters_sent", "upload_bytes", "download_bytes", "setup_upload_bytes")
        cells = [f"{row[number]:,}" for number in numbers]
        cells.append(f"{round_bytes(row) / round_bytes(rows[REFERENCE]):.3f}x")
        cells.append(f"{tower / round_bytes(row):,.0f}x" if round_bytes(row) else "-")
        print(f"| {name} | {row['adapter']} | {' | '.join(cells)} |")
    print(
        f"\n{protocol['encoder']}; defaults of every method, {protocol['classes']} classes, class prototypes as "
        f"frozen anchors; one client, one round without training, tensors alone. FedAvg is that of the side network; "
        f"the image tower has {protocol['image_tower_bytes']:,} bytes, which full fine-tuning would send and receive. "
        "Pooled is no federation: the images of all sites lie in one place, and how they came there is not counted."
    )


def round_bytes(row: dict[str, Any]) -> int:
    """Return upload and download bytes of a round."""
    return int(row.get("upload_bytes", 0) + row.get("download_bytes", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--model", default="ViT-B-16-quickgelu")
    runs.add_argument("--image-size", type=int, default=224, help="changes no byte but those of the position embedding")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "run":
        run(given.model, given.image_size)
    table()


if __name__ == "__main__":
    main()
