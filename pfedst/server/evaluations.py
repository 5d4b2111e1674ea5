"""Evaluations: what sites are asked of their models, and what is asked once after the last round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pfedst.errors import NoAnswerError
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
    may_be_away: bool = False,
) -> Evaluation:
    """Evaluate the personal and the generic model of every site; without a generic model, its metrics are not defined.

    Args:
        transport: the way to the sites.
        requests: by site.
        splits: the splits that they name.
        has_generic: whether the method has a generic model.
        may_be_away: a site that does not answer is left out, with a warning, unless no site answers.

    Raises:
        PfedstError: a site could not be evaluated: a mean over the others would mean something else each round.
    """
    found: dict[str, Any] = {}
    away: dict[str, Fault] = {}
    for name, reply in transport.ask(requests, lambda name: None):
        if not isinstance(reply, Fault):
            found[name] = reply.values["evaluated"]
        elif may_be_away and isinstance(reply.error, NoAnswerError):
            away[name] = reply
        else:
            reply.stop()
    for name, fault in sorted(away.items()):
        if not found:
            fault.stop()
        logging.getLogger("pfedst").warning(
            "site %s is not evaluated in this round; the means of the round do not include it, and the round cannot be "
            "the best one: %s",
            name,
            fault.text,
        )
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
    return evaluation


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
    """Return by site sensitivity, specificity and average precision of each class, of the last evaluation on test.

    Args:
        transport: the way to the clients.
        run: name of the run.
        at: round of that evaluation.
        sites: their names.
    """
    requests = {name: Request("class_metrics", run, at) for name in sites}
    return _ask_of_predictions(transport, requests, "class_metrics", "metrics of classes are missing")


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
    return _ask_of_predictions(transport, requests, "calibration", "the model is not calibrated")


def _ask_of_predictions(
    transport: Transport, requests: Mapping[str, Request], key: str, problem: str
) -> dict[str, Any]:
    """Return by site what the sites compute from the predictions that they have kept of the last evaluation.

    A site that cannot is no reason to lose a run: a warning gives the reason, and the site is missing.
    """
    found = {}
    for name, reply in transport.ask(requests, lambda name: None):
        if isinstance(reply, Reply):
            found[name] = reply.values[key]
            continue
        logging.getLogger("pfedst").warning("%s: site %s: %s", problem, name, reply.text)
    return {name: found[name] for name in sorted(found)}
