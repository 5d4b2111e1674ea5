"""Peak memory of a run as the number of clients grows; RANDOM WEIGHTS and RANDOM images, one round.

    python benchmarks/clients.py run [--model ViT-B-16-quickgelu] [--image-size 64] [--counts 1 4 16 64]
    python benchmarks/clients.py table

Each number of clients and each method runs in a separate process, which makes a whole run (`FederatedCoordinator.fit`:
prototypes, one round, evaluation, state on disk) and reports its peak resident memory. For comparison the table lists
the memory of one client that is not shared with other clients or the server, counted from its tensors after a fit: the
expected cost of an additional client.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from lightning.pytorch import Trainer
from torch import Tensor

from pfedst.client.client import ClientWork, Fit
from pfedst.client.module import FederatedClient
from pfedst.client.training import LEAN_TRAINER, LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Sites
from pfedst.encoders import FrozenCLIP
from pfedst.messages.payload import NET
from pfedst.methods.registry import registered_methods
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator, build_federation
from pfedst.server.server import Federation
from pfedst.tracking import peak_memory_bytes

RESULT = Path(__file__).resolve().parent / "results" / "clients.json"
METHODS = ("PFedST", "FedAvg")
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 4, 8, 8
TARGET_CLIENTS, TARGET_RATIO = 64, 1.3
MEBI = 2**20


class RandomSites(FederatedDataModule):
    """Any number of sites with few noise images, which take almost no memory.

    Args:
        sites: number of sites.
        image_size: side in pixels.
    """

    def __init__(self, sites: int, image_size: int) -> None:
        super().__init__(batch_size=TRAIN_IMAGES, validation_fraction=0)
        self.number, self.image_size = sites, image_size
        self.label = f"RANDOM images ({sites} sites)"

    def read(self) -> Sites:
        """Create noise in memory."""
        rng = np.random.default_rng(0)

        def images(count: int) -> LabelledImages:
            pixels = rng.integers(0, 256, (count, self.image_size, self.image_size, 3), np.uint8)
            return LabelledImages(ArraySource(pixels), [index % CLASSES for index in range(count)])

        names = [f"site_{index:03d}" for index in range(self.number)]
        return Sites(
            [f"class {index}" for index in range(CLASSES)],
            {name: {"train": images(TRAIN_IMAGES), "test": images(TEST_IMAGES)} for name in names},
        )


# -- one process -------------------------------------------------------------------------------------------------------


def one_run(method: str, model: str, image_size: int, clients: int) -> dict[str, Any]:
    """Run one round; return its peak memory and the memory of one client."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    encoder = FrozenCLIP(model, "random", image_size)
    built_bytes = peak_memory_bytes(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        FederatedCoordinator(rounds=1).fit(
            FederatedClient(encoder, anchors="prototypes"),
            RandomSites(clients, image_size),
            registered_methods()[method](),
            lean_trainer(),
            RunFolder.create(Path(folder), "run", "run"),
            run_seed=0,
        )
    return {
        "peak_bytes": peak_memory_bytes(torch.device("cpu")),
        "encoder_built_bytes": built_bytes,
        "encoder": encoder.label,
        "image_tower_bytes": encoder.nbytes,
        "held": held_by_a_client(method, encoder),
    }


def lean_trainer() -> Trainer:
    return Trainer(**LEAN_TRAINER | {"accelerator": "cpu"})


def held_by_a_client(method: str, encoder: FrozenCLIP) -> dict[str, int]:
    """Return bytes by kind for the second of two clients after its first fit, without tensors that both share."""
    data = RandomSites(2, encoder.spec.image_size)
    template = FederatedClient(encoder, anchors="prototypes")
    federation = build_federation(template, data, registered_methods()[method](), run_seed=0)
    federation.gather_prototypes(lambda site: data.evaluation_loader(site, "train"), torch.device("cpu"))
    federation.start()
    work = ClientWork(federation, data, LocalTrainer(lean_trainer()))
    for name in federation.clients:
        federation.deliver(name)
        work.do(Fit(name, 1, None, False, ()))
    of_server = [tensor for state in federation.server.values() for tensor in state.values()]
    first, second = (tensors_of(federation, name) for name in federation.clients)
    seen = {tensor.untyped_storage().data_ptr() for tensor in [*of_server, *itertools.chain(*first.values())]}
    found = {"images": (TRAIN_IMAGES + TEST_IMAGES) * 3 * encoder.spec.image_size**2}
    for what, tensors in second.items():
        own = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        found[what] = sum(size for place, size in own.items() if place not in seen)
        seen |= set(own)
    return found


def tensors_of(federation: Federation, name: str) -> dict[str, list[Tensor]]:
    """Return all tensors in memory that belong to a client, by kind."""
    client = federation.clients[name]
    parameters = list(client.parameters())
    return {
        "parameters": parameters,
        "gradients left by its last step": [p.grad for p in parameters if p.grad is not None],
        "class anchors": list(client.buffers()),
        "message received": [tensor for state in client.received.values() for tensor in state.values()],
        "message sent, until the merge": list(federation.method.upload(client)[NET].values()),
        "its state, while a round is saved": list(federation.state_parts()[f"client {name}"]["model"].values()),
    }


# -- all of them -------------------------------------------------------------------------------------------------------


def run(model: str, image_size: int, counts: list[int]) -> None:
    """Start a process for each row. The file is complete after each of them."""
    rows: dict[str, dict[str, Any]] = {}
    protocol = {"model": model, "image_size": image_size, "train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        for clients in counts:
            command = [sys.executable, "-W", "ignore", __file__, "one", method, model, str(image_size), str(clients)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.setdefault(method, {})[str(clients)] = json.loads(done.stdout.splitlines()[-1])
            result = {"environment": environment(), "protocol": protocol, "rows": rows}
            RESULT.write_text(json.dumps(result, indent=2) + "\n")
            print(f"measured: {method}, {clients} clients", flush=True)


def table() -> None:
    """Print the table from the result file."""
    result = json.loads(RESULT.read_text())
    print("| method | clients | peak, MiB | against one client | MiB a client more |\n|---|---|---|---|---|")
    for method, of_method in result["rows"].items():
        first = next(iter(of_method.values()))
        for clients, row in of_method.items():
            added = slope(of_method, clients) / MEBI if row is not first else float("nan")
            against = row["peak_bytes"] / first["peak_bytes"]
            more = "-" if row is first else f"{added:.1f}"
            print(f"| {method} | {clients} | {row['peak_bytes'] / MEBI:,.0f} | {against:.2f}x | {more} |")
    protocol = result["protocol"]
    print(
        f"\n{first['encoder']}; {protocol['train_images']} random training and {protocol['test_images']} test images "
        "a site; a run of one round in a fresh process, the most memory that was resident. Of it "
        f"{first['encoder_built_bytes'] / MEBI:,.0f} MiB are there once the libraries are loaded and the encoder is "
        f"made; the image tower has {first['image_tower_bytes'] / MEBI:,.0f}."
    )
    print(f"\n| what a client alone holds, MiB | {' | '.join(result['rows'])} |\n|---|{'---|' * len(result['rows'])}")
    helds = [next(iter(of_method.values()))["held"] for of_method in result["rows"].values()]
    for what in helds[0]:
        print(f"| {what} | {' | '.join(f'{held[what] / MEBI:.2f}' for held in helds)} |")
    print(f"| all of these | {' | '.join(f'{sum(held.values()) / MEBI:.2f}' for held in helds)} |")
    print(f"\n{targets(result['rows'])}")


def slope(of_method: dict[str, dict[str, Any]], clients: str) -> float:
    """Return the bytes of an additional client, from the smallest number of clients to this one."""
    fewest, row = next(iter(of_method.items()))
    return float((of_method[clients]["peak_bytes"] - row["peak_bytes"]) / (int(clients) - int(fewest)))


def targets(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Report whether the targets are met."""
    lines = [f"| target: below {TARGET_RATIO}x at {TARGET_CLIENTS} clients | |\n|---|---|"]
    for method, of_method in rows.items():
        if {"1", str(TARGET_CLIENTS)} <= set(of_method):
            reached = of_method[str(TARGET_CLIENTS)]["peak_bytes"] / of_method["1"]["peak_bytes"]
            lines.append(f"| {method}: {reached:.2f}x | {'met' if reached < TARGET_RATIO else 'MISSED'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--model", default="ViT-B-16-quickgelu")
    runs.add_argument("--image-size", type=int, default=64)
    runs.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 64])
    one = commands.add_parser("one", help="one run, printed as JSON; `run` starts a process for each")
    one.add_argument("method")
    one.add_argument("model")
    one.add_argument("image_size", type=int)
    one.add_argument("clients", type=int)
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "one":
        print(json.dumps(one_run(given.method, given.model, given.image_size, given.clients)))
        return
    if given.command == "run":
        run(given.model, given.image_size, given.counts)
    table()


if __name__ == "__main__":
    main()
