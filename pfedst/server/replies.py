"""Replies of clients, checked before the server uses them: the border for everything but the messages of methods.

A client checks what it sends. The server relies on none of it: a reply that no client of pfedst sends becomes a fault,
and of the others only the known keys are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from pfedst.errors import NoAnswerError, StateError
from pfedst.evaluation.averages import CLASS_METRICS, metric_names
from pfedst.evaluation.counts import BINS
from pfedst.messages.faults import Fault
from pfedst.messages.payload import check_plain
from pfedst.messages.records import FIT_RECORD, is_count, is_fit_record, is_number, is_positive
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started, Transport
from pfedst.reporting.records import is_stated
from pfedst.server.calibration_replies import is_calibration, known_of_calibration
from pfedst.server.site_replies import ENDS, is_audit, is_estimate, known_of_site, known_of_subgroups

PROTOCOL = {
    "encoder",
    "random_weights",
    "data",
    "data_audit",
    "cache",
    "local_epochs",
    "local_batches",
    "batch_size",
    "evaluation_batch_size",
    "augmentation",
    "transductive_sites",
    "optimizer",
    "loss",
    "trainer",
}
"""Keys of the protocol that a client reports; the others are the server's."""
OPTIONAL = {"folds", "prior", "sampler"}
"""Keys of the protocol that a client reports where they are not at their default."""
COUNTS = ("natural", "sampled")
"""Keys of the class counts of a client that shares them."""
SPLITS = ("train", "validation", "test")
CLASS_SIZES = ("images", "units", "other_units")
MOST_CHARACTERS = 2**20
"""Of the JSON of `protocol` and `study`: a thousand times what a client sends."""
LARGEST_METRIC = 1 + 1e-6
"""All metrics are shares or correlations; the rest is rounding."""


