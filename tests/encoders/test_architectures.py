"""Towers of open_clip and timm, small, against the forward passes of these libraries; and the table of the docs."""

import importlib
import json
from pathlib import Path

import pytest
import timm
import torch

from pfedst.adapters import LoRATower, SideNetwork, TransportPrompts
from pfedst.encoders import AnchorHead, FrozenCLIP
from pfedst.encoders.timm_towers import TimmTower, runs_block_by_block
from pfedst.encoders.towers import pooled_patches
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator
from tests.encoders.tiny import SIZE, lively, tiny

__all__ = ["tiny"]
ROOT = Path(__file__).parents[2]
CLASS_TOKEN = {
    "ViT-B-16-quickgelu": 1,
    "BiomedCLIP": 1,
    "EVA02-B-16": 1,
    "timm/vit_small_patch16_dinov3": 5,
    "timm/vit_small_plus_patch16_dinov3": 5,
    "timm/vit_base_patch16_dinov3_qkvb": 5,
    "timm/vit_base_patch16_clip_224": 1,
    "timm/vit_small_patch16_rope_mixed_ape_224": 1,
}
POOLED = {
    "ViT-B-16-SigLIP": 0,
    "ViT-B-16-SigLIP2": 0,
    "PE-Core-B-16": 1,
    "coca_ViT-B-32": 1,
    "vit_medium_patch16_gap_256": 0,
    "timm/eva02_tiny_patch14_224": 1,
    "timm/vit_base_patch16_rope_reg1_gap_256": 1,
}
WHOLE = {
    "RN50": "ModifiedResNet, whose stages have 64, 128, 256, 512 channels",
    "vit_relpos_medium_patch16_cls_224": "VisionTransformerRelPos, whose blocks pfedst does not run one by one",
    "timm/test_convnext": "ConvNeXt, whose stages have",
    "timm/test_resnet": "ResNet, whose stages have",
    "timm/beit_base_patch16_224": "Beit, whose blocks",
}


@pytest.fixture(scope="module")
def benchmark_script():
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("encoders")
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("encoders", "environment"):
        sys.modules.pop(name, None)


def encoder_of(model, **options):
    size = 56 if "patch14" in model else SIZE
    encoder = FrozenCLIP(model, "random", size, **options)
    lively(encoder.tower)
    return encoder


def images(encoder, count=2):
    size = encoder.spec.image_size
    return torch.randn(count, 3, size, size, generator=generator(1))


def head(encoder, kind="prototypes"):
    made = AnchorHead("ab", encoder.spec.embedding, 10.0, kind)
    made.set_anchors(torch.randn(2, encoder.spec.embedding, generator=generator(2)))
    return made


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", [*CLASS_TOKEN, *POOLED])
def test_a_tower_of_tokens_is_the_librarys_and_a_side_network_attaches(benchmark_script, model) -> None:
    encoder = encoder_of(model)
    batch, tower = images(encoder), encoder.tower
    with torch.no_grad():
        theirs = benchmark_script.library_forward(tower, batch)
    scale = theirs.abs().max()
    assert scale > 0.01
    ours = encoder.extract(batch, "pooled").tensors[0]
    assert (ours - theirs).abs().max() < 1e-5 * scale.clamp_min(1)
    assert ours.shape == (2, encoder.spec.embedding)
    taps = encoder.extract(batch, "taps")
    assert len(taps.tensors) == encoder.spec.layers == 2
    assert all(tap.shape == (2, encoder.spec.tokens, encoder.spec.width) for tap in taps.tensors)
    with torch.no_grad():
        side = SideNetwork(encoder, head(encoder)).embed(taps)
        assert torch.allclose(side, ours, atol=1e-5)
        assert torch.allclose(tower(batch), ours, atol=1e-5)  # the path of LoRA
    assert tower.tokens - tower.patches == (CLASS_TOKEN | POOLED)[model]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", CLASS_TOKEN)
