"""A model in a folder that can be carried away: `model.safetensors`, `config.json`, `metrics.json` and `README.md`.

The encoder is not part of it: the folder names its weights by their hash. `config.json` holds everything else that a
prediction needs, and the hash of `model.safetensors` and of itself, so that a changed file is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, StateError, WeightsError
from pfedst.inference.artefact_files import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    METRICS_FILE,
    MODEL_FILE,
    ONNX_FILE,
    OWN_HASH,
    config_hash,
    preprocessing_of,
    read_config,
    read_tensors,
)
from pfedst.inference.card import model_card, results_of
from pfedst.inference.hub import local_folder
from pfedst.inference.onnx import OnnxModel
from pfedst.inference.options import Options, check_confined, with_weights
from pfedst.inference.rebuild import ANCHORS, GENERIC, PERSONAL, Rebuilt, load_tensors, tensors_of
from pfedst.inference.saved_run import SavedRun, check_encoder
from pfedst.inference.site_model import Abstention, SiteModel
from pfedst.methods.priors import TargetPrior
from pfedst.options import FOLDER
from pfedst.state import write_atomically, writing
from pfedst.state.files import json_bytes
from pfedst.version import __version__

FEWEST_SITES = 3
"""From so many sites on a generic model carries the mean of their class frequencies: of two, each knows the other's."""


def export(
    run: SavedRun, model: SiteModel, folder: Path, licence: str | None = None, onnx: OnnxModel | None = None
) -> Path:
    """Write a model of a run into a new folder.

    Args:
        run: the run.
        model: one of its models.
        folder: to write; must be absent or empty.
        licence: name of the licence, as the hub knows it (`cc-by-nc-4.0`); None leaves it open.
        onnx: the same model with its encoder, for other software; None for none.

    Raises:
        ConfigurationError: the folder holds something.
        StateError: the disk refuses.
    """
    check_new(folder)
    weights = save({key: tensor.contiguous() for key, tensor in tensors_of(model.adapter).items()})
    config = config_of(model, len(run.sites)) | {"model_sha256": hashlib.sha256(weights).hexdigest()}
    config |= {OWN_HASH: config_hash(config)}
    results = results_of(run, model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / METRICS_FILE, json_bytes(results))
        write_atomically(
            folder / CARD_FILE, model_card(config, results, folder.name, licence, onnx is not None).encode()
        )
        write_atomically(folder / MODEL_FILE, weights)
        if onnx is not None:
            onnx.write(folder / ONNX_FILE)
        write_atomically(folder / CONFIG_FILE, json_bytes(config))
    return folder


