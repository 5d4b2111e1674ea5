"""The optimiser of a local fit, and those that cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim import LBFGS, Optimizer

from pfedst.errors import ConfigurationError
from pfedst.partition import ADAPTER, norm_keys

if TYPE_CHECKING:
    from pfedst.client import FederatedClient


def grouped_optimizer(client: FederatedClient) -> Optimizer:
    """One optimiser over groups of (learning-rate scale, weight decay or none), with what the last fit kept of it.

    Raises:
        ConfigurationError: its options are out of range, or it cannot work here.
    """
    no_decay = set(norm_keys(client))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    parameters = dict(client.named_parameters())
    for key in client.learnable:
        decays = key not in no_decay and parameters[key].ndim > 1
        scale = client.method.learning_rate_scale(key.removeprefix(ADAPTER))
        groups.setdefault((scale, decays), []).append(parameters[key])
    try:
        optimizer = client.make_optimizer(
            [{"params": group} | ({} if decays else {"weight_decay": 0.0}) for (_, decays), group in groups.items()]
        )
    except ValueError as error:
        raise ConfigurationError(f"--model.optimizer: {error}") from error
    _check(optimizer, scaled=client.scaler is not None)
    for group, (scale, _) in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] *= scale
    if client.optimizer_state is not None:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": client.optimizer_state})
    return optimizer


def _check(optimizer: Optimizer, scaled: bool) -> None:
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "--model.optimizer LBFGS: it takes several gradients a step, which no method can edit; use AdamW or SGD"
        )
    if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
        # it unscales within its step, after the method has edited gradients
        raise ConfigurationError(
            "--model.optimizer: fused optimisers do not go with --trainer.precision 16-mixed; use bf16-mixed, or leave "
            "fused out"
        )
