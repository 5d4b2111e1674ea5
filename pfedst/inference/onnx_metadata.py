"""The metadata of an ONNX file: what a reader needs to use it, and nothing of the machine that wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pfedst.encoders import Encoder
from pfedst.version import __version__


def metadata_of(encoder: Encoder, class_names: Sequence[str], prior: str) -> dict[str, str]:
    """Return the metadata of an ONNX file: class names and preprocessing as JSON, prior, encoder and version."""
    return {
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "preprocessing": json.dumps(asdict(encoder.preprocessing) | {"channels": "RGB", "range": [0, 1]}),
        "prior": prior,
        "encoder": encoder.label,
        "pfedst_version": __version__,
    }


def clean(proto: Any, metadata: Mapping[str, str]) -> None:
    """Name the axis of images, remove stack traces with paths of this machine, and add the metadata of the model."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    graphs = [proto.graph, *proto.functions]
    for value in (*proto.graph.input, *proto.graph.output, *(v for graph in graphs for v in graph.value_info)):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)
    for item in _with_metadata(proto):
        del item.metadata_props[:]
        item.doc_string = ""
    for key, text in metadata.items():
        proto.metadata_props.add(key=key, value=text)


def _with_metadata(proto: Any) -> Iterator[Any]:
    """Yield every part of a model that may hold metadata, with the graphs inside of nodes."""
    yield proto
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        yield graph
        yield from (*graph.value_info, *getattr(graph, "initializer", ()))
        for value in (*graph.input, *graph.output):
            if not isinstance(value, str):  # those of a function are names
                yield value
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
