"""Architectures of open_clip and timm with two narrow blocks, under their own names."""

from __future__ import annotations

import copy
from functools import partial

import open_clip
import pytest
import timm
import torch

from pfedst.encoders import weights

SIZE = 64
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1}
CONVOLUTIONS = ("convnext", "swin", "resnet")


@pytest.fixture
def tiny(monkeypatch):
    """Make towers of any model with two blocks of width 64, and give them weights at which every part counts."""
    monkeypatch.setattr(weights, "_hub_answers", lambda: False)
    monkeypatch.setattr("timm.create_model", partial(_create, timm.create_model))
    configurations = open_clip.factory._MODEL_CONFIGS
    for name in list(configurations):
        changed = copy.deepcopy(configurations[name])
        vision, text = changed["vision_cfg"], changed["text_cfg"]
        changed["text_cfg"] = TEXT | {k: text[k] for k in ("hf_model_name", "hf_tokenizer_name") if k in text}
        if "multimodal_cfg" in changed:
            changed["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
            changed["multimodal_cfg"] = TEXT | {"attn_pooler_heads": 2}
        if "timm_model_name" not in vision:
            convolutions = isinstance(vision["layers"], list)
            vision |= {"layers": [1, 1, 1, 1], "width": 16} if convolutions else {"layers": 2, "width": 64}
            vision |= {"attn_pooler_heads": 2} if vision.get("attentional_pool") else {}
            vision["head_width"] = 32
        monkeypatch.setitem(configurations, name, changed | {"embed_dim": 24})


def _create(original, name, **options):
    if not any(part in name for part in CONVOLUTIONS):
        options = {"depth": 2, "embed_dim": 64, "num_heads": 2} | options
    return original(name, **options)


def lively(module):
    """Give every parameter a random value of a size at which a missing part shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            base = 1.0 if ("norm" in name and name.endswith("weight")) or "gamma" in name else 0.0
            parameter.copy_(base + noise * (0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5))
    return module