def test_the_class_token_alone_is_that_of_the_whole_block(model) -> None:
    alone, whole = encoder_of(model), encoder_of(model, last_block="whole")
    assert alone.offers == ("pooled", "tokens", "taps", "images")
    assert (alone.last_block, whole.last_block, alone.limits) == ("class_token", "whole", "")
    one, other = (encoder.extract(images(encoder), "pooled").tensors[0] for encoder in (alone, whole))
    assert torch.allclose(one, other, atol=1e-5)
    tokens = alone.extract(images(alone), "tokens").tensors[0]
    assert torch.allclose(alone.project(tokens[:, 0]), other, atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", POOLED)
def test_a_tower_that_pools_computes_the_whole_block_and_has_no_class_token_to_offer(model) -> None:
    encoder = encoder_of(model)
    assert encoder.offers == ("pooled", "taps", "images")
    assert encoder.last_block == encoder.identity["last_block"] == "whole"
    with pytest.raises(ConfigurationError, match=r"needs tokens of the encoder.*\(its image tower .*(pools|averages)"):
        TransportPrompts(encoder, head(encoder, "text"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", ["timm/vit_small_patch16_dinov3", "EVA02-B-16", "PE-Core-B-16", "ViT-B-16-SigLIP2"])
def test_averaged_patches_skip_all_prefix_tokens_and_keep_the_prediction(model) -> None:
    plain, averaged = encoder_of(model), encoder_of(model, token_grid=2)
    batch = images(plain)
    full, small = plain.extract(batch, "taps"), averaged.extract(batch, "taps")
    prefix = (CLASS_TOKEN | POOLED)[model]
    assert averaged.spec.tokens == prefix + 4
    for tap, average in zip(full.tensors, small.tensors, strict=True):
        assert torch.allclose(average, pooled_patches(tap, 16, 2), atol=1e-5)
        assert torch.allclose(average[:, :prefix], tap[:, :prefix], atol=1e-5)
    own = plain.extract(batch, "pooled").tensors[0]
    with torch.no_grad():
        assert torch.allclose(SideNetwork(averaged, head(averaged)).embed(small), own, atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_averaged_patches_get_the_rotary_positions_of_a_coarse_image() -> None:
    """DINOv3's positions are those of the centres of cells: of two by two cells they lie at -0.5 and 0.5."""
    tower = encoder_of("timm/vit_small_patch16_dinov3").tower
    tokens = torch.randn(2, 5 + 4, 64, generator=generator(3))
    coarse = timm.create_model("vit_small_patch16_dinov3", img_size=32, num_classes=0).eval()
    coarse.load_state_dict(tower.vit.state_dict())
    with torch.no_grad():
        expected = coarse.blocks[-1](tokens, rope=coarse.rope.get_embed(shape=[2, 2]))
        assert torch.allclose(tower.run_block(-1, tokens), expected, atol=1e-6)
        assert torch.allclose(tower.last_block_class_token(tokens), expected[:, 0], atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", WHOLE)
def test_a_tower_without_tokens_gives_its_embedding_and_refuses_a_side_network_by_name(benchmark_script, model) -> None:
    encoder = FrozenCLIP(model, "random", SIZE if "vit" not in model and "beit" not in model else None)
    batch = images(encoder)
    with torch.no_grad():
        theirs = benchmark_script.library_forward(encoder.tower, batch)
    assert torch.allclose(encoder.extract(batch, "pooled").tensors[0], theirs, atol=1e-5)
    assert (encoder.offers, encoder.spec.layers) == (("pooled",), 0)
    for adapter in (SideNetwork, LoRATower):
        with pytest.raises(ConfigurationError, match=WHOLE[model]) as caught:
            adapter(encoder, head(encoder))
        assert "no tokens of one width" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"token_grid 2: its image tower is a"):
        FrozenCLIP(model, "random", encoder.spec.image_size, token_grid=2)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("model", ["EVA02-B-16", "timm/vit_base_patch16_dinov3_qkvb", "ViT-B-16-SigLIP"])
def test_low_rank_updates_change_separate_and_joined_matrices(model) -> None:
    encoder = encoder_of(model)
    adapter = LoRATower(encoder, head(encoder), rank=2, targets=("q", "v", "o", "mlp_out"))
    batch = encoder.extract(images(encoder), "images")
    with torch.no_grad():
        own = encoder.extract(images(encoder), "pooled").tensors[0]
        assert torch.allclose(adapter.embed(batch), own, atol=1e-5)
        update = adapter.get_submodule("lora.1.v")
        update.B.normal_(generator=generator(4))
        changed = adapter.embed(batch)
        weight = encoder.tower.target_weights(["v"])[1]["v"]
        weight += update.B @ update.A * adapter.scale  # a view of the tower's own weight
        assert torch.allclose(changed, encoder.extract(images(encoder), "pooled").tensors[0], atol=1e-5)
        assert not torch.allclose(changed, own, atol=1e-3)


@pytest.mark.usefixtures("tiny")
def test_a_gated_mlp_has_no_first_layer_for_a_low_rank_update() -> None:
    encoder = encoder_of("EVA02-B-16")
    with pytest.raises(ConfigurationError, match="no single layer 'mlp_in'.*q, k, v, o, mlp_out"):
        LoRATower(encoder, head(encoder), targets=("mlp_in",))


@pytest.mark.usefixtures("tiny")
def test_blocks_of_another_form_are_computed_whole() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, attn_layer="diff").eval()
    tower = TimmTower(vit)
    batch = torch.randn(2, 3, SIZE, SIZE, generator=generator(1))
    assert tower.class_token
    assert not tower.alone
    with torch.no_grad():
        assert torch.allclose(tower(batch), vit(batch), atol=1e-5)
    assert not runs_block_by_block(timm.create_model("deit_tiny_distilled_patch16_224"))


@pytest.mark.usefixtures("tiny")
def test_an_image_has_the_same_bits_in_any_batch_with_rotary_positions() -> None:
    encoder = encoder_of("timm/vit_small_patch16_dinov3", token_grid=2)
    batch = images(encoder, 11)
    expected = encoder.encode(batch, ("taps", "pooled"))
    for order in ([3], [10, 3, 0]):
        found = encoder.encode(batch[order], ("taps", "pooled"))
        for need in ("taps", "pooled"):
            assert all(
                torch.equal(a, b[order]) for a, b in zip(found[need].tensors, expected[need].tensors, strict=True)
            )


# -- the table of the docs -------------------------------------------------------------------------------------


def test_the_table_of_the_docs_is_that_of_the_result(benchmark_script, capsys) -> None:
    benchmark_script.table()
    page = (ROOT / "docs" / "encoders.md").read_text()
    inside = page.split(benchmark_script.BEGIN)[1].split(benchmark_script.END)[0]
    assert inside.strip() == capsys.readouterr().out.strip()
    rows = json.loads(benchmark_script.RESULT.read_text())["rows"]
    assert {name: (row["model"], row["image_size"]) for name, row in rows.items()} == benchmark_script.MODELS
    assert {"BiomedCLIP", "SigLIP2", "DINOv3"} <= set(rows)
    assert sum("taps" in row["offers"] for row in rows.values()) >= 8
    for row in rows.values():
        assert row["difference"] < 1e-5
        assert row.get("side_network_difference", 0) < 1e-5


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["CLIP ViT-B/16", "BiomedCLIP", "SigLIP2", "EVA02-CLIP", "PE-Core", "DINOv3", "CoCa"])
def test_a_row_of_the_table_says_what_the_small_tower_does(benchmark_script, name) -> None:
    """Only sizes differ between the tower of the table and the small one."""
    recorded = json.loads(benchmark_script.RESULT.read_text())["rows"][name]
    found = benchmark_script.measure(recorded["model"], SIZE)
    sizes = {"image_size", "parameters", "difference", "side_network_difference"}
    assert {key: value for key, value in found.items() if key not in sizes} == {
        key: value for key, value in recorded.items() if key not in sizes
    }
    assert found["difference"] < 1e-5
