"""The options that a model is rebuilt from: encoder, adapter, class anchors, loss and method of a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from pfedst.adapters import AdapterFactory
from pfedst.encoders import AnchorKind, Encoder
from pfedst.errors import ConfigurationError, PfedstError, StateError
from pfedst.methods.criteria import DEFAULT_LOSS, Criterion, CrossEntropy
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.registry import registered_methods
from pfedst.options import FOLDER

Options = dict[str, Any]
"""`model` with the entries of `MODEL_KEYS`, and `method`; classes as `class_path` and `init_args`."""
MODEL_KEYS = ("encoder", "adapter", "anchors", "prompts", "loss")


class ModelSection:
    """The part of the section `model:` of a configuration that a prediction depends on; see `FederatedClient`.

    Args:
        encoder: the frozen encoder.
        adapter: class and options of the adapter; with null, the choice of the method.
        anchors: where the class anchors come from.
        prompts: templates of `text` anchors.
        loss: class and options of the loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter: AdapterFactory | None = None,
        anchors: AnchorKind = "text",
        prompts: Sequence[str] = ("a photo of a {}",),
        loss: Criterion | None = DEFAULT_LOSS,
    ) -> None:
        self.encoder = encoder
        self.adapter = adapter
        self.anchors: AnchorKind = anchors
        self.prompts = tuple(prompts)
        self.loss: Criterion = loss or CrossEntropy()


def options_of(configuration: Mapping[str, Any]) -> Options:
    """Return the options of a whole configuration that a model is rebuilt from.

    Raises:
        StateError: a section is missing.
    """
    try:
        model, method = configuration["model"], configuration["method"]
        return {"model": {key: model[key] for key in MODEL_KEYS if key in model}, "method": method}
    except (KeyError, TypeError) as error:
        raise StateError(
            f"the configuration has no section {error}: it is not one that pfedst fit has written"
        ) from error


def with_weights(options: Options, weights: str | Path | None) -> Options:
    """Return options whose encoder has other weights: a file, a tag, or the folder of a model in a folder.

    Raises:
        ConfigurationError: weights are given, and the encoder has none.
    """
    if weights is None:
        return options
    encoder = options["model"]["encoder"]
    arguments = dict(encoder.get("init_args") or {})
    if str(arguments.get("model", "")).startswith(FOLDER) and Path(weights).is_dir():
        arguments["model"] = f"{FOLDER}{weights}"
    elif "weights" in arguments:
        arguments["weights"] = str(weights)
    else:
        raise ConfigurationError(f"--encoder_weights {weights}: the encoder {encoder['class_path']} has no weights")
    return {**options, "model": {**options["model"], "encoder": {**encoder, "init_args": arguments}}}


def instantiate(options: Options) -> tuple[ModelSection, FederatedMethod]:
    """Make the encoder, the adapter's factory, the loss and the method that options name.

    Raises:
        PfedstError: of one of these classes.
        ConfigurationError: a class is not installed, or it does not have an option.
    """
    registered_methods()  # imports them, so that their short names can be used
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelSection, "model")
    parser.add_subclass_arguments(FederatedMethod, "method", required=True)
    try:
        made = parser.instantiate_classes(parser.parse_object(options))
    except Exception as error:  # jsonargparse raises many kinds, with the error of a class as their cause
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, PfedstError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigurationError(
            f"the model cannot be rebuilt from its options: {' '.join(str(error).split())[:600]}; install the package "
            f"that its classes come from, or the version of pfedst that wrote it"
        ) from error
    return made.model, made.method


def check_confined(options: Any, what: str) -> None:
    """Check that no option is a path that leads out of a folder. Templates of prompts may hold any text.

    Raises:
        StateError: an option is an absolute path, or has a part `..` or `~`.
    """
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key != "prompts":
                check_confined(value, f"{what}.{key}")
    elif isinstance(options, list | tuple):
        for value in options:
            check_confined(value, what)
    elif isinstance(options, str):
        text = options.removeprefix(FOLDER)
        parts = re.split(r"[/\\]", text)
        if text.startswith(("/", "\\", "~")) or ".." in parts or re.match(r"[A-Za-z]:[/\\]", text):
            raise StateError(f"{what}: {options!r} is a path that leads out of the folder; do not use this file")