class CheckedTransport:
    """A transport whose replies are checked.

    Args:
        transport: the way to the clients.
        has_generic: whether the method has a generic model, whose metrics must be in an evaluation.
        trains: sites train, so that each must have training images.
    """

    def __init__(self, transport: Transport, has_generic: bool = True, trains: bool = True) -> None:
        self.transport = transport
        self.fewest_images = int(trains)
        self.models = ("personal", "generic") if has_generic else ("personal",)
        self._hellos: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> CheckedTransport:
        self.transport.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.transport.__exit__(kind, error, trace)

    def hello(self, run: str) -> dict[str, Reply]:
        """Return the reply to `hello` of every client.

        Raises:
            StateError: a reply that no client sends.
            NoAnswerError: there is no client.
        """
        replies = self.transport.hello(run)
        if not replies:
            raise NoAnswerError("no client can be reached: start the clients first")
        for name, reply in replies.items():
            what = f"the first reply from client {name}"
            self._hellos[name] = _hello(_values(name, reply), what, self.fewest_images)
        return {name: Reply(values) for name, values in self._hellos.items()}

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Send requests; yield exactly one reply or fault for each."""
        waiting = dict(requests)
        for name, reply in self.transport.ask(requests, started):
            request = waiting.pop(name, None)
            if request is not None:  # else it was not asked, or has replied before
                yield name, reply if isinstance(reply, Fault) else self._checked(name, request, reply)
        for name in waiting:
            yield name, Fault.of(NoAnswerError(f"client {name} sent no reply"))

    def _checked(self, name: str, request: Request, reply: Any) -> Reply | Fault:
        checks: dict[str, Callable[[str, Request, dict[str, Any]], dict[str, Any]]] = {
            "fit": self._fit,
            "evaluate": self._evaluation,
            "class_metrics": self._class_metrics,
            "calibrate": self._calibration,
            "cost": self._cost,
        }
        try:
            values = _values(name, reply)
            check_plain(reply.parts, f"the message from client {name}")
            check = checks.get(request.kind)
            return Reply(check(name, request, values) if check else {}, reply.parts)
        except StateError as error:
            return Fault.of(error)

    def _fit(self, name: str, request: Request, values: dict[str, Any]) -> dict[str, Any]:
        record = values.get("record")
        if not is_fit_record(record):
            raise StateError(f"the reply from client {name} holds no record of a fit")
        kept = {key: value for key, value in record.items() if key in FIT_RECORD}
        if request.evaluate and name in self._hellos:
            found = record.get("trained")
            kept["trained"] = {
                split: {"personal": self._metrics(name, split, _at(found, split, "personal"))}
                for split in request.evaluate
            }
        return {"record": kept, "repeated": values.get("repeated") is True}

    def _evaluation(self, name: str, request: Request, values: dict[str, Any]) -> dict[str, Any]:
        found = values.get("evaluated")
        return {
            "evaluated": {
                split: {
                    model: {
                        "metrics": self._metrics(name, split, _at(found, split, model, "metrics")),
                        "counts": self._counts(name, split, _at(found, split, model, "counts")),
                        "at_priors": self._stated(name, split, _at(found, split, model, "at_priors")),
                    }
                    for model in self.models
                }
                for split in request.evaluate
            }
        }

    def _class_metrics(self, name: str, request: Request, values: dict[str, Any]) -> dict[str, Any]:
        hello, found = self._hellos[name], values.get("class_metrics")
        images = hello["samples"]["test"]
        classes = len(hello["classes"]) if images else 1
        sizes = {key: _at(found, key) for key in ("images", "units", "without_unit")}
        models = {
            model: _at(found, model) for model in self.models if model == "personal" or _at(found, model) is not None
        }
        whole = sizes["images"] == images and all(is_count(size) and size <= images for size in sizes.values())
        for tables in models.values():
            whole = whole and _lengths(tables, classes) and all(_is_class_table(table, images) for table in tables)
            whole = whole and sum(table["images"] for table in tables) == images
        if not whole:
            raise StateError(f"the reply from client {name} holds no metrics of the classes of {images} images")
        kept = {
            model: [
                {key: table[key] for key in CLASS_SIZES}
                | {metric: {key: table[metric][key] for key in ENDS} for metric in CLASS_METRICS}
                for table in tables
            ]
            for model, tables in models.items()
        }
        return {"class_metrics": sizes | kept, **self._of_site(name, images, values)}

    def _of_site(self, name: str, images: int, values: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics of a site and of its subgroups, which clients of older versions do not send."""
        known: dict[str, Any] = {}
        for key, check in (("intervals", known_of_site), ("subgroups", known_of_subgroups)):
            if key in values:
                known[key] = check(values[key], images, self.models)
                if known[key] is None:
                    raise StateError(f"the reply from client {name} holds no {key} of {images} images")
        return known

    def _calibration(self, name: str, request: Request, values: dict[str, Any]) -> dict[str, Any]:
        samples, found = self._hellos[name]["samples"], values.get("calibration")
        if not is_calibration(found, samples["validation"], samples["test"]):
            raise StateError(f"the reply from client {name} holds no calibration of its model")
        return {"calibration": known_of_calibration(found)}

    def _cost(self, name: str, request: Request, values: dict[str, Any]) -> dict[str, Any]:
        flops = values.get("flops_per_image")
        if not is_positive(flops):
            raise StateError(f"the reply from client {name} holds no number of FLOPs")
        return {"flops_per_image": flops}

    def _metrics(self, name: str, split: str, metrics: Any) -> dict[str, float | None]:
        hello = self._hellos[name]
        whole = isinstance(metrics, dict) and set(metrics) == set(metric_names(hello["ordinal"]))
        if not whole or not all(_is_metric(value, hello["samples"][split]) for value in metrics.values()):
            raise StateError(f"the reply from client {name} holds no metrics of the split {split}")
        return dict(metrics)

    def _stated(self, name: str, split: str, found: Any) -> dict[str, Any]:
        if not is_stated(found, self._hellos[name]["samples"][split]):
            raise StateError(f"the reply from client {name} holds no metrics at class priors of the split {split}")
        return {prior: dict(table) for prior, table in found.items()}

    def _counts(self, name: str, split: str, counts: Any) -> dict[str, Any]:
        hello = self._hellos[name]
        images = hello["samples"][split]
        classes = len(hello["classes"]) if images else 1
        confusion, bins = _at(counts, "confusion"), _at(counts, "reliability")
        rows = _lengths(confusion, classes) and all(_lengths(row, classes) for row in confusion)
        whole = rows and all(is_count(number) for row in confusion for number in row)
        for key, check in (("images", is_count), ("right", is_count), ("confidence", is_positive)):
            numbers = _at(bins, key)
            whole = whole and _lengths(numbers, BINS) and all(check(number) for number in numbers)
        if not whole or not sum(map(sum, confusion)) == sum(bins["images"]) == images >= sum(bins["right"]):
            raise StateError(f"the reply from client {name} holds no counts of {images} images of the split {split}")
        return {"confusion": confusion, "reliability": {key: bins[key] for key in ("images", "right", "confidence")}}


