"""FrozenCLIP against open_clip and timm themselves; weights are read strictly."""

import copy
import os
import socket

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pfedst.encoders import FrozenCLIP, weights
from pfedst.errors import ConfigurationError, WeightsError
from pfedst.seeds import generator, seeded


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=generator(1))


@pytest.fixture(scope="module")
def nano():
    with seeded(3):
        return open_clip.create_model("vit-nano", load_weights=False).eval()


@pytest.fixture
def whole_file(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


@pytest.fixture
def tower_file(nano, tmp_path):
    save_file({k: v.half() for k, v in nano.visual.state_dict().items()}, tmp_path / "tower.safetensors")
    return tmp_path / "tower.safetensors"


def test_whole_last_block_is_open_clip(nano, whole_file) -> None:
    encoder = FrozenCLIP("vit-nano", str(whole_file), last_block="whole")
    with torch.no_grad():
        # open_clip calls its blocks itself, so the last digits may differ
        assert torch.allclose(
            encoder.extract(images(32), "pooled").tensors[0], nano.encode_image(images(32)), atol=1e-5
        )
    assert encoder.logit_scale == pytest.approx(float(nano.logit_scale.exp()))


@pytest.mark.parametrize(
    "model", ["vit-nano", "vit-demo", "timm/vit_tiny_patch16_224", "timm/vit_small_patch14_dinov2"]
)
def test_class_token_form_equals_the_whole_block(model) -> None:
    size = 56 if "dinov2" in model else 32
    ways = [FrozenCLIP(model, "random", size, last_block) for last_block in ("class_token", "whole")]
    one, other = (encoder.extract(images(size), "pooled").tensors[0] for encoder in ways)
    assert (one - other).abs().max() < 1e-5
    tokens = ways[0].extract(images(size), "taps").tensors[-1]
    gradients = []
    for encoder in ways:
        x = tokens.clone().requires_grad_()
        encoder.finish(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-4)


def test_a_timm_tower_is_timm() -> None:
    encoder = FrozenCLIP("timm/vit_tiny_patch16_224", "random", 32)
    with torch.no_grad():
        assert torch.allclose(
            encoder.extract(images(32), "pooled").tensors[0], encoder.tower.vit(images(32)), atol=1e-5
        )
    assert not encoder.spec.has_text


def test_taps_are_what_enters_and_leaves_the_blocks(nano, whole_file) -> None:
    encoder = FrozenCLIP("vit-nano", str(whole_file))
    seen = []
    handles = [
        b.register_forward_hook(lambda _, i, o: seen.append((i[0], o))) for b in nano.visual.transformer.resblocks
    ]
    with torch.no_grad():
        nano.encode_image(images(32))
    for handle in handles:
        handle.remove()
    taps = encoder.extract(images(32), "taps").tensors
    assert len(taps) == encoder.spec.layers == 4
    # open_clip has seen two images, the encoder always eight: products of other shapes round differently
    assert torch.allclose(taps[0], seen[0][0], atol=1e-5)
    assert all(torch.allclose(tap, output, atol=1e-5) for tap, (_, output) in zip(taps[1:], seen, strict=False))
    assert torch.allclose(encoder.extract(images(32), "tokens").tensors[0], seen[-1][1], atol=1e-5)
    assert torch.equal(encoder.extract(images(32), "images").tensors[0], images(32))
    assert taps[0].shape == (2, encoder.spec.tokens, encoder.spec.width)
    assert not any(tap.requires_grad for tap in taps)


def test_an_image_tower_alone_has_no_text(nano, tower_file) -> None:
    encoder = FrozenCLIP("vit-nano", str(tower_file))
    with torch.no_grad():
        assert torch.allclose(encoder.extract(images(32), "pooled").tensors[0], nano.visual(images(32)), atol=2e-2)
    assert encoder.text is None
    assert encoder.logit_scale == 100.0
    with pytest.raises(WeightsError, match="prototypes or learned"):
        encoder.encode_text(["a"])


def test_text_is_open_clip(nano, whole_file) -> None:
    encoder = FrozenCLIP("vit-nano", str(whole_file))
    with torch.no_grad():
        own = nano.encode_text(open_clip.get_tokenizer("vit-nano")(["a mole", "a scar"]), normalize=True)
    assert torch.allclose(encoder.encode_text(["a mole", "a scar"]), own, atol=1e-6)


@pytest.mark.parametrize("size", [16, 48])
def test_positions_are_resized_as_open_clip_does(nano, whole_file, size) -> None:
    encoder = FrozenCLIP("vit-nano", str(whole_file), size)
    theirs = open_clip.create_model("vit-nano", load_weights=False, force_image_size=size)
    state = nano.state_dict()
    open_clip.model.resize_pos_embed(state, theirs)
    assert torch.allclose(encoder.tower.visual.positional_embedding, state["visual.positional_embedding"], atol=1e-6)
    assert encoder.extract(images(size), "pooled").tensors[0].shape == (2, 32)
    assert encoder.spec.tokens == 1 + (size // 8) ** 2


def test_a_timm_file_at_another_size(tmp_path) -> None:
    with seeded(0):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    encoder = FrozenCLIP("timm/vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"), 64)
    assert encoder.spec.tokens == 17
    assert "RANDOM" not in encoder.label


def test_random_weights_are_labelled_and_repeatable() -> None:
    one, other = FrozenCLIP("vit-nano", "random"), FrozenCLIP("vit-nano", "random")
    assert one.random_weights
    assert "RANDOM WEIGHTS" in one.label
    assert one.weights_hash == other.weights_hash
    assert FrozenCLIP("vit-nano", "random", logit_scale=7.0).logit_scale == 7.0


def test_the_hash_sees_every_change() -> None:
    encoder = FrozenCLIP("vit-nano", "random")
    with torch.no_grad():
        encoder.tower.visual.proj[0, 0] += 1e-3
    assert encoder.compute_hash() != FrozenCLIP("vit-nano", "random").weights_hash


def test_it_is_frozen_and_shared() -> None:
    encoder = FrozenCLIP("vit-nano", "random")
    assert copy.deepcopy(encoder) is encoder
    assert not encoder.tower.training
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())
    assert encoder.to("cpu") is encoder


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("ViT-B-17", ['Did you mean "ViT-B-16"']),
        ("timm/vit_tinny_patch16_224", ['Did you mean "vit_tiny_patch16_224"']),
    ],
)
def test_unknown_models_are_refused_by_name(model, words) -> None:
    with pytest.raises(WeightsError) as caught:
        FrozenCLIP(model, "random")
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("model", "tag", "words"),
    [
        ("ViT-B-16", "openai", ["quick-GELU", "ViT-B-16-quickgelu"]),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", ["no pretrained weights", "openai"]),
        ("ViT-B-16", "opnai", ["no pretrained weights", "laion2b_s34b_b88k"]),
    ],
)
def test_wrong_tags_are_refused_at_once(model, tag, words) -> None:
    with pytest.raises(WeightsError) as caught:
        FrozenCLIP(model, tag)
    assert [word for word in words if word not in str(caught.value)] == []


