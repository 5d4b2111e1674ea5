"""The one list of options by their effect on results.

Resuming a run accepts changes of options without effect and of local options. Clients of one run, and runs of one row
of a table, must agree in the options of the study. An option that is not listed here belongs to the study, so that a
new option cannot be forgotten. An option at its default does not enter a hash, so that a new option orphans no old run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any


class Effect(Enum):
    """The effect of an option on results."""

    NONE = "no effect on results"
    LOCAL = "differs from machine to machine, with the same bits"
    LAST_DIGITS = "differs from machine to machine, with other last digits"
    STUDY = "part of the study"


EFFECTS: dict[str, Effect] = {
    "config": Effect.NONE,
    "config_format": Effect.NONE,
    "pfedst_version": Effect.NONE,
    "name": Effect.NONE,
    "runs_dir": Effect.NONE,
    "resume": Effect.NONE,
    "dry_run": Effect.NONE,
    "ckpt_path": Effect.NONE,
    "coordinator.keep_states": Effect.NONE,
    "coordinator.min_clients": Effect.NONE,
    "coordinator.transport": Effect.NONE,
    "coordinator.workers": Effect.NONE,
    "coordinator.timeout_seconds": Effect.NONE,
    "flower": Effect.NONE,
    "trainer.default_root_dir": Effect.NONE,
    "trainer.enable_model_summary": Effect.NONE,
    "trainer.enable_progress_bar": Effect.NONE,
    "trainer.logger": Effect.NONE,
    # the content of images and weights is compared by hash (`identity.json`), wherever they lie: see `PATHS`
    "data.init_args.root": Effect.LOCAL,
    "data.init_args.manifest": Effect.LOCAL,
    "data.init_args.images": Effect.LOCAL,
    "data.init_args.split_file": Effect.LOCAL,
    "data.init_args.metadata": Effect.LOCAL,
    "data.init_args.num_workers": Effect.LOCAL,
    "data.init_args.cache_folder": Effect.LOCAL,
    "data.init_args.cache_max_bytes": Effect.LOCAL,
    "data.init_args.audit": Effect.LOCAL,
    "data.init_args.subgroups": Effect.LOCAL,
    "data.init_args.subgroup_bands": Effect.LOCAL,
    "data.init_args.subgroup_minimum": Effect.LOCAL,
    "coordinator.threads": Effect.LAST_DIGITS,
    "trainer.accelerator": Effect.LAST_DIGITS,
    "trainer.devices": Effect.LAST_DIGITS,
    "data.init_args.cache": Effect.LAST_DIGITS,
    "data.init_args.cache_device_bytes": Effect.LAST_DIGITS,
}
"""Effects by the dotted key of an option, or of a group of options."""
FIRST_DEFAULTS: dict[str, Any] = {
    "coordinator.optimizer_state": "reset",
    "pfedst.methods.interface.FederatedMethod.weighting": "samples",
}
"""The first defaults of options whose default has changed since, by dotted key, or by class and option.

A run names each option that is not at its FIRST default. So a run with today's default is told from an older one, which
named nothing.
"""
ROOT = "data.init_args.root"
"""The option that names the folder with the images."""
MANIFEST = "data.init_args.manifest"
"""The option that names a table of images; its folder is theirs, if `ROOT` is left open."""
PATHS = (ROOT, MANIFEST, *(f"data.init_args.{name}" for name in ("images", "split_file", "metadata")))
"""Local options that decide which images a run sees, until their content is known by its hash."""
WEIGHTS = "model.encoder.init_args.weights"
"""The option that may be the path of a file: of the study is its name alone."""
ROOT_VARIABLE = "PFEDST_DATA_ROOT"
"""Environment variable with the data folder to use if no option names one."""
WEIGHTS_VARIABLE = "PFEDST_ENCODER_WEIGHTS"
"""Environment variable with the weights to use if no option names them."""
VARIABLES = {ROOT: ROOT_VARIABLE, WEIGHTS: WEIGHTS_VARIABLE}
"""Environment variables by the option that they stand for where it is left open."""
MODEL = "model.encoder.init_args.model"
FOLDER = "local-dir:"
"""Prefix of a model that is a folder: of the study is its name alone."""
HUB_MODEL = "hf://"
"""Prefix of an exported model on the Hugging Face hub."""
PRIOR = "model.prior"
"""The option that may be the path of a file with class frequencies: of the study is its name alone."""
INIT = "init"
"""The run from whose tensors a run begins: of the study is the hash of these tensors."""
DATA_CLASS = "data.class_path"
OF_A_SITE = (DATA_CLASS, WEIGHTS, "data.init_args.class_names", "data.init_args.only_sites")
"""Options of the study that are a hospital's own affair in a run between hospitals: how its images are stored, and the
name of a file. Classes, and the content of the file, are compared by value."""
SEED = "seed_everything"
"""The option in which the runs of one row differ."""


def effect_of(key: str) -> Effect:
    """Return the effect of an option by its dotted key, such as `data.init_args.root`."""
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((EFFECTS[prefix] for prefix in prefixes if prefix in EFFECTS), Effect.STUDY)


def of_the_study(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are part of the study, of options by their dotted keys."""
    return with_effect(options, Effect.STUDY)


def of_all_sites(options: Mapping[str, Any], of_any_data: Collection[str]) -> dict[str, Any]:
    """Return the options that all hospitals of a run must have in common, of options by their dotted keys.

    Args:
        options: by dotted key.
        of_any_data: names of the options that every data module has; others say how the images of a site are stored.
    """
    data = "data.init_args."
    return {
        key: value
        for key, value in of_the_study(options).items()
        if key not in OF_A_SITE and (not key.startswith(data) or key[len(data) :].split(".")[0] in of_any_data)
    }


def with_effect(options: Mapping[str, Any], *effects: Effect) -> dict[str, Any]:
    """Return the options that have one of these effects, of options by their dotted keys."""
    return {key: value for key, value in sorted(options.items()) if effect_of(key) in effects}


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of JSON or YAML with one key a leaf, such as `protocol.optimizer.lr`; an empty table is a leaf."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
