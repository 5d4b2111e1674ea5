"""The options of a configuration that results depend on and that are not at their default."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from pfedst.configuration.yaml_text import load_yaml
from pfedst.options import (
    FIRST_DEFAULTS,
    FOLDER,
    INIT,
    MANIFEST,
    MODEL,
    PATHS,
    PRIOR,
    ROOT,
    VARIABLES,
    WEIGHTS,
    Effect,
    dotted,
    with_effect,
)
from pfedst.renamed import name_today

INIT_ARGS = ".init_args."
UNKNOWN = object()


def settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration by dotted keys; class paths have their present names."""
    return {
        key: name_today(value) if key.endswith("class_path") and isinstance(value, str) else value
        for key, value in dotted(tree).items()
    }


def study_options(text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that results depend on and that differ from their defaults, by dotted key.

    These are the options of the study, and those that change last digits. None of them is a path: of a file of weights
    or class frequencies and of a model's folder the name is kept, and the run of `--init` is left out, as its content
    has a hash.

    Args:
        text: the resolved configuration, as YAML.
        defaults: of options that belong to no class of the configuration, by dotted key.
    """
    flat = changed(settings(load_yaml(text, "the configuration")), defaults)
    found = with_effect(flat, Effect.STUDY, Effect.LAST_DIGITS)
    found.pop(INIT, None)
    for key in (WEIGHTS, PRIOR):
        if isinstance(found.get(key), str):  # a word is its own name
            found[key] = PurePath(found[key]).name
    if str(found.get(MODEL, "")).startswith(FOLDER):
        found[MODEL] = FOLDER + PurePath(found[MODEL].removeprefix(FOLDER)).name
    return found


def local_options(text: str, defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options that may differ from machine to machine and differ from their defaults, by dotted key.

    Args:
        text, defaults: as in `study_options`.
        prefix: of the keys that are returned.
    """
    flat = changed(settings(load_yaml(text, "the configuration")), defaults)
    found = with_effect(flat, Effect.LOCAL, Effect.LAST_DIGITS)
    return {key: value for key, value in found.items() if key.startswith(prefix)}


def results_depend_on(text: str, defaults: Mapping[str, Any]) -> str:
    """Return all that results depend on of a configuration, one key a line: what a comparison hashes.

    Paths of images and weights are included, since their content is not known yet; where an option is left open, that
    of the environment. Options that change last digits only are not.
    """
    flat = settings(load_yaml(text, "the configuration"))
    flat = changed(flat | _of_environment(flat), defaults)
    kept = with_effect(flat, Effect.STUDY) | {key: flat[key] for key in PATHS if key in flat}
    return "".join(f"{key}: {json.dumps(kept[key], default=str)}\n" for key in sorted(kept))


def _of_environment(flat: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths that the environment gives to the options that a configuration leaves open, by dotted key."""
    given = {key: os.environ.get(variable) for key, variable in VARIABLES.items() if not flat.get(key, UNKNOWN)}
    if MANIFEST in flat:
        given.pop(ROOT, None)  # its images lie beside it
    return {key: value for key, value in given.items() if value}


def changed(flat: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a configuration that are not at their first default (see `FIRST_DEFAULTS`).

    Args:
        flat: the configuration by dotted keys, as `settings` returns it.
        defaults: of options that belong to no class of the configuration, by dotted key.
    """
    kept = {}
    for key, value in flat.items():
        if f"{key}.".endswith(INIT_ARGS) and not value:
            continue  # a class without options: it may get some, with defaults
        group, is_of_a_class, name = key.rpartition(INIT_ARGS)
        default = _defaults_of(str(flat.get(f"{group}.class_path"))).get(name, UNKNOWN) if is_of_a_class else UNKNOWN
        if not is_of_a_class and not key.endswith(".class_path"):
            default = FIRST_DEFAULTS.get(key, defaults.get(key, UNKNOWN))
        if default is UNKNOWN or _plain(default) != value:
            kept[key] = value
    return kept


@cache
def _defaults_of(class_path: str) -> dict[str, Any]:
    """Return the defaults of all options of a class, those of its bases included; empty if it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return {}
    defaults: dict[str, Any] = {}
    for base in inspect.getmro(found) if inspect.isclass(found) else (found,):
        if inspect.isclass(base) and "__init__" not in vars(base):
            continue  # its options are those of a base, whose own first defaults they have
        try:
            parameters = inspect.signature(base.__init__ if inspect.isclass(base) else base).parameters
        except (TypeError, ValueError):
            continue
        for parameter in parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                first = FIRST_DEFAULTS.get(f"{base.__module__}.{base.__name__}.{parameter.name}", parameter.default)
                defaults.setdefault(parameter.name, first)
    return defaults


def _plain(value: Any) -> Any:
    """Return a default as it looks in YAML."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, PurePath) else value
