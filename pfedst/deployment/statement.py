"""What leaves a hospital in a run, in words, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pfedst.client.client import Client
from pfedst.evaluation.averages import metric_names
from pfedst.evaluation.counts import BINS
from pfedst.messages.payload import State, payload_bytes
from pfedst.reporting import bytes_text


def statement(client: Client, site: str, options: Mapping[str, Any]) -> str:
    """Return what leaves this hospital, and what stays.

    Args:
        client: answers for this site.
        site: its name.
        options: those that may differ from hospital to hospital and are set, by dotted key.
    """
    start, method, data = client.model.start(), client.method, client.data
    classes, width = start.anchors_shape
    samples = ", ".join(f"{split} {data.samples(site, split)}" for split in ("train", "validation", "test"))
    lines = [f"What leaves this hospital ({site}); every message is a line of messages.jsonl:"]
    if start.trains:
        shared = payload_bytes({"": start.state})
        lines.append(f"  after each local fit: {len(start.state)} tensors, {bytes_text(shared)} a round:")
        lines += [f"    {line}" for line in _tensors(start.state)]
        for part in sorted(method.extra_messages):
            lines.append(f"    and the part {part!r} of the method, of the same keys or fewer")
        lines.append("    with train loss, seconds, images, skipped steps and peak memory of the fit")
    if start.anchors == "prototypes":
        size = bytes_text(classes * (width + 1) * 8)
        lines.append(f"  once: the sum of the embeddings of each class ({classes}, {width}) and their number, {size};")
        lines.append("    of a class with one training image that is the embedding of this image")
    lines += [
        f"  once: number of images ({samples}), names of the {classes} classes, the options of the study, hashes of",
        "    all images together and of the encoder, findings of the audit as numbers",
    ]
    if client.shares_class_counts:
        lines.append("  once: number of training images of each class")
    lines += [
        f"  after each evaluation, of validation and test: {', '.join(metric_names(data.ordinal))};",
        f"    confusion counts ({classes}, {classes}); images, right ones and confidence in {BINS} bins",
        "  after the last round: metrics of the site and of each class with intervals, temperature and abstention",
        *_subgroups(client),
        "What stays here: images, file names, labels, predictions, personal tensors, texts of errors.",
        f"  personal tensors: {_personal(client)}",
    ]
    own = ", ".join(f"--{key} {value}" for key, value in options.items())
    lines.append(f"Options of this hospital alone: {own or 'none'}")
    return "\n".join(lines)


def _subgroups(client: Client) -> list[str]:
    chosen = client.data.subgroups
    if not chosen.columns:
        return []
    return [
        f"    and of each subgroup by {', '.join(chosen.columns)}: its name; number of images, patients or lesions and",
        f"    classes, and the same metrics, unless it has fewer than {chosen.minimum} images, patients or lesions",
    ]


def _tensors(state: State) -> list[str]:
    """Return a line for each tensor: name, shape, bytes."""
    return [
        f"{key} {tuple(tensor.shape)} {bytes_text(tensor.numel() * tensor.element_size())}"
        for key, tensor in state.items()
    ]


def _personal(client: Client) -> str:
    own, model = client.model.own_tensors(), client.model
    kept = [tensor for key, tensor in own.items() if model.kind(key) == "personal"]
    return f"{len(kept)}, {sum(math.prod(tensor.shape) for tensor in kept):,} numbers" if kept else "none"
