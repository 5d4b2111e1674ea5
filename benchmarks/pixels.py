"""Methods on a small CNN: a round with evaluation against a bare PyTorch loop of the same steps; RANDOM images.

    python benchmarks/pixels.py run [--rounds 24] [--methods FedAvg Ditto] [--digits digits6.npz] [--profile]
    python benchmarks/pixels.py table

Six clients with as many images of 16 px as those of a comparison with PFLlib (`pflib.md`), batch 16, SGD 0.05, one
local epoch (two for FedRep, which trains its parts in turns), evaluation in each round, one thread. The images of
pfedst lie in its store of decoded images; those of the bare loop are float tensors in memory. Both sides evaluate each
client's model on test after its fit, and all models of the method on test after the merge. Both sides take turns, in
blocks of rounds, so that other work on the machine slows both. Writes benchmarks/results/pixels.json.
"""

from __future__ import annotations

import copy
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from command_line import run_and_table, save
from numpy.typing import NDArray
from round import NEVER
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from pfedst.adapters import WholeModel
from pfedst.client.client import Client
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.sampling import SeededSampler
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Sites, Split
from pfedst.encoders import AnchorHead, Encoder, Pixels, Taps
from pfedst.messages.payload import NET
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.registry import registered_methods
from pfedst.reporting import RunFolder, RunSummary, describe
from pfedst.seeds import derive_seed
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.rounds import RoundLoop
from pfedst.server.server import Server
from pfedst.simulation import SITES as SITES_FOLDER
from pfedst.simulation import make_client, make_hooks, start_maker
from pfedst.testing.small import trainer
from pfedst.transport.in_process import InProcess

RESULT = Path(__file__).resolve().parent / "results" / "pixels.json"
SIZES = {"train": (478, 216, 312, 134, 62, 56), "test": (205, 93, 134, 57, 26, 24)}
CLASSES, IMAGE_SIZE, BATCH_SIZE, LEARNING_RATE = 10, 16, 16, 0.05
BLOCK = 3
"""Rounds in turn: the last of a block waits for its state to be on disk, the others save while the next one trains."""
LARGEST_RATIO = 1.25
METHODS = ("FedAvg", "FedProx", "Ditto", "SCAFFOLD", "FedRep", "APFL")
Batch = tuple[Tensor, Tensor]


