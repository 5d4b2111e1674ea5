"""The files of an exported model: their names, and the checks that they pass before anything is built from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pfedst.encoders import Preprocessing
from pfedst.errors import StateError
from pfedst.inference.options import check_confined
from pfedst.inference.rebuild import GENERIC, PERSONAL
from pfedst.version import __version__

FORMAT = 1
MODEL_FILE, CONFIG_FILE, CARD_FILE, METRICS_FILE = "model.safetensors", "config.json", "README.md", "metrics.json"
ONNX_FILE = "model.onnx"
"""Encoder and adapter for other software; only where it was asked for."""
FILES = (MODEL_FILE, CONFIG_FILE, CARD_FILE, METRICS_FILE)
MOST_CONFIG_BYTES = 2**22
OWN_HASH = "config_sha256"


COPY_AGAIN = "copy the folder again from its source"


def is_model(folder: Path) -> bool:
    """Return True if a folder holds an exported model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.yaml").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`, checked.

    Raises:
        StateError: see `checked_config`; or the file is missing.
    """
    file = folder / CONFIG_FILE
    try:
        if file.stat().st_size > MOST_CONFIG_BYTES:
            raise StateError(f"{file} has {file.stat().st_size:,} bytes; {COPY_AGAIN}")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise StateError(
            f"{folder}: not a model, because it has no {CONFIG_FILE}; give a folder of pfedst export"
        ) from error
    except OSError as error:
        raise StateError(f"{file} cannot be read ({error}); {COPY_AGAIN}") from error
    return checked_config(content, folder)


def checked_config(content: bytes, folder: Path) -> dict[str, Any]:
    """Return the values of the content of a `config.json`.

    Raises:
        StateError: it is damaged, changed, or of a newer version, or an option is a path out of the folder.
    """
    file = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{file} is damaged ({error}); {COPY_AGAIN}") from error
    number = config.get("format") if isinstance(config, dict) else None
    if type(number) is not int or OWN_HASH not in config:
        raise StateError(f"{file} is not of a model that pfedst export has written")
    if number > FORMAT:
        version = config.get("versions", {})
        raise StateError(
            f"{file} is of format {number}, and this version of pfedst, {__version__}, reads {FORMAT}: install the "
            f"version that wrote it ({version.get('pfedst') if isinstance(version, dict) else 'unknown'})"
        )
    if config[OWN_HASH] != config_hash(config):
        raise StateError(f"{file} was changed after it was written; {COPY_AGAIN}")
    if fault := _fault(config):
        raise StateError(f"{file}: {fault}; {COPY_AGAIN}")
    check_confined(config["options"], str(file))
    return config


def read_tensors(file: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`.

    Raises:
        StateError: see `checked_tensors`; or the file is missing.
    """
    try:
        return checked_tensors(file.read_bytes(), config, file.parent)
    except OSError as error:
        raise StateError(f"{file} is missing or cannot be read ({error}); {COPY_AGAIN}") from error


def checked_tensors(content: bytes, config: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the content of a `model.safetensors`.

    Raises:
        StateError: it is not the file that `config.json` was written with.
    """
    try:
        if hashlib.sha256(content).hexdigest() != config["model_sha256"]:
            raise ValueError("its hash is not the one in config.json")
        return load(content)
    except (ValueError, SafetensorError) as error:
        raise StateError(f"{folder / MODEL_FILE} is damaged ({error}); {COPY_AGAIN}") from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of the content of `config.json`, which stands in it."""
    kept = {key: value for key, value in config.items() if key != OWN_HASH}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _fault(config: Mapping[str, Any]) -> str:
    """Return what is wrong with the values of a configuration that was written by somebody else; empty if nothing."""
    try:
        classes = config["classes"]
        if not classes or len(set(classes)) != len(classes) or not all(isinstance(name, str) for name in classes):
            return "its classes are no different names"
        if config["which"] not in (PERSONAL, GENERIC) or (config["site"] is None) != (config["which"] == GENERIC):
            return "it does not say whose model it is"
        for key in ("effective_prior", "site_prior"):
            if config[key] is not None and not _is_prior(config[key], len(classes)):
                return f"{key} are no class frequencies"
        if config["prior"]["frequencies"] is not None and not _is_prior(config["prior"]["frequencies"], len(classes)):
            return "prior holds no class frequencies"
        if not (isinstance(config["temperature"], float) and 0 < config["temperature"] < math.inf):
            return "its temperature is not above 0"
        if config["options"].keys() != {"model", "method"}:
            return "its options are not those of a model and a method"
        thresholds = {} if config["abstention"] is None else config["abstention"]["thresholds"]
        if not all(isinstance(value, float) for value in thresholds.values()):
            return "its thresholds are no numbers"
        preprocessing_of(config)
        str(config["encoder"]["sha256"]), str(config["encoder"]["label"]), float(config["encoder"]["logit_scale"])
        dict(config["source"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"an entry is missing or of another kind ({error!r})"
    return ""


def _is_prior(values: Any, classes: int) -> bool:
    whole = isinstance(values, list) and len(values) == classes and all(type(value) is float for value in values)
    return whole and all(0 < value <= 1 for value in values) and abs(math.fsum(values) - 1) < 1e-6


def preprocessing_of(config: Mapping[str, Any]) -> Preprocessing:
    """Return how images must be prepared."""
    saved = config["encoder"]["preprocessing"]
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    return Preprocessing(**values)
