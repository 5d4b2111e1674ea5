"""The activation that weights were trained with, as far as a file tells: quick-GELU or GELU.

Weights load into a model with the other activation without an error, and predict worse.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from pfedst.encoders.layouts import OPENAI_SIZES
from pfedst.errors import WeightsError

QUICK = "-quickgelu"
OPENAI_CLASS_EMBEDDINGS = {"48f61989319f64dd": "ViT-B-16"}
"""Models of OpenAI by the first digits of the SHA-256 of their class embedding in float16."""


def check_file_activation(
    model: str, file: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], configuration: Mapping[str, Any]
) -> None:
    """Refuse a file with weights of the other activation, or warn if the activation of the file is not known.

    The activation is known from the metadata of the file (`model`), from OpenAI's own layout, from the class embedding
    of OpenAI's ViT-B/16, and from `open_clip_config.json` or transformers' `config.json` beside the file. Nothing is
    checked for a model that open_clip has with one activation only.

    Args:
        model: name of the open_clip model.
        file: the file.
        state: its tensors, by the names in the file.
        metadata: its metadata.
        configuration: the content of `open_clip_config.json` beside it; may be empty.

    Raises:
        WeightsError: If the activations differ. The message names the right model.
    """
    twin = model.removesuffix(QUICK) if model.endswith(QUICK) else f"{model}{QUICK}"
    if twin not in open_clip.list_models() or metadata.get("model") == model:
        return
    of_model = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    found = _of_file(file, state, configuration)
    if found is None:
        logging.getLogger("pfedst").warning(
            "--model.encoder.weights %s: the activation of the file is not known; %s computes %s. If the weights were "
            "trained with the other one (OpenAI's with quick-GELU), use --model.encoder.model %s: predictions would "
            "be worse without an error",
            file,
            model,
            _name(of_model),
            twin,
        )
    elif found[0] != of_model:
        raise WeightsError(
            f"--model.encoder.weights {file}: trained with {_name(found[0])}, says {found[1]}, and {model} computes "
            f"{_name(of_model)}; use --model.encoder.model {twin}"
        )


def config_beside(file: Path, name: str = "open_clip_config.json") -> dict[str, Any]:
    """Return the configuration that lies beside a file with weights, as in a downloaded repository, or nothing.

    Raises:
        WeightsError: If it cannot be read.
    """
    path = file.parent / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: no JSON ({error}); download it again, or remove it") from error
    return content if isinstance(content, dict) else {}


def class_embedding_digest(state: Mapping[str, Tensor]) -> str | None:
    """Return the first digits of the SHA-256 of the class embedding in float16, or None if the file has none."""
    keys = (key for key in state if key.rpartition(".")[2] == "class_embedding")
    embedding = next((state[key] for key in keys), None)
    if embedding is None:
        return None
    return hashlib.sha256(embedding.to(torch.float16).contiguous().numpy().tobytes()).hexdigest()[:16]


def _of_file(file: Path, state: Mapping[str, Tensor], configuration: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Return whether a file was trained with quick-GELU and what says so, or None."""
    if any(key in state for key in OPENAI_SIZES):
        return True, f"the key {next(key for key in OPENAI_SIZES if key in state)} of OpenAI's files"
    if (digest := class_embedding_digest(state)) in OPENAI_CLASS_EMBEDDINGS:
        return True, f"its class embedding, which is that of OpenAI's {OPENAI_CLASS_EMBEDDINGS[digest]}"
    if isinstance(of_clip := configuration.get("model_cfg"), dict):
        return bool(of_clip.get("quick_gelu", False)), "open_clip_config.json beside it"
    of_transformers = config_beside(file, "config.json").get("vision_config")
    if isinstance(of_transformers, dict):
        # transformers writes only what differs from its default, quick_gelu
        return of_transformers.get("hidden_act", "quick_gelu") == "quick_gelu", "config.json beside it"
    return None


def _name(quick: bool) -> str:
    return "quick-GELU" if quick else "GELU"