class CNN(WholeModel):
    """Twice convolution, batch norm, ReLU and pooling; then two linear layers: 44 thousand parameters."""

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.fc1, self.fc = nn.Linear(32 * (IMAGE_SIZE // 4) ** 2, 64), nn.Linear(64, len(head.class_names))

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K); the three channels of an image are equal."""
        x = F.max_pool2d(self.bn1(self.conv1(taps.tensors[0][:, :1])).relu(), 2)
        x = F.max_pool2d(self.bn2(self.conv2(x)).relu(), 2)
        logits: Tensor = self.fc(self.fc1(x.flatten(1)).relu())
        return logits


class SmallImages(FederatedDataModule):
    """Six sites of grey images.

    Args:
        digits: file with `x_train_0` (N, 1, 16, 16), `y_train_0` (N,) and so on; None for RANDOM images.
        options: see FederatedDataModule.
    """

    def __init__(self, digits: Path | None = None, **options: Any) -> None:
        super().__init__(BATCH_SIZE, validation_fraction=0, audit="off", verify_images=False, **options)
        self.arrays = None if digits is None else np.load(digits)
        self.label = "RANDOM images" if digits is None else digits.name

    def read(self) -> Sites:
        """Return images and labels."""
        rng = np.random.default_rng(0)

        def images(site: int, split: Split) -> LabelledImages:
            if self.arrays is None:
                count = SIZES[split][site]
                pixels: NDArray[Any] = rng.integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
                labels = rng.integers(0, CLASSES, count)
            else:
                pixels, labels = self.arrays[f"x_{split}_{site}"][:, 0], self.arrays[f"y_{split}_{site}"]
                pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).round().astype(np.uint8)
            return LabelledImages(ArraySource(np.repeat(pixels[..., None], 3, -1)), [int(label) for label in labels])

        sites = {f"site_{site}": {split: images(site, split) for split in SIZES} for site in range(len(SIZES["train"]))}
        return Sites([str(index) for index in range(CLASSES)], sites)


def client_of(method: FederatedMethod, data: FederatedDataModule, sites: Path | None = None) -> Client:
    """Make the client of all sites."""
    template = FederatedClient(Pixels(IMAGE_SIZE), CNN, "learned", optimizer=partial(SGD, lr=LEARNING_RATE), loss=None)
    return make_client(template, data, method, 0, LocalTrainer(trainer(max_epochs=method.fewest_local_epochs)), sites)


class OurRounds:
    """Rounds with evaluation, as the coordinator runs them."""

    def __init__(self, method: FederatedMethod, data: FederatedDataModule, folder: Path) -> None:
        run = RunFolder.create(folder, type(method).__name__, "run")
        client = client_of(method, data, run.path / SITES_FOLDER)
        transport = InProcess(client, 1)
        sites = {name: reply.values for name, reply in transport.hello(run.path.name).items()}
        samples = {name: values["samples"]["train"] for name, values in sites.items()}
        self.server = Server(client.method, samples, start_maker(client.model), 0)
        summary = RunSummary(describe(client.method, self.server.start, sites, 0, (), 1, 1.0, False), {})
        options = FederatedCoordinator(rounds=1, optimizer_state="reset").options
        self.loop = RoundLoop(options, self.server, transport, make_hooks(trainer(), client.module), run, summary)
        self.server.begin()
        self.loop.rounds = NEVER

    def round(self, number: int) -> None:
        self.loop.hooks.before_round(number)
        self.loop._end_round(number, self.loop._train_round(number))

    def wait(self) -> None:
        self.loop.saver.wait()

    def shared(self) -> Mapping[str, Tensor]:
        return self.server.state[NET]


# -- the same steps in plain PyTorch -----------------------------------------------------------------------------------


class BareRounds:
    """FedAvg on images in memory; methods change a step of it.

    Args:
        method: the plugin, whose options and initial weights are used.
        data: the same images.
    """

    epochs = 1

    def __init__(self, method: FederatedMethod, data: FederatedDataModule) -> None:
        self.method = method
        model = client_of(method, data).model
        self.model = model.adapter
        self.keys = model.partition.keys("shared")
        self.images: dict[tuple[str, str], Batch] = {
            (site, split): tuple(map(torch.cat, zip(*data.evaluation_loader(site, split), strict=True)))  # type: ignore[misc]
            for site in data.sites
            for split in ("train", "test")
        }
        self.samples = {site: data.samples(site, "train") for site in data.sites}
        state = self.model.state_dict()
        self.net = {key: state[key].clone() for key in self.keys}
        self.own = {site: copy.deepcopy(state) for site in self.samples}
        self.correct = 0

    def round(self, number: int) -> None:
        states = {}
        for site in self.samples:
            self.model.load_state_dict(self.own[site])
            self.model.load_state_dict(self.net, strict=False)
            self.fit(site, number)
            state = self.model.state_dict()
            states[site] = {key: state[key].clone() for key in self.keys}
            self.own[site] = {key: value.clone() for key, value in state.items()}
            self.evaluate(self.personal(site), site)
        for key in self.net:
            mean = torch.zeros(self.net[key].shape, dtype=torch.float64)
            for state in states.values():
                mean.add_(state[key].double(), alpha=1 / len(states))
            self.net[key] = mean.to(self.net[key].dtype)
        self.merged(number)
        for site in self.samples:
            self.model.load_state_dict(self.own[site])
            self.model.load_state_dict(self.net, strict=False)
            self.evaluate(self.model, site)
            if self.method.personalises:
                self.evaluate(self.personal(site), site)

    def fit(self, site: str, number: int) -> None:
        images, labels = self.images[site, "train"]
        sampler = SeededSampler(len(labels), BATCH_SIZE, derive_seed(0, "fit batches", site, number))
        optimizer = SGD(self.trained(site), lr=LEARNING_RATE)
        self.model.train()
        for epoch in range(self.epochs):
            sampler.set_epoch(epoch)
            self.begin_epoch(epoch)
            for draws in sampler:
                rows = torch.tensor(draws.positions)
                optimizer.zero_grad()
                self.loss(site, images[rows], labels[rows]).backward()
                self.edit(site)
                optimizer.step()

    def trained(self, site: str) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def begin_epoch(self, epoch: int) -> None:
        """Set what is trained."""

    def loss(self, site: str, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(Taps("images", (images,))), labels)

    def edit(self, site: str) -> None:
        """Change gradients."""

    def merged(self, number: int) -> None:
        """Change what the server keeps."""

    def personal(self, site: str) -> nn.Module:
        return self.model

    @torch.no_grad()
    def evaluate(self, model: nn.Module, site: str) -> None:
        images, labels = self.images[site, "test"]
        model.eval()
        self.correct += int((model(Taps("images", (images,))).argmax(1) == labels).sum())

    def wait(self) -> None:
        """Do nothing: no save is under way."""

    def shared(self) -> Mapping[str, Tensor]:
        return self.net


class BareProx(BareRounds):
    def edit(self, site: str) -> None:
        for key, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - self.net[key], alpha=self.method.mu)  # type: ignore[attr-defined]


class BareTwins(BareRounds):
    """Ditto."""

    def __init__(self, method: FederatedMethod, data: FederatedDataModule) -> None:
        super().__init__(method, data)
        self.twins = {site: copy.deepcopy(self.model) for site in self.samples}

    def trained(self, site: str) -> list[nn.Parameter]:
        self.twins[site].train()
        return [*self.model.parameters(), *self.twins[site].parameters()]

    def loss(self, site: str, images: Tensor, labels: Tensor) -> Tensor:
        own = F.cross_entropy(self.twins[site](Taps("images", (images,))), labels)
        return super().loss(site, images, labels) + own

    def edit(self, site: str) -> None:
        for key, parameter in self.twins[site].named_parameters():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - self.net[key], alpha=self.method.lam)  # type: ignore[attr-defined]

    def personal(self, site: str) -> nn.Module:
        return self.twins[site]


class BareMixture(BareTwins):
    """APFL."""

    def __init__(self, method: FederatedMethod, data: FederatedDataModule) -> None:
        super().__init__(method, data)
        self.shares = {site: nn.Parameter(torch.tensor(0.5)) for site in self.samples}

    def trained(self, site: str) -> list[nn.Parameter]:
        return [*super().trained(site), self.shares[site]]

    def mixture(self, site: str) -> dict[str, Tensor]:
        share, own = self.shares[site], dict(self.model.named_parameters())
        return {k: share * v + (1 - share) * own[k].detach() for k, v in self.twins[site].named_parameters()}

    def loss(self, site: str, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            self.shares[site].clamp_(0, 1)
        taps = Taps("images", (images,))
        mixed = functional_call(self.twins[site], self.mixture(site), (taps,))
        return F.cross_entropy(self.model(taps), labels) + F.cross_entropy(mixed, labels)

    def edit(self, site: str) -> None:
        """Change nothing."""

    def personal(self, site: str) -> nn.Module:
        mixed = copy.deepcopy(self.twins[site])
        mixed.load_state_dict({key: value.detach() for key, value in self.mixture(site).items()}, strict=False)
        return mixed


class BareControl(BareRounds):
    """SCAFFOLD."""

    def __init__(self, method: FederatedMethod, data: FederatedDataModule) -> None:
        super().__init__(method, data)
        self.zeros = {key: torch.zeros_like(value) for key, value in self.model.named_parameters()}
        self.control = copy.deepcopy(self.zeros)
        self.controls = {site: copy.deepcopy(self.zeros) for site in self.samples}
        self.sums = {site: copy.deepcopy(self.zeros) for site in self.samples}

    def edit(self, site: str) -> None:
        for key, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            self.sums[site][key].add_(parameter.grad)
            parameter.grad.add_(self.control[key] - self.controls[site][key])

    def merged(self, number: int) -> None:
        for site, count in self.samples.items():
            steps = -(-count // BATCH_SIZE)
            for key, control in self.controls[site].items():
                new = self.sums[site][key] / steps
                self.control[key] = self.control[key] + (new - control) / len(self.samples)
                self.controls[site][key] = new
                self.sums[site][key].zero_()


class BareTurns(BareRounds):
    """FedRep."""

    epochs = 2

    def begin_epoch(self, epoch: int) -> None:
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_((key not in self.keys) == (epoch == 0))
            parameter.grad = None


BARE: dict[str, type[BareRounds]] = {
    "FedAvg": BareRounds,
    "FedProx": BareProx,
    "Ditto": BareTwins,
    "SCAFFOLD": BareControl,
    "FedRep": BareTurns,
    "APFL": BareMixture,
}


# -- measurement -------------------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made(name: str) -> FederatedMethod:
    """Make a method with equal weights."""
    return registered_methods()[name](weighting="uniform")


def sides_of(name: str, digits: Path | None, folder: Path, cache: str = "images") -> tuple[OurRounds, BareRounds]:
    """Return both sides on the same images."""
    data = SmallImages(digits, cache=cache, cache_folder=folder / "cache")
    return OurRounds(made(name), data, folder), BARE[name](made(name), data)


def measure(name: str, digits: Path | None, rounds: int, folder: Path, cache: str = "images") -> dict[str, Any]:
    """Measure one method: processor seconds a round of both sides, and the median ratio of neighbouring blocks."""
    with one_thread():
        ours, bare = sides_of(name, digits, folder, cache)
        seen: dict[str, list[float]] = {"bare": [], "ours": []}
        for block in range(rounds // BLOCK + 1):
            sides: list[tuple[str, OurRounds | BareRounds]] = [("bare", bare), ("ours", ours)]
            for side_name, side in sides if block % 2 else reversed(sides):
                started = time.process_time()
                for number in range(block * BLOCK + 1, block * BLOCK + BLOCK + 1):
                    side.round(number)
                side.wait()
                seen[side_name].append((time.process_time() - started) / BLOCK)
        weights = {key: value for key, value in ours.shared().items() if value.is_floating_point()}
        distance = max(float((value - bare.shared()[key]).abs().max()) for key, value in weights.items())
    later = {side_name: of[1:] for side_name, of in seen.items()}
    return {
        "bare_seconds": statistics.median(later["bare"]),
        "our_seconds": statistics.median(later["ours"]),
        "ratio": statistics.median(a / b for a, b in zip(later["ours"], later["bare"], strict=True)),
        "ratio_fastest": min(later["ours"]) / min(later["bare"]),
        "distance": distance,
        "rounds": rounds,
        "cache": cache,
    }


def run(methods: list[str], digits: Path | None, rounds: int) -> None:
    rows = {}
    for name in methods:
        for cache in ("images", "none") if name == "FedAvg" else ("images",):
            with tempfile.TemporaryDirectory() as folder:
                rows[name if cache == "images" else f"{name}, files decoded"] = measure(
                    name, digits, rounds, Path(folder), cache
                )
            print(f"measured: {name}, cache {cache}", flush=True)
    label = "RANDOM images" if digits is None else digits.name
    save(RESULT, {"data": label, "rows": rows})


def profile(name: str, digits: Path | None, rounds: int) -> None:
    """Print where the time of our rounds goes."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        ours, _ = sides_of(name, digits, Path(folder))
        ours.round(1)
        profiler = cProfile.Profile(time.process_time)
        with profiler:
            for number in range(2, rounds + 2):
                ours.round(number)
        ours.wait()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(70)


def table() -> None:
    result = json.loads(RESULT.read_text())
    print(
        "| method | bare loop, processor seconds a round | pfedst | ratio | ratio of the fastest | difference "
        f"|\n|{'---|' * 6}"
    )
    for name, row in result["rows"].items():
        print(
            f"| {name} | {row['bare_seconds']:.3f} | {row['our_seconds']:.3f} | {row['ratio']:.2f} | "
            f"{row['ratio_fastest']:.2f} | {row['distance']:.1e} |"
        )
    first = next(iter(result["rows"].values()))
    print(
        f"\n{result['data']}; {len(SIZES['train'])} clients, {sum(SIZES['train']):,} training and "
        f"{sum(SIZES['test']):,} test images of {IMAGE_SIZE} px; CNN of 44 thousand parameters, batch {BATCH_SIZE}, "
        f"SGD {LEARNING_RATE}; {first['rounds']} rounds, 1 thread; medians over blocks of {BLOCK} rounds. Target: "
        f"a ratio of {LARGEST_RATIO} at most. Difference: the largest of a shared weight after all rounds. "
        "The bare loop sums the control variates of SCAFFOLD in another order: no difference after the first round, "
        "2e-7 after the second, and more with every step since then."
    )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--rounds", type=int, default=24)
    runs.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    runs.add_argument("--digits", type=Path)
    runs.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.command == "run" and given.profile:
        profile(given.methods[0], given.digits, given.rounds)
        return
    if given.command == "run":
        run(given.methods, given.digits, given.rounds)
    table()


if __name__ == "__main__":
    main()
