"""A model in a folder that can be carried away: `model.safetensors`, `config.json`, `metrics.json` and `README.md`.

The encoder is not part of it: the folder names its weights by their hash. `config.json` holds everything else that a
prediction needs, and the hash of `model.safetensors` and of itself, so that a changed file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedst.encoders import FrozenCLIP, Preprocessing
from pfedst.errors import ConfigurationError, StateError, WeightsError
from pfedst.inference.card import model_card, results_of
from pfedst.inference.options import Options, check_confined, with_weights
from pfedst.inference.rebuild import ANCHORS, GENERIC, PERSONAL, Rebuilt, load_tensors, tensors_of
from pfedst.inference.run import Run, check_encoder
from pfedst.inference.site_model import Abstention, SiteModel
from pfedst.methods.priors import TargetPrior
from pfedst.options import FOLDER
from pfedst.state import write_atomically, writing
from pfedst.state.files import json_bytes
from pfedst.version import __version__

FORMAT = 1
MODEL_FILE, CONFIG_FILE, CARD_FILE, METRICS_FILE = "model.safetensors", "config.json", "README.md", "metrics.json"
FILES = (MODEL_FILE, CONFIG_FILE, CARD_FILE, METRICS_FILE)
MOST_CONFIG_BYTES = 2**22
FEWEST_SITES = 3
"""From so many sites on a generic model carries the mean of their class frequencies: of two, each knows the other's."""
OWN_HASH = "config_sha256"


def export(run: Run, model: SiteModel, folder: Path, licence: str | None = None) -> Path:
    """Write a model of a run into a new folder.

    Args:
        run: the run.
        model: one of its models.
        folder: to write; must be absent or empty.
        licence: name of the licence, as the hub knows it (`cc-by-nc-4.0`); None leaves it open.

    Raises:
        ConfigurationError: the folder holds something.
        StateError: the disk refuses.
    """
    check_new(folder)
    weights = save({key: tensor.contiguous() for key, tensor in tensors_of(model.adapter).items()})
    config = config_of(model, len(run.sites)) | {"model_sha256": hashlib.sha256(weights).hexdigest()}
    config |= {OWN_HASH: _config_hash(config)}
    results = results_of(run, model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / METRICS_FILE, json_bytes(results))
        write_atomically(folder / CARD_FILE, model_card(config, results, folder.name, licence).encode())
        write_atomically(folder / MODEL_FILE, weights)
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
            "sha256": encoder.compute_hash(),
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
    from pfedst.inference.hub import local_folder

    place = local_folder(folder)
    config = read_config(place)
    tensors = _read_tensors(place / MODEL_FILE, config)
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


def is_model(folder: Path) -> bool:
    """Return True if a folder holds an exported model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.yaml").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`, checked.

    Raises:
        StateError: it is missing, damaged, changed, or of a newer version, or an option is a path out of the folder.
    """
    file = folder / CONFIG_FILE
    try:
        if file.stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        config: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise StateError(f"{folder}: no model, as it holds no {CONFIG_FILE}; give a folder of pfedst export") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{file} is damaged ({error}); {_COPY_AGAIN}") from error
    number = config.get("format") if isinstance(config, dict) else None
    if type(number) is not int or OWN_HASH not in config:
        raise StateError(f"{file} is not of a model that pfedst export has written")
    if number > FORMAT:
        version = config.get("versions", {})
        raise StateError(
            f"{file} is of format {number}, and this version of pfedst, {__version__}, reads {FORMAT}: install the "
            f"version that wrote it ({version.get('pfedst') if isinstance(version, dict) else 'unknown'})"
        )
    if config[OWN_HASH] != _config_hash(config):
        raise StateError(f"{file} was changed after it was written; {_COPY_AGAIN}")
    check_confined(config["options"], str(file))
    if fault := _fault(config):
        raise StateError(f"{file}: {fault}; {_COPY_AGAIN}")
    return config


_COPY_AGAIN = "copy the folder again from its source"


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
            f"--encoder-weights (encoder_weights=...)"
        ) from error
    check_encoder(built.encoder, config["encoder"]["sha256"], f"the model in {folder}")
    found = Preprocessing(**_tuples(config["encoder"]["preprocessing"]))
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


def _read_tensors(file: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != config["model_sha256"]:
            raise ValueError("its hash is not the one in config.json")
        return load(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise StateError(f"{file} is missing or damaged ({error}); {_COPY_AGAIN}") from error


def _config_hash(config: Mapping[str, Any]) -> str:
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
        Preprocessing(**_tuples(config["encoder"]["preprocessing"]))
        str(config["encoder"]["sha256"]), str(config["encoder"]["label"]), float(config["encoder"]["logit_scale"])
        dict(config["source"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"an entry is missing or of another kind ({error!r})"
    return ""


def _is_prior(values: Any, classes: int) -> bool:
    whole = isinstance(values, list) and len(values) == classes and all(type(value) is float for value in values)
    return whole and all(0 < value <= 1 for value in values) and abs(math.fsum(values) - 1) < 1e-6


def _is_uniform(frequencies: Tensor) -> bool:
    return bool((frequencies == frequencies[0]).all())


def _listed(frequencies: Tensor | None) -> list[float] | None:
    return None if frequencies is None else [float(value) for value in frequencies.double()]


def _tensor(frequencies: list[float] | None) -> Tensor | None:
    return None if frequencies is None else torch.tensor(frequencies, dtype=torch.float64)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