def _values(name: str, reply: Any) -> dict[str, Any]:
    if isinstance(reply, Reply) and isinstance(reply.values, dict):
        return reply.values
    raise StateError(f"client {name} sent something that is no reply")


def _hello(values: dict[str, Any], what: str, fewest_images: int) -> dict[str, Any]:
    """Return the known keys of a reply to `hello`, of a site with so many training images or more.

    Raises:
        StateError: a key is missing or of another kind.
    """
    samples, classes = values.get("samples"), values.get("classes")
    checks = {
        "samples": isinstance(samples, dict)
        and set(samples) == set(SPLITS)
        and all(is_count(number) for number in samples.values())
        and samples["train"] >= fewest_images,
        "classes": _is_names(classes),
        "ordinal": isinstance(values.get("ordinal"), bool),
        "study": isinstance(values.get("study"), dict) and _is_json(values["study"]),
        "fingerprint": isinstance(values.get("fingerprint"), str),
        "encoder_weights": isinstance(values.get("encoder_weights"), str),
        "threads": is_count(values.get("threads")),
        "protocol": isinstance(values.get("protocol"), dict)
        and set(values["protocol"]) - OPTIONAL == PROTOCOL
        and isinstance(values["protocol"].get("prior", ""), str)
        and is_audit(values["protocol"]["data_audit"])
        and _is_json(values["protocol"]),
    }
    for key, holds in checks.items():
        if not holds:
            raise StateError(f'{what}: "{key}" is missing or of another kind')
    kept = {key: values[key] for key in checks}
    if values.get("balanced_sampling") is True:
        kept["balanced_sampling"] = True
    counts = values.get("class_counts")
    if counts is None:
        return kept
    whole = all(_lengths(_at(counts, key), len(kept["classes"])) for key in COUNTS)
    whole = whole and all(is_count(number) for key in COUNTS for number in counts[key])
    if not whole or sum(counts["natural"]) != kept["samples"]["train"]:
        raise StateError(f'{what}: "class_counts" are not those of {kept["samples"]["train"]} images')
    return kept | {"class_counts": {key: counts[key] for key in COUNTS}}


def _at(table: Any, *keys: str) -> Any:
    """Return a value of nested dicts, or None."""
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _lengths(found: Any, length: int) -> bool:
    return isinstance(found, list) and len(found) == length


def _is_metric(value: Any, images: int) -> bool:
    """Return True for a number in [-1, 1] of some images, or None where the metric is not defined."""
    return value is None or (images > 0 and is_number(value) and abs(value) <= LARGEST_METRIC)


def _is_class_table(table: Any, images: int) -> bool:
    """Return True for the numbers of images and units of a class, and three metrics with their intervals."""
    of_class, units, others = (_at(table, key) for key in CLASS_SIZES)
    if not all(map(is_count, (of_class, units, others))) or not (units <= of_class <= images >= of_class + others):
        return False
    return all(is_estimate(_at(table, metric), images) for metric in CLASS_METRICS)


def _is_names(found: Any) -> bool:
    names = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return names and 0 < len(found) == len(set(found)) and sum(map(len, found)) < MOST_CHARACTERS


def _is_json(value: Any) -> bool:
    try:
        return len(json.dumps(value, allow_nan=False)) < MOST_CHARACTERS
    except (TypeError, ValueError, RecursionError):
        return False
