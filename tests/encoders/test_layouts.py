"""Weights files in every layout that open_clip reads and in transformers' own, against these libraries."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pfedst.encoders import FrozenCLIP
from pfedst.encoders.activation import OPENAI_CLASS_EMBEDDINGS, class_embedding_digest
from pfedst.encoders.layouts import as_open_clip, from_transformers, without_prefix
from pfedst.errors import WeightsError
from pfedst.seeds import generator, seeded
from tests.encoders.tiny import SIZE, tiny

__all__ = ["tiny"]


@pytest.fixture(scope="module")
def nano():
    with seeded(3):
        return open_clip.create_model("vit-nano", load_weights=False).eval()


@pytest.fixture
def saved(tmp_path):
    def save(state, **metadata):
        path = tmp_path / "w.safetensors"
        save_file({key: value.detach().contiguous().clone() for key, value in state.items()}, path, metadata or None)
        return str(path)

    return save


CHANGES = {
    "plain": lambda s: s,
    "a logit scale of shape (1,)": lambda s: s | {"logit_scale": s["logit_scale"].reshape(1)},
    "DistributedDataParallel": lambda s: {f"module.{key}": value for key, value in s.items()},
    "compiled and distributed": lambda s: {f"module._orig_mod.{key}": value for key, value in s.items()},
    "a logit bias": lambda s: s | {"logit_bias": torch.tensor(-10.0)},
    "a logit bias of shape (1,)": lambda s: s | {"logit_bias": torch.tensor([-10.0])},
    "sizes of OpenAI": lambda s: s | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)},
    "a text tower of its own": lambda s: {
        key if key.startswith(("visual", "logit")) else f"text.{key}": value for key, value in s.items()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_open_clip_reads_gives_the_same_encoder(nano, saved, change) -> None:
    plain = {key: value + 0.01 for key, value in nano.state_dict().items()}
    plain["logit_scale"] = torch.tensor(3.0)
    encoder = FrozenCLIP("vit-nano", saved(CHANGES[change](plain)))
    expected = open_clip.create_model("vit-nano", load_weights=False).eval()
    expected.load_state_dict(plain)
    for key, value in encoder.text.state_dict().items():
        assert torch.equal(value, plain[key]), key
    assert encoder.logit_scale == pytest.approx(20.0855, rel=1e-4)
    with torch.no_grad():
        batch = torch.randn(2, 3, 32, 32, generator=generator(1))
        assert torch.allclose(encoder.extract(batch, "pooled").tensors[0], expected.encode_image(batch), atol=1e-5)


def test_an_image_tower_keeps_a_logit_scale_that_lies_beside_it(nano, saved) -> None:
    tower = {f"module.visual.{key}": value for key, value in nano.visual.state_dict().items()}
    encoder = FrozenCLIP("vit-nano", saved(tower | {"module.logit_scale": torch.tensor([2.0])}))
    assert encoder.text is None
    assert encoder.logit_scale == pytest.approx(7.389, rel=1e-3)


def test_a_prefix_of_some_keys_is_part_of_their_names(nano, saved) -> None:
    state = nano.state_dict()
    assert without_prefix({"module.a": state["logit_scale"], "b": state["logit_scale"]}).keys() == {"module.a", "b"}
    with pytest.raises(WeightsError, match=r"unexpected \(1\): module.visual.proj"):
        FrozenCLIP("vit-nano", saved({k.replace("visual.proj", "module.visual.proj"): v for k, v in state.items()}))


@pytest.mark.usefixtures("tiny")
def test_a_model_with_a_bias_gets_zero_if_the_file_has_none(saved) -> None:
    model = open_clip.create_model("ViT-B-16-SigLIP", load_weights=False, force_image_size=SIZE)
    state = {key: value for key, value in model.state_dict().items() if key != "logit_bias"}
    assert model.logit_bias is not None
    encoder = FrozenCLIP("ViT-B-16-SigLIP", saved(state), SIZE)
    assert float(encoder.text.logit_bias) == 0
    biased = FrozenCLIP("ViT-B-16-SigLIP", saved(state | {"logit_bias": torch.tensor([-12.0])}), SIZE)
    assert float(biased.text.logit_bias) == -12
    assert biased.compute_hash() == encoder.compute_hash()


@pytest.mark.usefixtures("tiny")
def test_positions_of_a_trunk_of_timm_are_resampled_as_timm_does(saved) -> None:
    with seeded(5):
        model = open_clip.create_model("ViT-B-16-SigLIP", load_weights=False, force_image_size=SIZE)
    encoder = FrozenCLIP("ViT-B-16-SigLIP", saved(model.state_dict()), 96)
    model.visual.set_input_size(96)
    assert torch.allclose(encoder.tower.vit.pos_embed, model.visual.trunk.pos_embed, atol=1e-6)
    assert encoder.spec.tokens == 36


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_transformers():
    """A CLIP of transformers with the sizes of vit-nano."""
    import transformers

    own = open_clip.get_model_config("vit-nano")
    vision, text = own["vision_cfg"], own["text_cfg"]
    configuration = transformers.CLIPConfig(
        projection_dim=own["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu",
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_act": "gelu",
            "eos_token_id": text["vocab_size"] - 1,
        },
    )
    with seeded(4):
        model = transformers.CLIPModel(configuration).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_clip_of_transformers_is_its_own_images_and_prompts(of_transformers, saved) -> None:
    encoder = FrozenCLIP("vit-nano", saved(of_transformers.state_dict()))
    batch = torch.randn(3, 3, 32, 32, generator=generator(2))
    prompts = ["a mole", "a scar on skin"]
    with torch.no_grad():
        images = of_transformers.visual_projection(of_transformers.vision_model(batch).pooler_output)
        tokens = open_clip.get_tokenizer("vit-nano")(prompts)
        texts = of_transformers.text_projection(of_transformers.text_model(tokens).pooler_output)
    assert torch.allclose(encoder.extract(batch, "pooled").tensors[0], images, atol=1e-5)
    assert torch.allclose(encoder.encode_text(prompts), torch.nn.functional.normalize(texts, dim=-1), atol=1e-5)
    assert encoder.logit_scale == pytest.approx(float(of_transformers.logit_scale.exp().detach()))


def test_an_image_tower_of_transformers_loads_alone(of_transformers, saved) -> None:
    state = {key: v for key, v in of_transformers.state_dict().items() if key.startswith(("vision_", "visual_"))}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # as older versions saved
    encoder = FrozenCLIP("vit-nano", saved(state))
    assert encoder.text is None
    with pytest.raises(WeightsError, match=r"missing \(1\): proj"):
        FrozenCLIP("vit-nano", saved({key: v for key, v in state.items() if key != "visual_projection.weight"}))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("vision_model.model.layer1.0.conv1.weight", ["FLAIR", "timm/resnet50", "vision_model.model.layer1.0.conv1"]),
        ("vision_model.head.probe", ["SigLIP", "vision_model.head.probe", "hf-hub:timm/"]),
        ("vision_model.encoder.layers.0.attn.in_proj_weight", ["layers.0.attn.in_proj_weight", "save_pretrained"]),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", ["holds only q", "transformers"]),
    ],
)
def test_other_layouts_of_transformers_are_refused_with_a_key(key, words) -> None:
    with pytest.raises(WeightsError) as caught:
        from_transformers({key: torch.zeros(2, 2)}, "w.safetensors")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_model_of_a_text_tower_of_its_own_gets_the_plain_names(nano) -> None:
    class Custom:
        text = logit_scale = logit_bias = None

    found = as_open_clip(nano.state_dict(), Custom(), "w")
    assert {"text.token_embedding.weight", "text.text_projection", "visual.proj", "logit_scale"} <= set(found)


# -- the activation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def base_16(tiny):
    """The tensors of a small ViT-B-16, and a function that builds an encoder from a file."""
    with seeded(6):
        return open_clip.create_model("ViT-B-16", load_weights=False, force_image_size=SIZE).state_dict()


def build(model, file):
    return FrozenCLIP(model, file, SIZE)


def test_a_file_that_does_not_tell_its_activation_is_read_with_a_warning(base_16, saved, caplog) -> None:
    build("ViT-B-16", saved(base_16))
    assert "ViT-B-16 computes GELU" in caplog.text
    assert "--model.encoder.model ViT-B-16-quickgelu" in caplog.text
    caplog.clear()
    build("ViT-B-16-quickgelu", saved(base_16, model="ViT-B-16-quickgelu"))
    FrozenCLIP("vit-nano", "random")
    assert caplog.text == ""


def test_files_of_openai_are_refused_without_quick_gelu(base_16, saved, monkeypatch) -> None:
    own = base_16 | {"input_resolution": torch.tensor(64)}
    with pytest.raises(WeightsError, match=r"quick-GELU, says the key input_resolution .* ViT-B-16-quickgelu$"):
        build("ViT-B-16", saved(own))
    assert build("ViT-B-16-quickgelu", saved(own)).text is not None
    monkeypatch.setitem(OPENAI_CLASS_EMBEDDINGS, class_embedding_digest(base_16), "ViT-B-16")
    halves = {f"module.{key}": value.half() for key, value in base_16.items()}
    for state in (base_16, halves, {k.removeprefix("visual."): v for k, v in base_16.items() if "visual" in k}):
        with pytest.raises(WeightsError, match=r"class embedding, which is that of OpenAI's ViT-B-16"):
            build("ViT-B-16", saved(state))


@pytest.mark.parametrize(
    ("name", "content", "model", "fits"),
    [
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}, "ViT-B-16", True),
        ("config.json", {"vision_config": {}}, "ViT-B-16", False),
        ("config.json", {"vision_config": {}}, "ViT-B-16-quickgelu", True),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, "ViT-B-16", False),
        ("open_clip_config.json", {"model_cfg": {}}, "ViT-B-16", True),
    ],
)
def test_a_configuration_beside_the_file_tells(base_16, saved, caplog, tmp_path, name, content, model, fits) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    if fits:
        build(model, saved(base_16))
        assert caplog.text == ""
    else:
        with pytest.raises(WeightsError, match=f"trained with quick-GELU, says {name} beside it"):
            build(model, saved(base_16))


def test_a_damaged_configuration_beside_the_file_is_an_error(base_16, saved, tmp_path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"open_clip_config.json: no JSON"):
        build("ViT-B-16", saved(base_16))
