"""The side network against METHOD's facts: starts as the encoder, sizes, gradients through block L only."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfedst.adapters import LoRALinear, SideNetwork, lora_layers
from pfedst.encoders import AnchorHead, FrozenCLIP
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded

CLASSES = 3


def make(encoder, seed=0, lora_rank=0, **options) -> SideNetwork:
    with seeded(seed):
        head = AnchorHead(
            [f"class {k}" for k in range(CLASSES)], encoder.spec.embedding, encoder.logit_scale, "prototypes"
        )
        head.set_anchors(torch.randn(CLASSES, encoder.spec.embedding, generator=generator(3)))
        network = SideNetwork(encoder, head, **options)
        for _, layer in lora_layers(network) if lora_rank else []:
            layer.attach_lora(lora_rank, 8.0)
    return network


def images(encoder, count=2):
    size = encoder.spec.image_size
    return torch.randn(count, 3, size, size, generator=generator(1))


def trained(network: nn.Module) -> None:
    """Move every parameter, so that nothing is at its start."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator(parameter.numel()))


@pytest.mark.parametrize("last_block", ["class_token", "whole"])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("options", [{}, {"gate": "learned", "feed_forward_ratio": 2.0, "tap_norm": "affine"}])
def test_untrained_predicts_as_the_encoder(last_block, lora_rank, options) -> None:
    encoder = FrozenCLIP("vit-nano", weights="random", last_block=last_block)
    network, batch = make(encoder, lora_rank=lora_rank, **options), images(encoder, 8)
    with torch.no_grad():
        own = network.head(encoder.extract(batch, "pooled").tensors[0])
        # the last block runs within the encoder here and within the network there; logits are up to 100
        assert torch.allclose(network(encoder.extract(batch, "taps")), own, atol=1e-4)


def reference(network: SideNetwork, taps):
    """The ladder written out from the method's equations, one head at a time, two-branch LoRA."""

    def linear(layer, x):
        y = x @ layer.weight.T + layer.bias
        if isinstance(layer, LoRALinear) and layer.lora_A is not None:
            y = y + layer.lora_scale * (x @ layer.lora_A.T) @ layer.lora_B.T
        return y

    def normalised(z):
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    side = network.side
    p = [linear(side.down[i], normalised(z)) for i, z in enumerate(taps)]
    x = p[0]
    for i, block in enumerate(side.blocks, start=1):
        y = normalised(x) * block.norm.weight + block.norm.bias
        q, k, v = linear(block.qkv, y).chunk(3, -1)
        width = x.shape[-1] // block.heads
        heads = []
        for h in range(block.heads):
            part = slice(h * width, (h + 1) * width)
            attention = (q[..., part] @ k[..., part].transpose(1, 2) / width**0.5).softmax(-1)
            heads.append(attention @ v[..., part])
        x = x + linear(block.o, torch.cat(heads, -1)) + p[i]
    return linear(side.up, x)


def test_the_ladder_is_what_the_equations_say() -> None:
    encoder = FrozenCLIP("vit-nano", weights="random")
    network = make(encoder, lora_rank=2, width=64, head_width=32)
    trained(network.side)
    taps = encoder.extract(images(encoder), "taps").tensors
    with torch.no_grad():
        assert torch.allclose(network.side(taps), reference(network, taps), rtol=1e-4, atol=1e-4)


def test_options_change_the_model_once_it_is_trained() -> None:
    encoder = FrozenCLIP("vit-nano", weights="random")
    taps = encoder.extract(images(encoder), "taps")
    outputs = []
    for options in (
        {},
        {"gate": "learned"},
        {"tap_norm": "none"},
        {"tap_norm": "affine"},
        {"feed_forward_ratio": 1.0},
    ):
        network = make(encoder, **options)
        trained(network.side)
        outputs.append(network(taps).detach())
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_sizes_on_vit_b_16() -> None:
    with torch.device("meta"):
        encoder = FrozenCLIP("ViT-B-16-quickgelu", weights="random")
        head = AnchorHead("abcdefgh", encoder.spec.embedding, 100.0, "prototypes")
        network = SideNetwork(encoder, head)
        shared = sum(p.numel() for p in network.parameters())
        for _, layer in lora_layers(network):
            layer.attach_lora(8, 8.0)
    # by hand, W = 96: 12 (768 * 96 + 96) + 11 (2 * 96 + 96 * 288 + 288 + 96 * 96 + 96) + (96 * 768 + 768)
    assert shared == 1_372_224
    # 12 * 8 (768 + 96) + 11 * 8 (96 + 96) + 8 (96 + 768)
    assert sum(p.numel() for p in network.parameters()) - shared == 106_752
    assert len(network.side.down) == 12
    assert len(network.side.blocks) == 11
    assert len(lora_layers(network)) == 12 + 11 + 1


def test_names_in_the_state_dict() -> None:
    encoder = FrozenCLIP("vit-nano", weights="random")
    keys = set(make(encoder, lora_rank=2).state_dict())
    layers = encoder.spec.layers
    parts = {f"side.down.{i}" for i in range(layers)} | {f"side.blocks.{j}.o" for j in range(layers - 1)} | {"side.up"}
    expected = {f"{part}.{name}" for part in parts for name in ("weight", "bias", "lora_A", "lora_B")}
    expected |= {
        f"side.blocks.{j}.{part}.{n}" for j in range(layers - 1) for part in ("norm", "qkv") for n in ("weight", "bias")
    }
    assert keys == expected


def test_only_the_last_block_is_crossed_by_gradients() -> None:
    """Of all that autograd keeps for backward, nothing lies in blocks 1 .. L-1 of the tower."""
    encoder = FrozenCLIP("vit-nano", weights="random")
    network = make(encoder, lora_rank=2)
    trained(network.side)
    early, late = (
        set(),
        set(),
    )  # storages of weights and activations; kept alive so that no address is used twice
    alive = []

    def watch(module, storages):
        for parameter in module.parameters():
            storages.add(parameter.untyped_storage().data_ptr())

        def record(_, inputs, output):
            for tensor in (*inputs, output):
                if isinstance(tensor, torch.Tensor):
                    alive.append(tensor)
                    storages.add(tensor.untyped_storage().data_ptr())

        return [m.register_forward_hook(record) for m in module.modules()]

    handles = [hook for block in encoder.tower.blocks[:-1] for hook in watch(block, early)]
    for parameter in encoder.tower.blocks[-1].parameters():
        late.add(parameter.untyped_storage().data_ptr())
    saved = []

    def keep(tensor):
        saved.append(tensor.untyped_storage().data_ptr())
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(network(encoder.extract(images(encoder), "taps")), torch.tensor([0, 1]))
    for handle in handles:
        handle.remove()
    loss.backward()
    assert len(early) > 12 * (encoder.spec.layers - 1)  # the watch saw weights and activations
    assert not early & set(saved)
    assert late & set(saved)  # block L is crossed
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_encoder_is_no_part_of_the_module() -> None:
    encoder = FrozenCLIP("vit-nano", weights="random")
    network = make(encoder)
    assert copy.deepcopy(network).encoder is encoder
    assert all(key.startswith("side.") for key in network.state_dict())


@pytest.mark.parametrize(
    ("options", "word"), [({"width": 40}, "40"), ({"width": 0}, "0"), ({"head_width": 0}, "head_width")]
)
def test_wrong_sizes_are_refused(options, word) -> None:
    with pytest.raises(ConfigurationError, match=word):
        make(FrozenCLIP("vit-nano", weights="random"), **options)
