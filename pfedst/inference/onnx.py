"""Make one ONNX file of encoder and adapter, and check it in onnxruntime before it is written.

Shapes: B images, S side of the square input in pixels, K classes.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfedst.adapters import Adapter
from pfedst.encoders import Encoder
from pfedst.errors import ConfigurationError, StateError
from pfedst.inference.onnx_metadata import clean, metadata_of
from pfedst.state import write_atomically

BATCHES = (1, 3, 8)
"""Numbers of images with which a file is checked; tracing uses none of them."""
EXTRA = ("onnx", "onnxscript", "onnxruntime")
TRACED = 4
TOLERANCE = 1e-4
"""Largest difference of a probability between the file and the model."""
LARGEST_BYTES = 2**31 - 2**24
"""A protobuf message ends at 2 GB; the graph itself needs less than the difference."""


@dataclass(frozen=True)
class OnnxModel:
    """A checked ONNX file, not yet on the disk, and what the check measured.

    Attributes:
        content: the bytes of the file.
        opset: version of the ONNX operators in it.
        seconds: time of tracing, conversion and check.
        images: number of images of the check.
        worst_difference: largest difference of a probability between onnxruntime and the model.
    """

    content: bytes = field(repr=False)
    opset: int
    seconds: float
    images: int
    worst_difference: float

    def write(self, file: Path) -> None:
        """Write the file whole or not at all; an existing file is replaced.

        Raises:
            StateError: If the disk refuses.
        """
        try:
            write_atomically(file, self.content)
        except OSError as error:
            raise StateError(f"{file} cannot be written ({error.strerror or error})") from error


class PortableModel(nn.Module):
    """Images (B, 3, S, S) to logits and probabilities (B, K), with every weight in this module.

    Args:
        adapter: the adapter; low-rank updates are merged in a copy.
        scale: factor on the logits before the softmax, a number or (K,).
        shift: number added to the scaled logits of each class, (K,).

    Raises:
        ConfigurationError: If the adapter cannot be expressed with plain weights.
    """

    scale: Tensor
    shift: Tensor | None

    def __init__(self, adapter: Adapter, scale: Tensor | float = 1.0, shift: Tensor | None = None) -> None:
        super().__init__()
        self.adapter = adapter.merged()
        # the encoder is no module, so its weights would become nameless constants
        self.tower = getattr(self.adapter.encoder, "tower", None)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.register_buffer("shift", None if shift is None else shift.float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits as the adapter computes them, and softmax(logits * scale + shift)."""
        needs = self.adapter.needs
        logits = self.adapter(self.adapter.encoder.encode_batch(images, (needs,))[needs])
        return logits, self.probabilities(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return softmax(logits * scale + shift), (B, K), for logits (B, K)."""
        scaled = logits * self.scale
        return (scaled if self.shift is None else scaled + self.shift).softmax(-1)


def build_onnx(
    encoder: Encoder,
    adapter: Adapter,
    class_names: Sequence[str],
    images: Tensor,
    scale: Tensor | float = 1.0,
    shift: Tensor | None = None,
    prior: str = "the class frequencies of training",
) -> OnnxModel:
    """Make one ONNX file of a model for any number of images, and check it at batches of 1, 3 and 8 images.

    The input `images` (batch, 3, S, S) is float32, preprocessed as the metadata say. The outputs are `probabilities`
    (batch, K) = softmax(logits * scale + shift) and `logits` (batch, K). The metadata hold class names in the order of
    the outputs, preprocessing, prior and versions, and no path of this machine.

    Args:
        encoder: the frozen encoder, on the CPU.
        adapter: the adapter, on the CPU, with its class anchors.
        class_names: names of the K classes.
        images: at least 8 preprocessed real images (B, 3, S, S), for the check.
        scale: factor on the logits, such as 1 / temperature: a number or (K,).
        shift: number added to the scaled logits of each class, (K,), such as a difference of log priors.
        prior: the class frequencies for which the probabilities hold, in words.

    Raises:
        ConfigurationError: If the extra `onnx` is not installed, the adapter cannot be exported, the file would have
            2 GB or more, or there are fewer than 8 images.
        StateError: If onnxruntime does not compute what the model computes.
    """
    require_extra()
    if len(images) < max(BATCHES):
        raise ConfigurationError(f"ONNX: the check needs {max(BATCHES)} images or more, and {len(images)} are given")
    started = time.perf_counter()
    model = PortableModel(adapter, scale, shift).eval()
    size_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if size_bytes > LARGEST_BYTES:
        raise ConfigurationError(
            f"ONNX: the weights of {encoder.label} have {size_bytes:,} bytes, and a file is limited to 2 GB; choose a "
            f"smaller encoder"
        )
    # also fills what a tower computes at its first use, which tracing must not do
    expected = _expected(encoder, adapter, images, model)
    proto = _converted(model, images[:TRACED], type(adapter).__name__)
    clean(proto, metadata_of(encoder, class_names, prior))
    content = proto.SerializeToString()
    worst = _check(content, images, expected, type(adapter).__name__)
    opset = next(item.version for item in proto.opset_import if not item.domain)
    return OnnxModel(content, int(opset), time.perf_counter() - started, len(images), worst)


def require_extra() -> None:
    """Check that what writes and checks a file is installed.

    Raises:
        ConfigurationError: If it is not.
    """
    try:
        for name in EXTRA:
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"writing ONNX needs pip install 'pfedst[onnx]' ({error})") from error


@torch.no_grad()
def _expected(encoder: Encoder, adapter: Adapter, images: Tensor, model: PortableModel) -> Tensor:
    """Return the probabilities (B, K) of the model itself: the encoder's own path and the adapter before merging."""
    was_training = adapter.training
    adapter.eval()
    logits = adapter(encoder.extract(images, adapter.needs)).double()
    adapter.train(was_training)
    model(images[:TRACED])
    expected: Tensor = model.probabilities(logits)
    return expected


def _converted(model: PortableModel, images: Tensor, name: str) -> Any:
    """Return the ONNX model. Tracing raises where it would fix the number of images; the converter would not.

    Raises:
        ConfigurationError: If the model cannot be traced or converted. The message names the adapter.
    """
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with torch.no_grad(), _quietly():
            program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits", "probabilities"],
                verbose=False,
            )
    except Exception as error:  # tracing runs any code of a model, and raises whatever it raises
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(f"{name} cannot be exported to ONNX: {reason}") from error
    return converted.model_proto  # type: ignore[union-attr]


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the notes of the exporter about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(content: bytes, images: Tensor, expected: Tensor, name: str) -> float:
    """Return the largest difference of a probability between the file in onnxruntime and the model.

    Raises:
        StateError: If the file does not run, or a probability or a class differs.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        worst, other = 0.0, 0
        for batch in BATCHES:
            for start in range(0, len(images) - batch + 1, batch):
                part = slice(start, start + batch)
                (found,) = session.run(["probabilities"], {"images": images[part].float().numpy()})
                difference, changed = _compare(torch.from_numpy(found).double(), expected[part])
                worst, other = max(worst, difference), other + changed
    except Exception as error:  # onnxruntime has no common class of errors
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StateError(f"ONNX: {name} does not run in onnxruntime: {reason}") from error
    if worst > TOLERANCE or other:
        raise StateError(
            f"ONNX: onnxruntime computes other probabilities than {name}: largest difference {worst:.1e} (allowed: "
            f"{TOLERANCE:.0e}), another class {other} times on {len(images)} images at batches of {BATCHES}"
        )
    return worst


def _compare(found: Tensor, expected: Tensor) -> tuple[float, int]:
    """Return the largest difference (infinite for NaN), and how many images have clearly another class."""
    difference = (found - expected).abs().max().item()
    top = expected.topk(min(2, expected.shape[1]), dim=1).values
    clear = top[:, 0] - top[:, -1] > 2 * TOLERANCE
    changed = (found.argmax(1) != expected.argmax(1)) & clear
    return (difference if difference == difference else float("inf")), int(changed.sum())
