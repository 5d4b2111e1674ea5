"""LoRA in the image tower against its two-branch form, and against peft."""

import copy
from functools import partial

import pytest
import torch
from pfedst_baselines.fedlora import FedLoRA
from torch.optim import AdamW

from pfedst.adapters import LoRATower
from pfedst.client.module import FederatedClient
from pfedst.encoders import AnchorHead, FrozenCLIP, Taps
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded
from pfedst.testing import fit

NANO, TIMM = "vit-nano", "timm/test_vit"
ALL = ("q", "k", "v", "o", "mlp_in", "mlp_out")
LAST_BLOCKS = ("class_token", "whole")
TOWERS = {(model, last): FrozenCLIP(model, "random", 32, last) for model in (NANO, TIMM) for last in LAST_BLOCKS}


def make(model=NANO, last="class_token", trained=True, **options) -> LoRATower:
    source = TOWERS[model, last]
    with seeded(0):
        head = AnchorHead("abc", source.spec.embedding, source.logit_scale, "prototypes")
        head.set_anchors(torch.randn(3, source.spec.embedding))
        adapter = LoRATower(source, head, **options)
    if trained:
        move(adapter)
    return adapter


def move(adapter, seed=5) -> None:
    """Leave the start, where B is zero; a seed a parameter."""
    for index, parameter in enumerate(adapter.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(seed + index))


def images(count=3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=generator(1))


def embed(adapter) -> torch.Tensor:
    return adapter.embed(Taps("images", (images(),)))


