"""Bytes on the wire in a round: what one client receives and sends, for every registered method.

    python benchmarks/wire.py run
    python benchmarks/wire.py table

Each method is built with its defaults on an encoder with RANDOM WEIGHTS. A client receives the first message of the
server and makes its own, as in a round but without training, and the bytes of the tensors in both messages are counted.
Setup is what a client sends once, before the first round: sums and counts of its class prototypes. Compression and
framing are not counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from command_line import run_and_table, save

from pfedst.client.exchange import make_upload, receive_message
from pfedst.client.module import FederatedClient
from pfedst.encoders import FrozenCLIP, class_sums
from pfedst.errors import PfedstError
from pfedst.messages.payload import payload_bytes
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.registry import registered_methods
from pfedst.server.server import Server
from pfedst.simulation import start_maker

RESULT = Path(__file__).resolve().parent / "results" / "wire.json"
CLASSES, SITE_SAMPLES = 8, 16
REFERENCE = "FedAvg"
"""Federated averaging of the side network: the methods are compared with it."""


def measure(method: FederatedMethod, encoder: FrozenCLIP) -> dict[str, Any]:
    """Count the messages of one method to and from one client."""
    names = [f"class {index}" for index in range(CLASSES)]
    template = FederatedClient(encoder, anchors=method.requires_anchors or "prototypes")
    model = template.build(names, method, run_seed=0).model
    server = Server(method, {"site": SITE_SAMPLES}, start_maker(model), run_seed=0)
    if server.needs_prototypes:
        embeddings = torch.randn(SITE_SAMPLES, encoder.spec.embedding)
        sums, counts = class_sums(embeddings, torch.arange(SITE_SAMPLES) % CLASSES, CLASSES)
        server.merge_prototypes([sums], [counts])
        assert server.anchors is not None
        model.set_anchors(server.anchors)
    server.begin()
    (model.name,) = server.names
    message = server.message_to(model.name)
    receive_message(model, method, message)
    return {
        "adapter": server.start.adapter,
        "parameters_trained": server.start.parameters_trained,
        "parameters_sent": server.start.parameters_sent,
        "download_bytes": payload_bytes(message),
        "upload_bytes": payload_bytes(make_upload(model, method)),
        "setup_upload_bytes": server.setup_upload_bytes,
    }


def run(model: str, image_size: int) -> None:
    """Count all methods; for one that cannot run on this encoder the reason is kept."""
    encoder = FrozenCLIP(model, "random", image_size)
    rows: dict[str, dict[str, Any]] = {}
    for name, method in registered_methods().items():
        try:
            rows[name] = measure(method(), encoder)
        except PfedstError as error:
            rows[name] = {"missing": str(error)}
        print(f"counted: {name}", flush=True)
    protocol = {"encoder": encoder.label, "classes": CLASSES, "image_tower_bytes": encoder.nbytes}
    save(RESULT, {"protocol": protocol, "rows": rows})


def table() -> None:
    """Print everything from the result's file, most bytes first."""
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
        "Pooled is no federation: the images of all sites are in one place, and how they came there is not counted."
    )


def round_bytes(row: dict[str, Any]) -> int:
    """Return the bytes up and down."""
    return int(row.get("upload_bytes", 0) + row.get("download_bytes", 0))


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--model", default="ViT-B-16-quickgelu")
    runs.add_argument("--image-size", type=int, default=224, help="changes no byte but those of the position embedding")
    given = parser.parse_args()
    if given.command == "run":
        run(given.model, given.image_size)
    table()


if __name__ == "__main__":
    main()
