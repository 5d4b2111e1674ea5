"""Layouts of weights files: those that open_clip reads, and transformers' CLIP, by the names of an open_clip model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

from pfedst.errors import WeightsError

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Sizes that OpenAI's own files hold beside the weights."""
UNUSED = (*OPENAI_SIZES, "text.transformer.embeddings.position_ids")
LAYER = re.compile(r"(?P<tower>vision|text)_model\.encoder\.layers\.(?P<index>\d+)\.(?P<part>.+)")
LAYER_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OTHERS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix that every key has because the model was wrapped when it was saved."""
    found = dict(state)
    while found and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in found)), None)):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def as_open_clip(state: Mapping[str, Tensor], architecture: Any, what: str) -> dict[str, Tensor]:
    """Return the tensors of a file by the names that they have in an open_clip model.

    The logit bias of SigLIP's loss is left out if the model has none: it adds the same to every class.

    Args:
        state: tensors by the names of the file, without the prefix of a wrapper.
        architecture: the open_clip model to load them into.
        what: the file, for errors.

    Raises:
        WeightsError: If the layout is another one. The message names a key.
    """
    found = {key: value for key, value in state.items() if key not in UNUSED}
    if any(key.startswith("vision_model.") for key in found):
        found = from_transformers(found, what)
    found = dict(convert_state_dict(architecture, found))
    if hasattr(architecture, "text"):
        found = dict(convert_to_custom_text_state_dict(found))
    else:
        found = {key.removeprefix("text."): value for key, value in found.items()}
    for key in ("logit_scale", "logit_bias"):
        own = getattr(architecture, key, None)
        if key in found and own is not None and found[key].numel() == 1:
            found[key] = found[key].reshape(own.shape)
        elif key == "logit_bias" and own is None:
            found.pop(key, None)
        elif key == "logit_bias" and "logit_scale" in found and key not in found:
            found[key] = torch.zeros_like(found["logit_scale"])  # as open_clip fills it
    return found


def from_transformers(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Convert the layout of transformers' `CLIPModel`, in which most medical CLIPs are published, to open_clip's.

    Raises:
        WeightsError: If the keys are those of another model of that layout: FLAIR, SigLIP, or one not known.
    """
    if key := next((key for key in state if key.startswith("vision_model.model.")), None):
        raise WeightsError(
            f"{what}: has the layout of FLAIR, a torchvision ResNet with its own projection ({key}), which open_clip "
            f"does not have. To use its ResNet, save the tensors below vision_model.model. without that prefix, and "
            f"give --model.encoder.model timm/resnet50"
        )
    if key := next((key for key in state if key.startswith("vision_model.head.")), None):
        raise WeightsError(
            f"{what}: has the layout of transformers' SigLIP ({key}), which is not converted; use the same model from "
            f"its repository for open_clip (hf-hub:timm/ViT-...-SigLIP), not the one for transformers"
        )
    converted: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key in POSITION_IDS or key == "logit_bias":
            continue
        if key in OTHERS:
            converted[OTHERS[key]] = value.T if key.endswith("_projection.weight") else value
            continue
        layer = LAYER.fullmatch(key)
        part, _, kind = layer["part"].rpartition(".") if layer else ("", "", "")
        tower = "visual." if layer and layer["tower"] == "vision" else ""
        block = f"{tower}transformer.resblocks.{layer['index']}." if layer else ""
        if part in LAYER_PARTS:
            converted[f"{block}{LAYER_PARTS[part]}.{kind}"] = value
        elif part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            attention.setdefault(f"{block}attn.in_proj_{kind}", {})[part[10]] = value
        else:
            raise _unknown(what, f"{key} is none of its keys")
    for key, parts in attention.items():
        if set(parts) != set("qkv"):
            raise _unknown(what, f"of {key} the file holds only {', '.join(sorted(parts))}")
        converted[key] = torch.cat([parts[part] for part in "qkv"])
    return converted


def _unknown(what: str, why: str) -> WeightsError:
    return WeightsError(
        f"{what}: keys begin with vision_model. as in transformers, but not in the layout of its CLIP: {why}. "
        f"Save it with CLIPModel.save_pretrained of transformers, or in open_clip's layout"
    )
