"""The rows of `step.py`: ways to fine-tune the same image tower for the same images, each as one training step.

Every row ends in the same frozen class anchors and uses pfedst's default optimiser (AdamW). The rows differ in the
trained parameters and in the layers through which the gradient passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.fedlora import FedLoRA
from torch import Tensor, nn
from torch.optim import Optimizer

from pfedst.client.module import FederatedClient, default_optimizer
from pfedst.encoders import FrozenCLIP, Taps
from pfedst.encoders.frozen_clip import LastBlock
from pfedst.encoders.towers import ImageTower
from pfedst.methods.interface import Batch, FederatedMethod
from pfedst.methods.pfedst import PFedST

CLASSES = 8
PROMPT_TOKENS = 10


@dataclass
class Row:
    """One way to train: `loss` of the current batch, for `parameters`.

    `held` are all parameters, including frozen ones: they are not activations of the step. A `compiled` row compiles in
    its first step.
    """

    loss: Callable[[], Tensor]
    parameters: Sequence[nn.Parameter]
    held: Sequence[nn.Parameter]
    compiled: bool = False
    optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = default_optimizer(self.parameters)

    def gradients(self) -> None:
        """Run forward, cross-entropy and backward."""
        self.optimizer.zero_grad()
        self.loss().backward()

    def step(self) -> None:
        """Run a whole training step."""
        self.gradients()
        self.optimizer.step()


@dataclass(frozen=True)
class Setting:
    """The common setting of all rows. Images and labels are random: only time and memory are measured."""

    model: str
    image_size: int
    batch_size: int
    device: torch.device

    def encoder(self, last_block: LastBlock = "class_token") -> FrozenCLIP:
        """Return the frozen encoder with random weights; the same object for all rows with this last block."""
        return _encoder(self, last_block)

    def images(self) -> Tensor:
        """A batch of random images."""
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def targets(self) -> Tensor:
        """Random labels of the images."""
        labels = torch.randint(CLASSES, (self.batch_size,), generator=torch.Generator().manual_seed(1))
        return labels.to(self.device)

    def client(self, encoder: FrozenCLIP, method: FederatedMethod) -> FederatedClient:
        """Return a client of a method, with random class anchors."""
        names = [f"class {index}" for index in range(CLASSES)]
        made = FederatedClient(encoder, anchors="prototypes").with_classes(names, method, run_seed=0)
        made.set_anchors(torch.randn(CLASSES, encoder.spec.embedding))
        return made.move_to(self.device).train()


@cache
def _encoder(setting: Setting, last_block: LastBlock) -> FrozenCLIP:
    return FrozenCLIP(setting.model, "random", setting.image_size, last_block).to(setting.device)


def full_fine_tuning(setting: Setting) -> Row:
    """Train every weight of the image tower."""
    encoder, images, targets = setting.encoder(), setting.images(), setting.targets()
    head = setting.client(encoder, FedCLIP()).adapter.head
    tower = copy.deepcopy(encoder.tower).requires_grad_(True).train()
    parameters = list(tower.parameters())
    return Row(lambda: F.cross_entropy(head(tower(images)), targets), parameters, parameters)


def lora_through_the_tower(setting: Setting) -> Row:
    """Train LoRA for queries and values of every block, as pfedst's LoRATower does by default."""
    return _of_images(setting, FedLoRA())


def visual_prompt_tuning(setting: Setting) -> Row:
    """Train additional tokens in the input of block 1 (VPT-shallow, Jia et al., ECCV 2022)."""
    encoder, images, targets = setting.encoder(), setting.images(), setting.targets()
    head = setting.client(encoder, FedCLIP()).adapter.head
    prompts = nn.Parameter(0.02 * torch.randn(PROMPT_TOKENS, encoder.spec.width, device=setting.device))

    def loss() -> Tensor:
        return F.cross_entropy(head(with_prompts(encoder.tower, images, prompts)), targets)

    return Row(loss, [prompts], [prompts, *encoder.tower.parameters()])


