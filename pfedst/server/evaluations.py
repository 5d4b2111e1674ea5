"""Evaluations: what sites are asked of their models, and what is asked once after the last round."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pfedst.errors import NoEvaluationError, listed
from pfedst.evaluation.evaluate import Evaluated
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Reply, Request, SplitName
from pfedst.messages.transport import Transport

EVALUATED: tuple[SplitName, ...] = ("validation", "test")
MODELS = ("personal", "generic")

Evaluation = dict[str, dict[str, dict[str, Evaluated]]]
"""split -> model (`personal`, `generic`) -> client -> metrics and counts."""


def evaluate_sites(
    transport: Transport,
    requests: Mapping[str, Request],
    splits: Sequence[SplitName],
    has_generic: bool,
) -> tuple[Evaluation, dict[str, Fault]]:
    """Evaluate the personal and the generic model of every site; without a generic model, its metrics are not defined.

    Args:
        transport: the way to the sites.
        requests: by site.
        splits: the splits that they name.
        has_generic: whether the method has a generic model.

    Returns:
        The evaluation of the sites that could be evaluated, and the faults of the others by name.
    """
    found: dict[str, Any] = {}
    faults: dict[str, Fault] = {}
    for name, reply in transport.ask(requests, lambda name: None):
        if isinstance(reply, Fault):
            faults[name] = reply
        else:
            found[name] = reply.values["evaluated"]
    in_order = {name: found[name] for name in requests if name in found}
    models = MODELS if has_generic else ("personal",)
    evaluation: Evaluation = {
        split: {model: {name: Evaluated(**of[split][model]) for name, of in in_order.items()} for model in models}
        for split in splits
    }
    for split_of in () if has_generic else evaluation.values():
        split_of["generic"] = {
            name: Evaluated(dict.fromkeys(of.metrics), {}) for name, of in split_of["personal"].items()
        }
    return evaluation, {name: faults[name] for name in sorted(faults)}


def evaluate_all(
    transport: Transport, requests: Mapping[str, Request], splits: Sequence[SplitName], has_generic: bool
) -> Evaluation:
    """Evaluate every site, as `evaluate_sites` does, for a table that is nothing without one of them.

    Raises:
        PfedstError: a site could not be evaluated.
    """
    evaluation, faults = evaluate_sites(transport, requests, splits, has_generic)
    for fault in faults.values():
        fault.stop()
    return evaluation


def require_a_site(counted: Collection[str], faults: Mapping[str, Fault], when: str) -> None:
    """Check that at least one site of the means could be evaluated.

    Args:
        counted: the sites of the means: those that train.
        faults: of the sites that could not be evaluated.
        when: the round, in words.

    Raises:
        NoEvaluationError: no site of the means could be evaluated.
    """
    if all(site in faults for site in counted):
        kinds = [f"{name} ({fault.kind})" for name, fault in faults.items()]
        raise NoEvaluationError(
            f"{when}: no site could be evaluated: {listed(kinds)}. What was done is saved: mend what is said above, "
            f"then continue with the same command, --name and --resume true"
        )


def ask_flops(transport: Transport, name: str, request: Request) -> float | None:
    """Return the FLOPs of training on one image of a client; None, with a warning, if it cannot count them.

    A client that cannot is no reason to lose a run.
    """
    ((_, reply),) = transport.ask({name: request}, lambda name: None)
    if isinstance(reply, Reply):
        return float(reply.values["flops_per_image"])
    logging.getLogger("pfedst").warning("FLOPs are not counted: client %s: %s", name, reply.text)
    return None


def ask_class_metrics(transport: Transport, run: str, at: int, sites: Iterable[str]) -> dict[str, Any]:
    """Return what sites compute from their predictions of the last evaluation on test, each by site.

    `class_metrics` holds sensitivity, specificity and average precision of each class, `intervals` those of the metrics
    of the site, and `subgroups` metrics of the subgroups that sites report.

    Args:
        transport: the way to the clients.
        run: name of the run.
        at: round of that evaluation.
        sites: their names.
    """
    requests = {name: Request("class_metrics", run, at) for name in sites}
    found = _ask_of_predictions(transport, requests, "metrics of classes are missing")
    return {
        key: {name: values[key] for name, values in found.items() if key in values}
        for key in ("class_metrics", "intervals", "subgroups")
    }


def ask_calibration(
    transport: Transport, run: str, at: int, sites: Iterable[str], finetune_epochs: int
) -> dict[str, Any]:
    """Return by site what it reports of temperature and abstention, of the last evaluation.

    Args:
        transport, run, at: as in `ask_class_metrics`.
        sites: those with validation images.
        finetune_epochs: of the fine-tuning that the evaluated models have had.
    """
    requests = {name: Request("calibrate", run, at, finetune_epochs=finetune_epochs) for name in sites}
    found = _ask_of_predictions(transport, requests, "the model is not calibrated")
    return {name: values["calibration"] for name, values in found.items()}


def _ask_of_predictions(transport: Transport, requests: Mapping[str, Request], problem: str) -> dict[str, Any]:
    """Return by site what the sites compute from the predictions that they have kept of the last evaluation.

    A site that cannot is no reason to lose a run: a warning gives the reason, and the site is missing.
    """
    found = {}
    for name, reply in transport.ask(requests, lambda name: None):
        if isinstance(reply, Reply):
            found[name] = reply.values
            continue
        logging.getLogger("pfedst").warning("%s: site %s: %s", problem, name, reply.text)
    return {name: found[name] for name in sorted(found)}
