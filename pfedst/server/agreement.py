"""What all sites of a run, and a saved run and the data it meets, must agree in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from pfedst.errors import ConfigurationError, StateError, listed
from pfedst.messages.requests import Reply
from pfedst.methods.interface import FederatedMethod
from pfedst.options import of_the_study
from pfedst.server.merged import Merged
from pfedst.server.server import Server
from pfedst.version import __version__


def check_hellos(hellos: Mapping[str, Reply], study: Mapping[str, Any] | None) -> None:
    """Check that all sites have the same classes, and the options of this study.

    Raises:
        ConfigurationError: naming sites and options.
    """
    first = next(iter(hellos.values())).values
    for name, hello in hellos.items():
        if hello.values["classes"] != first["classes"]:
            raise ConfigurationError(
                f"site {name} has the classes {listed(hello.values['classes'])}, others have "
                f"{listed(first['classes'])}: give all sites the same --data.class_names"
            )
        if hello.values["ordinal"] != first["ordinal"]:
            raise ConfigurationError(
                f"site {name} has --data.ordinal {hello.values['ordinal']}, others have {first['ordinal']}: give all "
                f"sites the same"
            )
        if hello.values["protocol"].get("prior") != first["protocol"].get("prior"):
            raise ConfigurationError(f"site {name} has another --model.prior than others: give all sites the same")
        theirs = hello.values["study"]
        own = theirs if study is None else of_the_study(study)
        different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        if different:
            texts = [f"--{key} is {theirs.get(key)} there, {own.get(key)} here" for key in different]
            raise ConfigurationError(f"site {name} is configured for another study: {listed(texts, '; ')}")


def check_same_model(trained: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that a run is evaluated with the encoder and the classes that it was trained with.

    Args:
        trained: the identity of the run.
        here: the identity of what it is to be evaluated with.

    Raises:
        StateError: another encoder, or other classes: its numbers would be wrong.
    """
    remedies = {
        "encoder_weights": "give --model.encoder.weights the file that it was trained with",
        "classes": "name the classes as it does, with --data.class_names",
    }
    for key, remedy in remedies.items():
        if key in trained and trained[key] != here[key]:
            what = key.replace("_", " ")
            raise StateError(f"the run was trained with other {what}: {trained[key]}, here {here[key]}; {remedy}")


def check_new_sites(sites: Collection[str], merged: Merged, method: FederatedMethod) -> list[str]:
    """Return the sites that were not in a run, by name.

    Raises:
        ConfigurationError: the run has no model for them.
    """
    found = sorted(site for site in sites if site not in merged.after)
    if found and not method.has_generic:
        raise ConfigurationError(
            f"{listed(found)}: not in the run, and method {type(method).__name__} merges nothing, so that there is no "
            f"generic model; name sites of the run with --site, or test a run of another method"
        )
    return found


def check_prior(server: Server, hellos: Mapping[str, Reply]) -> None:
    """Check that the predictions of all models can be for the class prior that clients are configured with.

    Raises:
        ConfigurationError: the frequencies that a merged model has learned are not known.
    """
    if not any(hello.values["protocol"].get("prior") for hello in hellos.values()):
        return
    method = server.method
    merges = method.has_generic or not method.has_own_prior
    if merges and not server.knows_merged_prior:
        raise ConfigurationError(
            "--model.prior: the class frequencies that the merged model has learned are not known, as sites send no "
            "class counts; add --coordinator.share_class_counts true (each site sends its number of training images by "
            "class, once), train with --model.loss BalancedSoftmax, whose models have learned none, or leave "
            "--model.prior out"
        )


def joint_audit(hellos: Mapping[str, Reply]) -> dict[str, Any] | None:
    """Return the audit of the data of all sites; None if none was audited.

    Sites of one data set (the same fingerprint) send one audit. Of several, findings are added.
    """
    found = {hello.values["fingerprint"]: hello.values["protocol"]["data_audit"] for hello in hellos.values()}
    audits = [audit for audit in found.values() if audit is not None]
    if not audits:
        return None
    severities = dict.fromkeys(severity for audit in audits for severity in audit["findings"])
    missing = [name for name, hello in hellos.items() if hello.values["protocol"]["data_audit"] is None]
    return {
        "opened": all(audit["opened"] for audit in audits),
        "findings": {key: sum(audit["findings"].get(key, 0) for audit in audits) for key in severities},
        "codes": list(dict.fromkeys(code for audit in audits for code in audit["codes"])),
        **({"not_audited": missing} if missing else {}),
    }


def identity(hellos: Mapping[str, Reply]) -> dict[str, Any]:
    """Return what the bits of a run depend on besides its configuration: one value, or one a site."""

    def common(key: str) -> Any:
        values = {name: hello.values[key] for name, hello in hellos.items()}
        first = next(iter(values.values()))
        return first if all(value == first for value in values.values()) else dict(sorted(values.items()))

    # the content of a file of class frequencies, which the configuration only names
    prior = next(iter(hellos.values())).values["protocol"].get("prior")
    return {
        **({"prior": prior} if prior else {}),
        "pfedst": __version__,
        "torch": torch.__version__,
        "encoder": next(iter(hellos.values())).values["protocol"]["encoder"],
        "encoder_weights": common("encoder_weights"),
        "classes": common("classes"),
        "data": common("fingerprint"),
        "threads": common("threads"),
    }