def two_branches(adapter, batch) -> torch.Tensor:
    """The tower written out: every linear layer's own output plus scale * B (A x), one head at a time."""
    tower, layers = adapter.encoder.tower, dict(adapter.named_parameters())
    x = tower.embed(batch)
    for index, block in enumerate(tower.blocks):
        open_clip = hasattr(block, "ln_1")
        attention, mlp = block.attn, block.mlp
        if open_clip:
            norms, scales, heads = (block.ln_1, block.ln_2), (block.ls_1, block.ls_2), attention.num_heads
            qkv, o = (attention.in_proj_weight, attention.in_proj_bias), attention.out_proj
            mlp_in, activation, mlp_out = mlp.c_fc, mlp.gelu, mlp.c_proj
        else:
            norms, scales, heads = (block.norm1, block.norm2), (block.ls1, block.ls2), attention.num_heads
            qkv, o = (attention.qkv.weight, attention.qkv.bias), attention.proj
            mlp_in, activation, mlp_out = mlp.fc1, mlp.act, mlp.fc2

        def linear(target, weight, bias, y, index=index):
            out = y @ weight.T + bias
            for name, strength in adapter.strengths.items():
                key = f"{name}.{index}.{target}"
                if f"{key}.A" in layers:
                    out = out + strength * adapter.scale * (y @ layers[f"{key}.A"].T) @ layers[f"{key}.B"].T
            return out

        y = norms[0](x)
        q, k, v = (linear(t, w, b, y) for t, w, b in zip("qkv", qkv[0].chunk(3), qkv[1].chunk(3), strict=True))
        parts = zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True)
        attended = [(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in parts]
        x = x + scales[0](linear("o", o.weight, o.bias, torch.cat(attended, -1)))
        y = activation(linear("mlp_in", mlp_in.weight, mlp_in.bias, norms[1](x)))
        x = x + scales[1](linear("mlp_out", mlp_out.weight, mlp_out.bias, y))
    return tower.project(x[:, 0])


def pull(embeddings) -> torch.Tensor:
    """A smooth scalar in which every channel of every image counts."""
    return (embeddings * torch.randn(embeddings.shape, generator=generator(2))).sum()


def gradients(adapter, embeddings) -> dict[str, torch.Tensor]:
    adapter.zero_grad()
    pull(embeddings).backward()
    return {key: parameter.grad.clone() for key, parameter in adapter.named_parameters()}


def close(one, other, tolerance=1e-5) -> bool:
    """To a tolerance relative to the largest number."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


# -- the update --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", LAST_BLOCKS)
@pytest.mark.parametrize("model", [NANO, TIMM])
def test_untrained_it_is_the_frozen_tower(model, last) -> None:
    adapter = make(model, last, trained=False, targets=ALL)
    with torch.no_grad():
        frozen = adapter.encoder.extract(images(), "pooled").tensors[0]
        assert (embed(adapter) - frozen).abs().max() < 1e-5
        move(adapter)
        assert not close(embed(adapter), frozen, 0.01)


@pytest.mark.parametrize("targets", [ALL, ("q", "v"), *((target,) for target in ALL)])
@pytest.mark.parametrize("last", LAST_BLOCKS)
@pytest.mark.parametrize("model", [NANO, TIMM])
def test_merged_form_equals_the_two_branch_form_with_its_gradients(model, last, targets) -> None:
    adapter = make(model, last, targets=targets, rank=4, alpha=6.0)
    merged, branches = embed(adapter), two_branches(adapter, images())
    assert close(merged, branches)
    mine, theirs = gradients(adapter, merged), gradients(adapter, branches)
    assert set(mine) == {f"lora.{i}.{t}.{n}" for i in range(adapter.encoder.spec.layers) for t in targets for n in "AB"}
    assert all(close(mine[key], theirs[key], 3e-5) for key in theirs)
    assert all(gradient.norm() > 0 for gradient in mine.values())


@pytest.mark.parametrize("model", [NANO, TIMM])
def test_shapes_of_the_updates(model) -> None:
    """B A fits layers that are not square: mlp_in widens, mlp_out narrows."""
    adapter = make(model, targets=ALL, rank=4)
    width, hidden = 64, {NANO: 256, TIMM: 192}[model]
    shapes = {key.partition("lora.0.")[2]: tuple(p.shape) for key, p in adapter.named_parameters()}
    assert shapes["mlp_in.A"] == (4, width)
    assert shapes["mlp_in.B"] == (hidden, 4)
    assert shapes["mlp_out.A"] == (4, hidden)
    assert shapes["mlp_out.B"] == (width, 4)
    assert all(shapes[f"{t}.A"] == (4, width) and shapes[f"{t}.B"] == (width, 4) for t in ("q", "k", "v", "o"))


def test_the_scale_is_alpha_over_rank() -> None:
    with torch.no_grad():
        one, other = (make(rank=4, alpha=alpha).weights()[0]["q"] for alpha in (4.0, 8.0))
        frozen = TOWERS[NANO, "class_token"].block_weights(["q"])[0]["q"]
    assert torch.allclose(other - frozen, 2 * (one - frozen), atol=1e-5)
    adapter = make(rank=4, alpha=8.0)
    update = adapter.get_submodule("lora.0.q")
    assert torch.allclose(other - frozen, 2.0 * update.B @ update.A, atol=1e-5)


def test_a_starts_as_a_linear_layer_does_and_b_at_zero() -> None:
    adapter = make(trained=False, rank=4)
    for key, parameter in adapter.named_parameters():
        if key.endswith("B"):
            assert not parameter.any()
        else:
            assert 0.9 / 64**0.5 < parameter.abs().max() <= 1 / 64**0.5


# -- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_blocks", [1, 2, 4])
def test_no_gradient_passes_below_the_last_blocks(last_blocks) -> None:
    adapter = make(last_blocks=last_blocks, targets=ALL)
    assert {key.split(".")[1] for key in adapter.state_dict()} == {str(i) for i in range(4 - last_blocks, 4)}
    crossed, hooks = {}, []
    for index, block in enumerate(adapter.encoder.tower.blocks):
        hooks.append(
            block.ln_1.register_forward_hook(lambda _, i, o, index=index: crossed.update({index: o.requires_grad}))
        )
    embeddings = embed(adapter)
    for hook in hooks:
        hook.remove()
    assert crossed == {index: index > 4 - last_blocks for index in range(4)}
    assert close(embeddings, two_branches(adapter, images()))
    assert all(gradient.norm() > 0 for gradient in gradients(adapter, embeddings).values())


# -- branches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strengths", [{}, {"lora": 0.5, "personal": 0.5}, {"personal": -2.0}, {"personal": 0.0}])
def test_branches_add_up_with_their_strengths(strengths) -> None:
    adapter = make(targets=ALL, rank=2)
    adapter.add_branch("personal")
    move(adapter)
    with adapter.strength(**strengths):
        assert adapter.strengths == {"lora": 1.0, "personal": 1.0} | strengths
        merged, branches = embed(adapter), two_branches(adapter, images())
    assert adapter.strengths == {"lora": 1.0, "personal": 1.0}
    assert close(merged, branches)
    if 0.0 not in strengths.values():
        mine, theirs = gradients(adapter, merged), gradients(adapter, branches)
        assert all(close(mine[key], theirs[key], 3e-5) for key in theirs)


def test_a_branch_starts_at_zero_and_one_of_no_strength_gets_no_gradient() -> None:
    adapter = make()
    before = embed(adapter).detach()
    adapter.add_branch("personal")
    assert close(embed(adapter).detach(), before, 1e-6)
    assert len({key.partition(".")[2] for key in adapter.state_dict()}) == len(adapter.state_dict()) / 2
    move(adapter)
    with adapter.strength(personal=0.0):
        pull(embed(adapter)).backward()
    for key, parameter in adapter.named_parameters():
        assert (parameter.grad is None) == key.startswith("personal.")


def test_strengths_come_back_after_an_error() -> None:
    adapter = make()
    with pytest.raises(RuntimeError), adapter.strength(lora=0.0):
        raise RuntimeError
    assert adapter.strengths == {"lora": 1.0}


def test_copies_have_strengths_of_their_own() -> None:
    adapter = make()
    copied = copy.deepcopy(adapter)
    copied.strengths["lora"] = 0.0
    assert adapter.strengths == {"lora": 1.0}
    assert copied.encoder is adapter.encoder


# -- the shared tower --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [NANO, TIMM])
def test_the_shared_tower_is_never_changed(model, tmp_path) -> None:
    """Neither by a forward pass with other weights in it, nor by a run; its gradients stay empty."""
    source = TOWERS[model, "class_token"]
    before = source.compute_hash()
    frozen = source.extract(images(), "pooled").tensors[0]
    adapter = make(model, targets=ALL)
    gradients(adapter, embed(adapter))
    assert torch.equal(source.extract(images(), "pooled").tensors[0], frozen)
    everywhere = partial(LoRATower, targets=ALL)
    fit(tmp_path, FedLoRA(), model=FederatedClient(source, everywhere, "prototypes", optimizer=partial(AdamW, lr=0.01)))
    assert source.compute_hash() == before
    assert all(p.grad is None and not p.requires_grad for p in source.tower.parameters())
    own = {t.untyped_storage().data_ptr() for t in source.tower.parameters()}
    assert not own & {t.untyped_storage().data_ptr() for t in adapter.state_dict().values()}


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank 0: must be from 1 to 64"),
        ({"rank": 65}, "rank 65: must be from 1 to 64"),
        ({"last_blocks": 5}, "last_blocks 5: must be from 1 to 4"),
        ({"last_blocks": 0}, "last_blocks 0: must be from 1 to 4"),
        ({"last_blocks": -1}, "last_blocks -1: must be from 1 to 4"),
        ({"targets": ()}, "at least one"),
        ({"targets": ("q", "q")}, "each layer once"),
    ],
)
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(trained=False, **options)


# -- an independent implementation -------------------------------------------------------------------------------


def with_peft(adapter, rank, alpha, modules):
    """A copy of the timm ViT with peft's LoRA in it, and the tower around it."""
    peft = pytest.importorskip("peft")
    vit = copy.deepcopy(adapter.encoder.tower.vit)
    return peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules), vit)


