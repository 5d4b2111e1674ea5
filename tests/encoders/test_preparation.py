"""The preprocessing of an encoder is that of its model's own configuration, and of the repository it comes from."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pfedst.encoders import FrozenCLIP, weights
from pfedst.encoders.preparation import OPEN_CLIP, of_tags, of_timm
from pfedst.errors import ConfigurationError, WeightsError
from pfedst.seeds import seeded
from tests.encoders.tiny import SIZE, tiny

__all__ = ["tiny"]
HALF = (0.5, 0.5, 0.5)
OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}


def found(encoder):
    preprocessing = encoder.preprocessing
    return preprocessing.mean, preprocessing.std, preprocessing.interpolation, preprocessing.resize_mode


@pytest.fixture(scope="module")
def nano():
    with seeded(3):
        return open_clip.create_model("vit-nano", load_weights=False).eval()


@pytest.fixture
def folder(nano, tmp_path):
    """A downloaded repository of open_clip."""
    configuration = {"model_cfg": open_clip.get_model_config("vit-nano"), "preprocess_cfg": OWN}
    (tmp_path / "Nano").mkdir()
    (tmp_path / "Nano" / "open_clip_config.json").write_text(json.dumps(configuration))
    save_file(nano.state_dict(), tmp_path / "Nano" / "open_clip_model.safetensors")
    return tmp_path / "Nano"


def own():
    return (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "squash"


def test_a_folder_is_read_like_a_repository(folder, nano) -> None:
    encoder = FrozenCLIP(f"local-dir:{folder}", "pretrained")
    assert found(encoder) == own()
    assert torch.equal(encoder.tower.visual.proj, nano.visual.proj)
    assert encoder.label == (
        "local-dir:Nano, weights pretrained, 32 px, mean 0.1 0.2 0.3, std 0.4 0.5 0.6, bilinear, resized by squash"
    )
    assert encoder.identity["model"] == "local-dir:Nano"
    assert found(FrozenCLIP(f"local-dir:{folder}", "random")) == own()
    assert encoder.encode_text(["a mole"]).shape == (1, 32)


def test_a_configuration_beside_a_file_counts(folder) -> None:
    assert found(FrozenCLIP("vit-nano", str(folder / "open_clip_model.safetensors"))) == own()


def test_folders_that_are_no_repository_are_refused(folder) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "b.safetensors")
    assert FrozenCLIP(f"local-dir:{folder}").text is not None
    (folder / "a.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds 2 .safetensors files"):
        FrozenCLIP(f"local-dir:{folder}")
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no model_cfg"):
        FrozenCLIP(f"local-dir:{folder}")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no open_clip_config.json.*transformers"):
        FrozenCLIP(f"local-dir:{folder}")


def test_the_hub_is_asked_for_the_configuration_and_the_weights(monkeypatch, folder) -> None:
    asked = []

    def fake(repository, name, **_):
        asked.append((repository, name))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    monkeypatch.setattr(weights, "_hub_answers", lambda: True)
    encoder = FrozenCLIP("hf-hub:org/name")
    assert found(encoder) == own()
    assert asked == [("org/name", "open_clip_config.json"), ("org/name", "open_clip_model.safetensors")]


def test_a_tag_says_how_images_are_prepared(monkeypatch, folder) -> None:
    file = folder.parent / "tag.safetensors"
    (folder / "open_clip_model.safetensors").rename(file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(weights, "_hub_answers", lambda: True)
    tag = {"hf_hub": "org/nano/", "quick_gelu": False, **OWN}
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: tag)
    assert found(FrozenCLIP("vit-nano", "tag")) == own()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ViT-B-16-SigLIP2", (HALF, HALF, "bicubic", "squash")),
        ("PE-Core-B-16", (HALF, HALF, "bilinear", "squash")),
        ("ViT-B-16", tuple(OPEN_CLIP.values())),
        ("timm/vit_small_patch16_dinov3", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", "shortest")),
        ("timm/vit_base_patch16_siglip_224.webli", (HALF, HALF, "bicubic", "shortest")),
        ("timm/vit_pe_core_tiny_patch16_384", (HALF, HALF, "bicubic", "squash")),
    ],
)
def test_a_model_without_a_tag_is_prepared_as_its_tags_or_timm_say(model, expected) -> None:
    encoder = FrozenCLIP(model, "random", SIZE)
    assert found(encoder)[:2] == expected[:2]
    assert found(encoder)[3] == encoder.preprocessing.resize_mode
    if not model.startswith("timm/"):
        assert found(encoder) == expected


def test_tags_that_differ_are_a_warning_unless_the_user_says(caplog) -> None:
    assert of_tags("ViT-H-14", {}) == {key: OPEN_CLIP[key] for key in ("mean", "std", "interpolation")}
    assert "differ in resize_mode" in caplog.text
    assert "--model.encoder.resize_mode" in caplog.text
    caplog.clear()
    assert of_tags("ViT-H-14", {"resize_mode": "squash"})
    assert of_tags("vit-nano", {}) == {}
    assert caplog.text == ""


def test_options_override_and_are_checked(folder) -> None:
    changed = FrozenCLIP(f"local-dir:{folder}", mean=(0.5, 0.5, 0.5), interpolation="bicubic", resize_mode="longest")
    assert found(changed) == (HALF, (0.4, 0.5, 0.6), "bicubic", "longest")
    assert "mean 0.5 0.5 0.5" in changed.label
    assert "resized by longest" in changed.label
    for option, value in (("std", (0.5, 0.5, 0.0)), ("mean", (0.5, 0.5)), ("mean", (float("nan"), 0.0, 0.0))):
        with pytest.raises(ConfigurationError, match=rf"--model.encoder.{option} .*three numbers"):
            FrozenCLIP("vit-nano", "random", **{option: value})
    with pytest.raises(ConfigurationError, match=r"resize_mode fit: must be one of shortest, longest, squash"):
        FrozenCLIP("vit-nano", "random", resize_mode="fit")


def test_a_configuration_that_pfedst_cannot_follow_is_refused_by_name() -> None:
    assert of_timm({"mean": HALF, "std": HALF, "interpolation": "bilinear", "crop_mode": "squash"}) == {
        "mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash",
    }  # fmt: skip
    from pfedst.encoders.preparation import preprocessing_of

    border = of_timm({"crop_mode": "border"})
    with pytest.raises(WeightsError, match=r"names resize_mode border: .*--model.encoder.resize_mode"):
        preprocessing_of("timm/x", 32, border, {})
    assert preprocessing_of("timm/x", 32, border, {"resize_mode": "squash"}).resize_mode == "squash"


@pytest.mark.usefixtures("tiny")
def test_without_a_hub_the_image_tower_of_biomedclip_is_used_alone(tmp_path) -> None:
    encoder = FrozenCLIP("BiomedCLIP", "random", SIZE)
    assert encoder.text is None
    with pytest.raises(WeightsError, match=r"text tower is microsoft/BiomedNLP.*cannot be had.*prototypes or learned"):
        encoder.encode_text(["a"])
    with pytest.raises(ConfigurationError, match=r"microsoft/BiomedNLP"):
        encoder.prompt_tower()
    state = {f"visual.trunk.{key}": value for key, value in encoder.tower.vit.state_dict().items()}
    state |= {f"visual.head.{key}": value for key, value in encoder.tower.head.state_dict().items()}
    state |= {"text.transformer.x": torch.zeros(3), "logit_scale": torch.tensor(4.0)}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    loaded = FrozenCLIP("BiomedCLIP", str(tmp_path / "w.safetensors"), SIZE)
    assert loaded.compute_hash() == encoder.compute_hash()
    assert loaded.logit_scale == pytest.approx(54.598, rel=1e-4)
    assert not loaded.random_weights


@pytest.mark.usefixtures("tiny")
def test_a_tokenizer_that_cannot_be_had_is_an_error_with_a_remedy() -> None:
    encoder = FrozenCLIP("ViT-B-16-SigLIP2", "random", SIZE)
    with pytest.raises(WeightsError, match=r"tokenizer of encoder ViT-B-16-SigLIP2"):
        encoder.encode_text(["a"])