def test_weights_of_the_other_activation_are_refused() -> None:
    weights.check_activation("ViT-B-16", "x", {"quick_gelu": False})
    with pytest.raises(WeightsError, match="model ViT-B-16$"):
        weights.check_activation("ViT-B-16-quickgelu", "x", {"quick_gelu": False})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("ln_post.weight"), ["missing (1)", "ln_post.weight"]),
        (lambda s: s.update(extra=torch.zeros(1)), ["unexpected (1)", "extra"]),
        (lambda s: s.update(proj=torch.zeros(64, 9)), ["misshaped (1)", "(64, 9) in the file", "(64, 32)"]),
        (lambda s: [s.pop(key) for key in list(s) if "resblocks.0" in key], ["missing (12)", "and 4 more"]),
    ],
)
def test_a_file_that_does_not_fit_is_reported_key_by_key(nano, tmp_path, change, words) -> None:
    state = {key: value.clone() for key, value in nano.visual.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        FrozenCLIP("vit-nano", str(tmp_path / "w.safetensors"))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("model", ["vit-nano", "timm/vit_tiny_patch16_224"])
def test_a_file_that_is_far_too_large_is_not_read(tmp_path, tower_file, model) -> None:
    os.truncate(tower_file, 2**42)  # a hole: four terabytes that take no room
    with pytest.raises(WeightsError, match="far more than the model's"):
        FrozenCLIP(model, str(tower_file))


def test_other_wrong_files(tmp_path, tower_file) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        FrozenCLIP("vit-nano", str(tmp_path / "none.safetensors"))
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"only .safetensors"):
        FrozenCLIP("vit-nano", str(tmp_path / "model.pt"))
    tower_file.write_bytes(tower_file.read_bytes()[:500])
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        FrozenCLIP("vit-nano", str(tower_file))
    save_file({"a": torch.zeros(1)}, tmp_path / "named.safetensors", metadata={"model": "ViT-L-14"})
    with pytest.raises(WeightsError, match="made for ViT-L-14"):
        FrozenCLIP("vit-nano", str(tmp_path / "named.safetensors"))


