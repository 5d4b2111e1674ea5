"""Makes the optimiser of a local fit, and refuses optimisers that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from pfedst.errors import ConfigurationError

NO_DECAY = {"weight_decay": 0.0}


def grouped_optimizer(
    make: Callable[[list[dict[str, Any]]], Optimizer],
    parameters: Mapping[str, nn.Parameter],
    norms: Collection[str],
    scale_of: Callable[[str], float],
    lr_factor: float,
    kept: Mapping[int, Mapping[str, Any]] | None,
    scaled: bool,
) -> Optimizer:
    """Make one optimiser over groups of (learning-rate scale, weight decay or none).

    Args:
        make: parameter groups -> the optimiser.
        parameters: the parameters that are trained in some epoch, by name.
        norms: names of the parameters of normalisation layers. They get no weight decay, and neither do biases.
        scale_of: name -> factor on the learning rate.
        lr_factor: factor on all learning rates: the schedule's.
        kept: the optimiser's state after the last fit, by the number of each parameter; None for none.
        scaled: True if the loss is scaled, as with 16-mixed precision.

    Raises:
        ConfigurationError: its options are out of range, or it cannot work here.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for key, parameter in parameters.items():
        decays = key not in norms and parameter.ndim > 1
        groups.setdefault((scale_of(key), decays), []).append(parameter)
    optimizer = _made(make, [{"params": group} | ({} if key[1] else NO_DECAY) for key, group in groups.items()])
    _check(optimizer, scaled)
    for group, (scale, _) in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] *= scale * lr_factor
    if kept is not None:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": kept})
    return optimizer


def optimizer_options(make: Callable[[list[dict[str, Any]]], Optimizer]) -> dict[str, Any]:
    """Return class and main options of an optimiser, for the protocol.

    Raises:
        ConfigurationError: its options are out of range.
    """
    optimizer = _made(make, [{"params": [nn.Parameter(torch.zeros(1))]}])
    shown = ("lr", "weight_decay", "momentum")
    return {"class": type(optimizer).__name__} | {n: v for n, v in optimizer.defaults.items() if n in shown}


def _made(make: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    try:
        return make(groups)
    except ValueError as error:
        raise ConfigurationError(f"--model.optimizer: {error}") from error


def _check(optimizer: Optimizer, scaled: bool) -> None:
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "--model.optimizer LBFGS: it takes several gradients a step, which no method can edit; use AdamW or SGD"
        )
    if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
        # it unscales within its step, after the method has edited gradients
        raise ConfigurationError(
            "--model.optimizer: fused optimisers cannot be used with --trainer.precision 16-mixed; use bf16-mixed, or "
            "leave fused out"
        )
