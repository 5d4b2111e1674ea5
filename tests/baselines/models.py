"""Plain models on pixels, and a federation of tensors: small enough that every step can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from pfedst.adapters import Adapter, WholeModel
from pfedst.client.client import Client
from pfedst.client.model import ClientModel
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.encoders import AnchorHead, Encoder, Pixels, Taps
from pfedst.messages.payload import NET, State
from pfedst.methods.interface import Batch, FederatedMethod
from pfedst.seeds import derive_seed, generator
from pfedst.testing import trainer
from pfedst.testing.federation import Federation

Site = tuple[Tensor, Tensor]
"""Images, and class indices."""

LR = 0.1
START = torch.tensor([0.5, -0.25], dtype=torch.float64)
"""Where the quadratic models start."""
PLAIN_SGD = partial(SGD, lr=LR)


class Quadratic(WholeModel):
    """A model w whose cross-entropy with class 0 is 1 + sum of a / 2 (w - b)^2, for an "image" of rows a and b.

    The logits are 0, log(exp(f) - 1) and one without effect, so that the cross-entropy is softplus of the second: f itself, and a (w - b)
    is the gradient that reaches w through the very loss that methods use.
    """

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        self.w = nn.Parameter(START.clone())

    def forward(self, taps: Taps) -> Tensor:
        a, b = taps.tensors[0].unbind(1)
        f = 1 + (a / 2 * (self.w - b).square()).sum(-1)
        never = torch.full_like(f, -1e30)  # of a third class: its probability is 0
        return torch.stack([torch.zeros_like(f), f.expm1().log(), never], -1)


class Linear(WholeModel):
    """One linear layer on the pixels."""

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        self.fc = nn.Linear(3 * encoder.spec.image_size**2, len(head.class_names))

    def forward(self, taps: Taps) -> Tensor:
        return self.fc(taps.tensors[0].flatten(1))


class CNN(WholeModel):
    """Twice convolution, batch norm, ReLU and pooling; then `fc1`, ReLU and the classifier `fc`."""

    def __init__(
        self,
        encoder: Encoder,
        head: AnchorHead,
        channels: tuple[int, int] = (4, 6),
        hidden: int = 8,
        start: State | None = None,
    ) -> None:
        super().__init__(encoder, head)
        first, second = channels
        self.conv1, self.bn1 = nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second)
        self.fc1 = nn.Linear(second * (encoder.spec.image_size // 4) ** 2, hidden)
        self.fc = nn.Linear(hidden, len(head.class_names))
        if start:
            self.load_state_dict(start)

    def forward(self, taps: Taps) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(taps.tensors[0])).relu(), 2)
        x = F.max_pool2d(self.bn2(self.conv2(x)).relu(), 2)
        return self.fc(self.fc1(x.flatten(1)).relu())


class Residual(WholeModel):
    """A block as in ResNet and a LayerNorm: two of its three norm layers bear no "bn" in their names."""

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        self.final = nn.LayerNorm(4)
        self.fc = nn.Linear(4, len(head.class_names))

    def forward(self, taps: Taps) -> Tensor:
        images = taps.tensors[0]
        x = (self.bn1(self.conv1(images)) + self.downsample(images)).relu()
        return self.fc(self.final(x.mean((2, 3))))


def quadratic(curve: Tensor, rows: int) -> Site:
    """A site of equal rows of the loss a / 2 (w - b)^2; a and b are the rows of `curve`."""
    return curve.expand(rows, *curve.shape), torch.zeros(rows, dtype=torch.long)


def pictures(name: str, rows: int, side: int = 8, classes: int = 3) -> Site:
    """Random images (rows, 1, side, side) of a site, brighter for higher classes, with its own contrast."""
    noise = generator(derive_seed(0, "pictures", name))
    labels = torch.randint(classes, (rows,), generator=noise)
    contrast = 0.5 + torch.rand(1, generator=noise)
    images = torch.randn(rows, 1, side, side, generator=noise) + labels[:, None, None, None]
    return contrast * images, labels


class TensorSites:
    """Of a data module the part that a server and its clients ask for names and sizes."""

    def __init__(self, sites: Mapping[str, Site], classes: int) -> None:
        self.sites, self.classes = tuple(sites), classes
        self.labels = {name: labels for name, (_, labels) in sites.items()}

    def samples(self, site: str, split: str) -> int:
        return len(self.labels[site]) if split == "train" else 0

    def class_counts(self, site: str, split: str) -> list[int]:
        counts = torch.bincount(self.labels[site], minlength=self.classes)
        return [int(number) for number in counts]

    def sampled_counts(self, sites: Sequence[str]) -> list[int]:
        return [sum(counts) for counts in zip(*(self.class_counts(site, "train") for site in sites), strict=True)]


class Small(Federation):
    """A federation whose sites are tensors in memory, taken in their order: one batch a site, or `batch_size` rows."""

    def __init__(
        self,
        method: FederatedMethod,
        adapter: Callable[..., Adapter],
        sites: Mapping[str, Site],
        optimizer: Callable[..., Any] = PLAIN_SGD,
        batch_size: int | None = None,
        classes: int = 3,
        held_out: Sequence[str] = (),
    ) -> None:
        side = next(iter(sites.values()))[0].shape[-1]
        template = FederatedClient(Pixels(side), adapter, "learned", optimizer=optimizer, loss=None)
        self.local = LocalTrainer(trainer())
        names = [str(index) for index in range(classes)]
        built = template.build(names, method, 0)
        super().__init__(Client(built, TensorSites(sites, classes), self.local, 0, sites=None, held_out=held_out), 0)
        self.tensors = sites
        self.loaders = {
            name: DataLoader(TensorDataset(*site), batch_size or len(site[1])) for name, site in sites.items()
        }
        self.begin()

    def batch(self, name: str) -> Batch:
        """All of a site."""
        images, labels = self.tensors[name]
        return Batch(self.clients[name].taps_of(images), labels)

    def fit(self, name: str, epochs: int = 1) -> ClientModel:
        """Send to a client and train it; nothing is merged."""
        self.deliver(name)
        self.local.fit(self.modules[name], self.loaders[name], epochs)
        return self.clients[name]

    def schedule(self, factor: float) -> None:
        """Multiply the learning rates of the next fits."""
        for client in self.members.values():
            client.lr_factor = factor

    def round(self, epochs: int = 1, names: Iterable[str] | None = None) -> None:
        """One round of all clients that train, or of those named."""
        taking_part = self.server.draw(1, 1.0) if names is None else list(names)
        for name in taking_part:
            self.fit(name, epochs)
        self.merge({name: self.collect(name) for name in taking_part})

    def rounds(self, number: int, epochs: int = 1) -> Small:
        """Several rounds; every client then takes the last message. Returns itself."""
        for _ in range(number):
            self.round(epochs)
        for name in self.clients:
            self.deliver(name)
        return self

    def logits(self, name: str) -> Tensor:
        """What the personal model of a client gives for all of its site."""
        return self.method.personal_model(self.clients[name]).eval()(self.batch(name).taps)

    @property
    def net(self) -> State:
        """The server's model."""
        return self.state[NET]


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float = 1e-6) -> bool:
    """Whether two states with the same keys differ by rounding at most."""
    return one.keys() == other.keys() and all(
        torch.allclose(one[key].double(), other[key].double(), rtol=0, atol=atol) for key in one
    )


def copied(state: Mapping[str, Tensor]) -> State:
    """Values that later training does not change."""
    return {key: value.detach().clone() for key, value in state.items()}


def parameters(client: ClientModel) -> State:
    """Values of the adapter's parameters, without its buffers."""
    return copied(dict(client.adapter.named_parameters()))
