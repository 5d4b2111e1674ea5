"""The page of a method: its docstring, its options, and its cost, which is counted on tensors without memory."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pfedst.client.module import FederatedClient
from pfedst.encoders import FrozenCLIP, class_sums
from pfedst.errors import PfedstError
from pfedst.messages.payload import payload_bytes
from pfedst.messages.requests import PROTOTYPES
from pfedst.methods.interface import FederatedMethod, ServerState, Start
from pfedst.reporting import bytes_text

MODEL, CLASSES = "ViT-B-16-quickgelu", 8
PROTOCOL = f"defaults on {MODEL}, {CLASSES} classes, class prototypes as anchors where the method has no others"
SECTIONS = ("Why", "Method", "When to use", "Differs from the paper in")
HEADINGS = ("method", "what it is", "adapter", "needs", "shared", "personal", "trained", "sent before", "sent a round")


@dataclass(frozen=True)
class MethodCost:
    """What a method holds, trains and sends on ViT-B/16 with 8 classes, computed from shapes alone.

    `download_bytes` and `upload_bytes` are those of one client in one round, all messages included;
    `setup_upload_bytes` are those that it sends once before the first round.
    """

    adapter: str
    needs: str
    shared: str
    personal: str
    parameters_trained: int
    parameters_sent: int
    upload_bytes: int
    download_bytes: int
    setup_upload_bytes: int


def method_cost(method: FederatedMethod) -> MethodCost:
    """Compute the cost of a method with its options. Weights are not allocated."""
    with torch.device("meta"):
        encoder = FrozenCLIP(MODEL, weights="random")
        names = [f"class {index}" for index in range(CLASSES)]
        template = FederatedClient(encoder, anchors=method.requires_anchors or "prototypes")
        client = template.build(names, method, 0).model
        start = client.start()
        server: ServerState = {}
        method.setup(server, start, ["client"])
        client.received = method.broadcast(server, "client")
        upload = method.upload(client)
    return MethodCost(
        type(client.adapter).__name__,
        client.adapter.needs,
        _groups(client.partition.keys("shared")),
        _groups([key for key in client.own_keys() if client.kind(key) == "personal"]),
        start.parameters_trained,
        start.parameters_sent,
        payload_bytes(upload),
        payload_bytes(client.received),
        _prototype_bytes(start) if start.anchors == "prototypes" else 0,
    )


def _prototype_bytes(start: Start) -> int:
    """Return the bytes of the sums and counts that a client sends for class prototypes."""
    K, E = start.anchors_shape
    sums, counts = class_sums(torch.empty(0, E), torch.empty(0, dtype=torch.long), K)
    return payload_bytes({PROTOTYPES: {"sums": sums, "counts": counts}})


def page(name: str, method: type[FederatedMethod]) -> str:
    """Return the Markdown page of a method, from its docstring and its cost."""
    paragraphs = _paragraphs(method)
    lines = [f"# {name}", "", paragraphs["What"], "", f"*{method.source}*", ""]
    for section in SECTIONS:
        if section in paragraphs:
            lines += [f"## {section}", "", paragraphs[section], ""]
    lines += ["## What is shared, and what it costs", ""]
    try:
        cost = method_cost(method())
        lines += [
            f"- adapter: `{cost.adapter}`, which needs `{cost.needs}` of the encoder",
            f"- shared: {cost.shared}",
            f"- personal: {cost.personal}",
            f"- trained: {cost.parameters_trained:,} numbers a client; sent: {cost.parameters_sent:,} a round "
            f"(up {bytes_text(cost.upload_bytes)}, down {bytes_text(cost.download_bytes)} a client)"
            + (
                f", and once before {bytes_text(cost.setup_upload_bytes)} up: sums and counts of class prototypes"
                if cost.setup_upload_bytes
                else ""
            ),
            "",
            f"Counted with {PROTOCOL}.",
        ]
    except PfedstError as error:
        lines += [f"Cannot be counted: {error}"]
    lines += ["", "## Options", "", "| option | default | meaning |", "|---|---|---|"]
    lines += [f"| `{option}` | `{default}` | {meaning} |" for option, default, meaning in _options(method)]
    command = f"pfedst fit --config demo --method {name}"
    if method.requires_anchors not in (None, "prototypes"):  # as in the demo
        command += f" --model.anchors {method.requires_anchors}"
    if (epochs := method().fewest_local_epochs) > 1:
        command += f" --trainer.max_epochs {epochs}"
    return "\n".join([*lines, "", "```console", f"$ {command}", "```", ""])


def pages(methods: dict[str, type[FederatedMethod]]) -> dict[str, str]:
    """Return file name -> text: one page per method, and README.md with the table of all."""
    rows = [" | ".join([f"[{name}]({name}.md)", *cells(method)]) for name, method in methods.items()]
    index = [
        "# Methods",
        "",
        "Written by `pfedst methods --docs docs/methods`: do not edit. The comparison methods were chosen by us,",
        f"each for a mechanism of its own. Counted with {PROTOCOL}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *(f"| {row} |" for row in rows),
    ]
    return {f"{name}.md": page(name, method) for name, method in methods.items()} | {
        "README.md": "\n".join(index) + "\n"
    }


def cells(method: type[FederatedMethod]) -> list[str]:
    """Return the row of a method in the table of all, without its name."""
    what = _paragraphs(method)["What"]
    try:
        cost = method_cost(method())
    except PfedstError as error:
        return [what, f"not on this encoder: {error}", *[""] * 6]
    sent = f"{cost.parameters_sent:,} = {bytes_text(cost.upload_bytes)}"
    before = bytes_text(cost.setup_upload_bytes)
    return [what, cost.adapter, cost.needs, cost.shared, cost.personal, f"{cost.parameters_trained:,}", before, sent]


def _paragraphs(method: type[FederatedMethod]) -> dict[str, str]:
    """Return the first paragraph of the docstring as `What`, and its paragraphs with a heading, each as one line."""
    found: dict[str, str] = {}
    title = "What"
    for line in (inspect.getdoc(method) or "").partition("\nArgs:")[0].split("\n"):
        heading, colon, rest = line.partition(": ")
        if colon and heading in SECTIONS:
            title, line = heading, rest
        found[title] = f"{found.get(title, '')} {line.strip()}".strip()
    # capitalise the first letter of a paragraph, but not of a formula
    words = r"^(a(?= [a-z]{2})|[a-z](?=[a-z]+[ ,'-][a-zA-Z]))"
    return {title: re.sub(words, lambda c: c[0].upper(), text) for title, text in found.items()}


def _options(method: type[FederatedMethod]) -> list[tuple[str, object, str]]:
    """Return name, default and meaning of every option, from the signatures and docstrings along the class's bases."""
    meanings: dict[str, str] = {}
    defaults: dict[str, object] = {}
    for cls in [base for base in method.__mro__ if issubclass(base, FederatedMethod)]:
        text = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        for name, meaning in re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", text, re.M | re.S):
            meanings.setdefault(name, " ".join(meaning.split()))
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                defaults.setdefault(name, parameter.default)
    return [(name, default, meanings.get(name, "")) for name, default in defaults.items()]


def _groups(keys: Sequence[str]) -> str:
    """Return keys without layer numbers and tensor names: `side.down, side.blocks.o, ...`, with LoRA apart."""
    groups = dict.fromkeys(
        (".".join([part for part in key.removeprefix("adapter.").split(".")[:-1] if not part.isdigit()]) or key)
        + (" LoRA" if key.endswith(("lora_A", "lora_B")) else "")
        for key in keys
    )
    return ", ".join(groups) or "nothing"
