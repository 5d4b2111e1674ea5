"""Turn a SiteModel into an ONNX file: images for the check, prior and temperature."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pfedst.errors import ConfigurationError
from pfedst.inference.images import items_of, reader
from pfedst.inference.onnx import OnnxModel, build_onnx, require_extra
from pfedst.inference.site_model import SiteModel
from pfedst.methods.priors import BALANCED, SITE, TRAINING, TargetPrior

CHECK_IMAGES = 32
"""At most so many images are used for the check."""
PRIORS = {
    TRAINING: "training: the class frequencies that the model has learned",
    BALANCED: "balanced: all classes equally frequent",
    SITE: "site: the class frequencies of the training images of the model's site",
}


def onnx_of(model: SiteModel, images: Any, prior: str | None = None) -> OnnxModel:
    """Return a model as one ONNX file, whose probabilities are those of `SiteModel.predict` at a prior.

    Args:
        model: the model; it is moved to the CPU.
        images: real images for the check, at least 8; see `items_of`. The first 32 are used.
        prior: see `SiteModel.predict`.

    Raises:
        ConfigurationError: If the model cannot be exported, or not at this prior.
        DataError: If an image cannot be read.
        StateError: If onnxruntime computes other probabilities.
    """
    require_extra()
    model.to("cpu")
    target = model.target(prior)
    scale, shift = model.correction(target)
    if not torch.isfinite(shift).all():
        raise ConfigurationError(
            f"ONNX: at the prior {target.option} a class of {model.name} has no probability at all; choose another "
            f"--prior"
        )
    read = reader(model.encoder.preprocessing, model.pixel_range)
    pixels = [read(item)[0] for item in islice(items_of(images), CHECK_IMAGES)]
    return build_onnx(
        model.encoder,
        model.adapter,
        model.class_names,
        torch.stack(pixels),
        scale,
        shift if shift.any() else None,
        prior_words(target),
    )


def prior_words(target: TargetPrior) -> str:
    """Return a prior in words, without the folder of its file."""
    return PRIORS.get(target.option, f"class frequencies of the file {Path(target.option).name}")
