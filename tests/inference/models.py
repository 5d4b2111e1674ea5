"""Small models with a side network that was not trained, and pictures for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from pfedst.adapters import Adapter, SideNetwork, WholeModel, lora_layers
from pfedst.encoders import AnchorHead, FrozenCLIP
from pfedst.inference.site_model import SiteModel
from pfedst.seeds import generator, seeded

CLASSES = ("nevus", "melanoma", "keratosis")


def head_of(encoder) -> AnchorHead:
    if not encoder.spec.layers:
        return AnchorHead(CLASSES, encoder.spec.embedding, encoder.logit_scale, "learned")
    head = AnchorHead(CLASSES, encoder.spec.embedding, encoder.logit_scale, "prototypes")
    head.set_anchors(torch.randn(len(CLASSES), encoder.spec.embedding, generator=generator(3)))
    return head


def moved(adapter: Adapter, seed: int = 5) -> Adapter:
    """The adapter with parameters that are not at their start."""
    random = generator(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return adapter.eval().requires_grad_(False)


def side_network(encoder, seed: int = 5, **options) -> SideNetwork:
    with seeded(seed):
        adapter = SideNetwork(encoder, head_of(encoder), **options)
        for _, layer in lora_layers(adapter):
            layer.attach_lora(2, 4.0)
    return moved(adapter, seed)


def site_model(encoder: FrozenCLIP, which="personal", seed=5, **about) -> SiteModel:
    site = "north" if which == "personal" else None
    return SiteModel(encoder, side_network(encoder, seed), CLASSES, which, site, **about)


def pictures(folder: Path, count: int = 8, size: tuple[int, int] = (50, 41)) -> list[Path]:
    """Image files, larger than the input and not square, with bright and dark parts."""
    random, files = np.random.default_rng(0), []
    for number in range(count):
        coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(files[-1])
    return files


class SmallCNN(WholeModel):
    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        with seeded(4):
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.fc = nn.Linear(4, len(head.class_names))

    def forward(self, taps):
        return self.fc(self.layers(taps.tensors[0]).flatten(1))