def check_new(folder: Path) -> None:
    """Check that a folder is absent or empty.

    Raises:
        ConfigurationError: it holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists and is not empty: name a new folder")


def config_of(model: SiteModel, sites: int) -> dict[str, Any]:
    """Return the content of `config.json` of a model from a run of so many sites, without hashes."""
    encoder, personal = model.encoder, model.which == PERSONAL
    effective = exportable(model, sites).effective
    prior = model.prior.of_classes(model.class_names)
    return {
        "format": FORMAT,
        "versions": {"pfedst": __version__, "torch": str(torch.__version__)},
        "which": model.which,
        "site": model.site,
        "source": dict(model.source),
        "classes": list(model.class_names),
        "options": _portable(fixed_options(model)),
        "encoder": {
            "label": encoder.label,
            "sha256": encoder.weights_hash,
            "random_weights": encoder.random_weights,
            "logit_scale": encoder.logit_scale,
            "preprocessing": asdict(encoder.preprocessing),
        },
        "pixel_range": None if model.pixel_range is None else list(model.pixel_range),
        "prior": {"option": Path(prior.option).name, "frequencies": _listed(prior.frequencies), "label": prior.label},
        "effective_prior": _listed(effective),
        "site_prior": _listed(model.site_prior) if personal else None,
        "temperature": model.temperature,
        "abstention": None if model.abstention is None else asdict(model.abstention),
    }


def exportable(model: SiteModel, sites: int) -> SiteModel:
    """Return a model of a run with so many sites, a generic one of few sites without their class frequencies."""
    effective = model.effective
    if model.which == GENERIC and effective is not None and sites < FEWEST_SITES and not _is_uniform(effective):
        return replace(model, effective=None)
    return model


def load_model(
    folder: str | Path, encoder_weights: str | Path | None = None, device: str | torch.device | None = None
) -> SiteModel:
    """Load a model that `pfedst export` has written.

    Args:
        folder: of the model, or `hf://USER/NAME` for one on the Hugging Face hub.
        encoder_weights: file or tag of the encoder's weights, of which the folder holds the hash alone. Default: the
            tag in `config.json`, or the environment variable PFEDST_ENCODER_WEIGHTS.
        device: where to compute; default: the CPU.

    Raises:
        StateError: a file is missing, damaged, changed, or of a newer version; or the encoder is another one.
        WeightsError: the encoder's weights are not named, or cannot be loaded.
    """
    place = local_folder(folder)
    config = read_config(place)
    tensors = read_tensors(place / MODEL_FILE, config)
    built = _rebuilt(config, tensors, encoder_weights, place)
    adapter = built.adapter(config["which"])
    try:
        load_tensors(adapter, tensors, str(place / MODEL_FILE))
    except ConfigurationError as error:
        raise StateError(f"{place / MODEL_FILE}: {error}") from error
    prior, abstention = config["prior"], config["abstention"]
    model = SiteModel(
        encoder=built.encoder,
        adapter=adapter,
        class_names=tuple(config["classes"]),
        which=config["which"],
        site=config["site"],
        effective=_tensor(config["effective_prior"]),
        site_prior=_tensor(config["site_prior"]),
        temperature=float(config["temperature"]),
        abstention=None if abstention is None else Abstention(abstention["coverage"], abstention["thresholds"]),
        prior=TargetPrior(prior["option"], _tensor(prior["frequencies"]), prior["label"]),
        pixel_range=None if config["pixel_range"] is None else (config["pixel_range"][0], config["pixel_range"][1]),
        options=config["options"],
        source=config["source"],
    )
    return model.to(device or "cpu")


def _rebuilt(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], encoder_weights: str | Path | None, folder: Path
) -> Rebuilt:
    """Build encoder and adapter as `config.json` describes them, and check that the encoder is the same."""
    options: Options = config["options"]
    weights = (options["model"]["encoder"].get("init_args") or {}).get("weights")
    if encoder_weights is None and isinstance(weights, str) and weights.endswith(".safetensors"):
        # a file of which the folder has the name alone
        options = with_weights(options, "")
    text = tensors.get(ANCHORS) if options["model"].get("anchors", "text") == "text" else None
    try:
        built = Rebuilt.of(with_weights(options, encoder_weights), config["classes"], text=text)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. The model in {folder} needs the encoder {config['encoder']['label']}: name its file with "
            f"--encoder_weights (encoder_weights=...)"
        ) from error
    check_encoder(built.encoder, config["encoder"]["sha256"], f"the model in {folder}")
    found = preprocessing_of(config)
    if built.encoder.preprocessing != found or built.encoder.logit_scale != config["encoder"]["logit_scale"]:
        raise StateError(
            f"the model in {folder} was trained with another preprocessing or logit scale than this file of weights "
            f"gives: {found}, scale {config['encoder']['logit_scale']}"
        )
    return built


def _portable(options: Options) -> Options:
    """Return options without paths: of files and folders the name is kept; the encoder's own values are fixed."""
    encoder = options["model"]["encoder"]
    arguments = dict(encoder.get("init_args") or {})
    if isinstance(arguments.get("weights"), str):
        arguments["weights"] = Path(arguments["weights"]).name
    if str(arguments.get("model", "")).startswith(FOLDER):
        arguments["model"] = FOLDER + Path(arguments["model"].removeprefix(FOLDER)).name
    found = {**encoder, "init_args": arguments} if arguments else encoder
    portable: Options = json.loads(json.dumps({**options, "model": {**options["model"], "encoder": found}}))
    check_confined(portable, "the options of the run")
    return portable


def fixed_options(model: SiteModel) -> Options:
    """Return options that name the logit scale and the preprocessing, which a file of weights alone does not."""
    encoder, options = model.encoder, model.options
    if not isinstance(encoder, FrozenCLIP):
        return options
    section = options["model"]["encoder"]
    found = {"logit_scale": encoder.logit_scale, **asdict(encoder.preprocessing)}
    arguments = {**(section.get("init_args") or {}), **found}
    return {**options, "model": {**options["model"], "encoder": {**section, "init_args": arguments}}}


def _is_uniform(frequencies: Tensor) -> bool:
    return bool((frequencies == frequencies[0]).all())


def _listed(frequencies: Tensor | None) -> list[float] | None:
    return None if frequencies is None else [float(value) for value in frequencies.double()]


def _tensor(frequencies: list[float] | None) -> Tensor | None:
    return None if frequencies is None else torch.tensor(frequencies, dtype=torch.float64)