def with_prompts(tower: ImageTower, images: Tensor, prompts: Tensor) -> Tensor:
    """Return embeddings (B, E) of images (B, 3, H, W), with prompts (p, D) behind the class token in all blocks."""
    tokens = tower.embed(images)
    tokens = torch.cat([tokens[:, :1], prompts.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
    for block in tower.blocks[:-1]:
        tokens = block(tokens)
    return tower.project(tower.last_block_class_token(tokens))


def pfedst_recomputed(setting: Setting) -> Row:
    """Train the side network of pFedST with its LoRA; the frozen tower processes every batch without gradients."""
    return _of_images(setting, PFedST())


def pfedst_cached(setting: Setting) -> Row:
    """Train the side network of pFedST with its LoRA on taps in memory."""
    return _of_taps(setting, PFedST())


def pfedst_whole_last_block(setting: Setting) -> Row:
    """As `pfedst_cached`, with the last block computed for all tokens and not for the class token alone."""
    return _of_taps(setting, PFedST(), last_block="whole")


def pfedst_bfloat16(setting: Setting) -> Row:
    """As `pfedst_cached` under autocast: products in bfloat16, weights in float32. The taps are float32."""
    return _of_taps(setting, PFedST(), autocast=True)


def pfedst_compiled(setting: Setting) -> Row:
    """As `pfedst_cached` with the ladder compiled by torch.compile."""
    return _of_taps(setting, PFedST(), compiled=True)


def small_head(setting: Setting) -> Row:
    """Train FedCLIP's attention over the channels of the image embedding, which is in memory."""
    return _of_taps(setting, FedCLIP())


def _of_images(setting: Setting, method: FederatedMethod) -> Row:
    encoder, images, targets = setting.encoder(), setting.images(), setting.targets()
    client = setting.client(encoder, method)

    def loss() -> Tensor:
        return method.loss(client, Batch(client.taps_of(images), targets))

    return _row(client, encoder, loss)


def _of_taps(
    setting: Setting,
    method: FederatedMethod,
    last_block: LastBlock = "class_token",
    autocast: bool = False,
    compiled: bool = False,
) -> Row:
    """Return a row on random taps: the time of a step does not depend on their values."""
    encoder = setting.encoder(last_block)
    client = setting.client(encoder, method)
    batch = Batch(_random_taps(setting, client), setting.targets())
    if compiled:
        client.adapter.get_submodule("side").compile()

    def loss() -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16) if autocast else nullcontext():
            return method.loss(client, batch)

    return _row(client, encoder, loss, compiled)


def _random_taps(setting: Setting, client: FederatedClient) -> Taps:
    spec, need = client.encoder.spec, client.adapter.needs
    generator = torch.Generator().manual_seed(2)
    if need == "pooled":
        shapes = [(setting.batch_size, spec.embedding)]
    else:
        shapes = [(setting.batch_size, spec.tokens, spec.width)] * spec.layers
    return Taps(need, tuple(torch.randn(shape, generator=generator).to(setting.device) for shape in shapes))


def _row(client: FederatedClient, encoder: FrozenCLIP, loss: Callable[[], Tensor], compiled: bool = False) -> Row:
    trained = dict(client.named_parameters())
    parameters = [trained[key] for key in client.learnable]
    return Row(loss, parameters, [*trained.values(), *encoder.tower.parameters()], compiled)


CACHED, RECOMPUTED, LORA = "pFedST, cached taps", "pFedST, tower recomputed", "LoRA through the tower"
COMPILED = "pFedST, cached taps, compiled ladder"
ROWS: dict[str, Callable[[Setting], Row]] = {
    "full fine-tuning of the image tower": full_fine_tuning,
    LORA: lora_through_the_tower,
    f"visual prompt tuning, {PROMPT_TOKENS} tokens": visual_prompt_tuning,
    RECOMPUTED: pfedst_recomputed,
    CACHED: pfedst_cached,
    "pFedST, cached taps, whole last block": pfedst_whole_last_block,
    "pFedST, cached taps, bfloat16 autocast": pfedst_bfloat16,
    COMPILED: pfedst_compiled,
    "attention head of FedCLIP, cached embedding": small_head,
}
