"""Peak memory of a run as the number of clients grows; RANDOM WEIGHTS and RANDOM images, one round.

    python benchmarks/clients.py run [--model ViT-B-16-quickgelu] [--image-size 64] [--counts 1 4 16 64]
    python benchmarks/clients.py table

Each row is a process of its own, which makes a whole run (prototypes, one round, evaluation, state on disk) with all
clients in its round, and reports its highest resident memory. The clients of a process share one model. What one client
more adds is its images and its message, which the server keeps until the merge.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from command_line import one_command, row_of_a_process, run_and_table, save
from environment import environment
from local_fits import lean_trainer
from sites import RandomSites

from pfedst import simulation
from pfedst.client.module import FederatedClient
from pfedst.encoders import FrozenCLIP
from pfedst.methods.registry import registered_methods
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.tracking import peak_memory_bytes

RESULT = Path(__file__).resolve().parent / "results" / "clients.json"
METHODS = ("PFedST", "FedAvg")
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 4, 8, 8
TARGET_CLIENTS, TARGET_RATIO = 64, 1.3
CPU = torch.device("cpu")
MEBI = 2**20


# -- one process -------------------------------------------------------------------------------------------------------


def one_run(method: str, model: str, image_size: int, clients: int) -> dict[str, Any]:
    """Make a run of one round; return its peak memory, and the bytes of images and message of one client."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    encoder = FrozenCLIP(model, "random", image_size)
    built_bytes = peak_memory_bytes(CPU)
    data = RandomSites(clients, image_size, TRAIN_IMAGES, TEST_IMAGES, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        summary = simulation.fit(
            FederatedCoordinator(rounds=1),
            FederatedClient(encoder, anchors="prototypes"),
            data,
            registered_methods()[method](),
            lean_trainer(),
            RunFolder.create(Path(folder), "run", "run"),
            run_seed=0,
        )
    return {
        "peak_bytes": peak_memory_bytes(CPU),
        "encoder_built_bytes": built_bytes,
        "encoder": encoder.label,
        "image_tower_bytes": encoder.nbytes,
        "image_bytes_a_client": data.image_bytes // clients,
        "message_bytes_a_client": round(summary["cost"]["upload_bytes_per_round"] / clients),
    }


# -- all of them -------------------------------------------------------------------------------------------------------


def run(model: str, image_size: int, counts: list[int]) -> None:
    """Run one process for each row; the file is complete after each of them."""
    rows: dict[str, dict[str, Any]] = {}
    protocol = {"model": model, "image_size": image_size, "train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES}
    for method in METHODS:
        for clients in counts:
            rows.setdefault(method, {})[str(clients)] = row_of_a_process(__file__, method, model, image_size, clients)
            result = {"environment": environment(), "protocol": protocol, "rows": rows}
            save(RESULT, result)
            print(f"measured: {method}, {clients} clients", flush=True)


def table() -> None:
    """Print everything from the result's file."""
    result = json.loads(RESULT.read_text())
    if "note" in result:
        print(f"**{result['note']}**\n")
    print(
        "| method | clients | peak, MiB | against one client | MiB a client more | of them images | of them message |"
    )
    print("|---|---|---|---|---|---|---|")
    for method, of_method in result["rows"].items():
        first = next(iter(of_method.values()))
        for clients, row in of_method.items():
            added = slope(of_method, clients) / MEBI if row is not first else float("nan")
            against = row["peak_bytes"] / first["peak_bytes"]
            more = "-" if row is first else f"{added:.1f}"
            parts = [row.get(f"{what}_bytes_a_client") for what in ("image", "message")]
            cells = [f"{row['peak_bytes'] / MEBI:,.0f}", f"{against:.2f}x", more]
            cells += ["-" if size is None else f"{size / MEBI:.1f}" for size in parts]
            print(f"| {method} | {clients} | {' | '.join(cells)} |")
    protocol = result["protocol"]
    print(
        f"\n{first['encoder']}; {protocol['train_images']} random training and {protocol['test_images']} test images "
        "a site; a run of one round, with all clients in it, in a process of its own. Peak: the highest resident "
        f"memory of the process, of which {first['encoder_built_bytes'] / MEBI:,.0f} MiB are the libraries and the "
        f"encoder (its image tower: {first['image_tower_bytes'] / MEBI:,.0f}). Message: what the server keeps of a "
        "client until the merge."
    )
    print(f"\n{targets(result['rows'])}")


def slope(of_method: dict[str, dict[str, Any]], clients: str) -> float:
    """Return the bytes that one client more adds, from the fewest clients to these."""
    fewest, row = next(iter(of_method.items()))
    return float((of_method[clients]["peak_bytes"] - row["peak_bytes"]) / (int(clients) - int(fewest)))


def targets(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the target of each method, and whether it is met."""
    lines = [f"| target: below {TARGET_RATIO}x at {TARGET_CLIENTS} clients | |\n|---|---|"]
    for method, of_method in rows.items():
        if {"1", str(TARGET_CLIENTS)} <= set(of_method):
            reached = of_method[str(TARGET_CLIENTS)]["peak_bytes"] / of_method["1"]["peak_bytes"]
            lines.append(f"| {method}: {reached:.2f}x | {'met' if reached < TARGET_RATIO else 'MISSED'} |")
    return "\n".join(lines)


def main() -> None:
    parser, commands, runs = run_and_table(__doc__)
    runs.add_argument("--model", default="ViT-B-16-quickgelu")
    runs.add_argument("--image-size", type=int, default=64)
    runs.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 64])
    one = one_command(commands)
    one.add_argument("method")
    one.add_argument("model")
    one.add_argument("image_size", type=int)
    one.add_argument("clients", type=int)
    given = parser.parse_args()
    if given.command == "one":
        print(json.dumps(one_run(given.method, given.model, given.image_size, given.clients)))
        return
    if given.command == "run":
        run(given.model, given.image_size, given.counts)
    table()


if __name__ == "__main__":
    main()