def factors(vit, index, module):
    layer = vit.blocks[index].get_submodule(module)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


PLAIN = {"o": "attn.proj", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}


@pytest.mark.parametrize("last", LAST_BLOCKS)
def test_peft_in_plain_layers_gives_the_same_embeddings_and_gradients(last) -> None:
    adapter = make(TIMM, last, targets=tuple(PLAIN), rank=4, alpha=6.0)
    vit = with_peft(adapter, 4, 6.0, list(PLAIN.values()))
    pairs = [
        (adapter.get_submodule(f"lora.{index}.{target}"), factors(vit, index, module))
        for index in range(adapter.encoder.spec.layers)
        for target, module in PLAIN.items()
    ]
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs[0].copy_(mine.A)
            theirs[1].copy_(mine.B)
    embeddings, expected = embed(adapter), vit(images())
    assert close(embeddings, expected)
    gradients(adapter, embeddings)
    pull(expected).backward()
    assert len(pairs) == 3 * 6
    for mine, theirs in pairs:
        assert close(mine.A.grad, theirs[0].grad, 3e-5)
        assert close(mine.B.grad, theirs[1].grad, 3e-5)


@pytest.mark.parametrize("last", LAST_BLOCKS)
def test_peft_in_the_fused_layer_gives_the_same_queries_and_values(last) -> None:
    """Of qkv (3D, D) the update of q and v alone is [[B_q, 0], [0, 0], [0, B_v]] [A_q; A_v], of twice the rank."""
    r, D = 4, 64
    adapter = make(TIMM, last, targets=("q", "v"), rank=r, alpha=6.0)
    vit = with_peft(adapter, 2 * r, 12.0, ["attn.qkv"])
    for index in range(adapter.encoder.spec.layers):
        q, v = (adapter.get_submodule(f"lora.{index}.{target}") for target in "qv")
        A, B = factors(vit, index, "attn.qkv")
        with torch.no_grad():
            A.copy_(torch.cat([q.A, v.A]))
            B.zero_()
            B[:D, :r], B[2 * D :, r:] = q.B, v.B
    embeddings, expected = embed(adapter), vit(images())
    assert close(embeddings, expected)
    gradients(adapter, embeddings)
    pull(expected).backward()
    for index in range(adapter.encoder.spec.layers):
        q, v = (adapter.get_submodule(f"lora.{index}.{target}") for target in "qv")
        A, B = factors(vit, index, "attn.qkv")
        assert close(torch.cat([q.A.grad, v.A.grad]), A.grad, 3e-5)
        assert close(q.B.grad, B.grad[:D, :r], 3e-5)
        assert close(v.B.grad, B.grad[2 * D :, r:], 3e-5)
