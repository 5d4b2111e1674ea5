"""What the centre and all hospitals of a run must have in common, and whether a method can run between hospitals."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pfedst.client.model import ClientModel
from pfedst.client.module import FederatedClient
from pfedst.data import FederatedDataModule
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import hash_of
from pfedst.methods.interface import FederatedMethod
from pfedst.options import of_all_sites
from pfedst.version import __version__


def shared_study(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the study that are the same at all hospitals, by dotted key."""
    return of_all_sites(study, inspect.signature(FederatedDataModule.__init__).parameters.keys())


def agreement(module: FederatedClient, classes: list[str], study: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared, key by key, by every hospital, before it answers.

    Args:
        module: built for the classes and the method.
        classes: names of the classes in order.
        study: the options that are the same at all hospitals, see `shared_study`.
    """
    return {
        "version of pfedst": __version__,
        "classes": list(classes),
        "SHA-256 of the encoder": module.encoder.compute_hash(),
        # made from the seed at every site: another version of torch may draw others
        "SHA-256 of frozen tensors": hash_of(module.model.start().frozen),
        **{f"--{key}": value for key, value in study.items()},
    }


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return a line for each key in which a hospital (here) and the centre (there) differ."""
    return [
        f"{key} is {_text(here, key)} at this hospital, {_text(there, key)} at the centre"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def _text(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"


def reason_against(method: FederatedMethod, model: ClientModel, sites: Sequence[str]) -> str | None:
    """Return why a method cannot run between hospitals; None if it can.

    Args:
        method: the plugin.
        model: built for it.
        sites: names of the hospitals.
    """
    if method.pooled:
        return "it trains on the images of all sites in one place"
    for name in sites:
        model.name = name
        place = method.unlabelled(model)
        if place is not None and place[0] != name:
            return f"with these options it shows the images of site {place[0]} to the others"
    return None


def check_method(method: FederatedMethod, model: ClientModel, sites: Sequence[str]) -> None:
    """Check that a method can run between hospitals.

    Raises:
        ConfigurationError: it needs images of other sites.
    """
    if reason := reason_against(method, model, sites):
        raise ConfigurationError(f"method {type(method).__name__} cannot run between hospitals: {reason}")