@pytest.mark.parametrize(
    ("model", "tag"),
    [("ViT-B-16-quickgelu", "openai"), ("hf-hub:org/name", "pretrained"), ("timm/vit_tiny_patch16_224", "pretrained")],
)
def test_offline_the_remedy_comes_without_a_try(monkeypatch, tmp_path, model, tag) -> None:
    """Left alone the hub's client would try five times, and wait longer after each."""
    tries = []

    def no_network(host, *_, **__):
        tries.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr(weights, "_hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"--model.encoder.weights FILE") as caught:
        FrozenCLIP(model, tag)
    assert "HF_HOME" in str(caught.value)
    assert tries == []


def test_an_unreachable_hub_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert not weights._hub_answers()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy"})
    assert weights._hub_answers()


def test_a_tag_is_downloaded_and_loaded_strictly(monkeypatch, whole_file, nano) -> None:
    asked = []

    def fake(repository, name, **_):
        asked.append((repository, name))
        return str(whole_file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    monkeypatch.setattr(weights, "_hub_answers", lambda: True)
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"hf_hub": "org/nano/", "quick_gelu": False})
    encoder = FrozenCLIP("vit-nano", "tag")
    assert asked == [("org/nano", "open_clip_model.safetensors")]
    assert torch.equal(encoder.tower.visual.proj, nano.visual.proj)
    with pytest.raises(WeightsError, match="pickled file only"):
        weights.download({"url": "https://example.org/model.pt"}, "encoder")


def test_wrong_sizes_and_scales() -> None:
    with pytest.raises(ConfigurationError, match="multiple of the patch, 8"):
        FrozenCLIP("vit-nano", "random", 30)
    with pytest.raises(ConfigurationError, match="image_size 30"):
        FrozenCLIP("timm/vit_tiny_patch16_224", "random", 30)
    with pytest.raises(ConfigurationError, match="logit_scale"):
        FrozenCLIP("vit-nano", "random", logit_scale=0.0)
    with pytest.raises(ConfigurationError, match=r"\(B, 3, 32, 32\)"):
        FrozenCLIP("vit-nano", "random").extract(torch.zeros(1, 3, 16, 16), "taps")


def test_shapes_without_memory() -> None:
    with torch.device("meta"):
        spec = FrozenCLIP("ViT-B-16-quickgelu", "random").spec
    assert (spec.width, spec.layers, spec.tokens, spec.embedding, spec.image_size) == (768, 12, 197, 512, 224)


@pytest.fixture
def real_file() -> str:
    file = os.environ.get("PFEDST_TEST_WEIGHTS")
    if not file:
        pytest.skip("PFEDST_TEST_WEIGHTS names no file with CLIP's ViT-B/16 image tower")
    return file


def test_the_real_tower_without_metadata_is_known_to_need_quick_gelu(real_file, tmp_path) -> None:
    save_file(load_file(real_file), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"OpenAI's ViT-B-16.*ViT-B-16-quickgelu$"):
        FrozenCLIP("ViT-B-16", str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("size", [112, 224])
def test_the_real_tower(size, real_file) -> None:
    one, other = (FrozenCLIP("ViT-B-16-quickgelu", real_file, size, form) for form in ("class_token", "whole"))
    a, b = (encoder.extract(images(size), "pooled").tensors[0] for encoder in (one, other))
    assert (a - b).abs().max() < 1e-5
    assert torch.allclose(b, other.tower.visual(images(size)).detach(), atol=1e-5)
