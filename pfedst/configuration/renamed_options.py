"""Configurations of other versions: those that name options of older versions load, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pfedst.errors import ConfigurationError
from pfedst.version import __version__

CONFIG_FORMAT = 2
"""Of `config.yaml`. Format 1 had no such key."""
FORMAT = "config_format"
GROUP = "coordinator"
MODEL, LOSS = "model", "loss"
EXECUTOR, TRANSPORT, SAVE_FITS = "executor", "transport", "save_fits"
TRANSPORTS = {"sequential": "in_process", "processes": "processes"}
"""Values of `executor` by their present name as `transport`."""


def with_present_names(configuration: Any) -> Any:
    """Return a configuration with the present names of its options.

    Raises:
        ConfigurationError: its format is not known, so that its options may mean something else.
    """
    if not isinstance(configuration, dict):
        return configuration
    written = configuration.get(FORMAT)
    if isinstance(written, int) and not 1 <= written <= CONFIG_FORMAT:
        version = configuration.get("pfedst_version")
        raise ConfigurationError(
            f"a configuration of format {written}: this version of pfedst, {__version__}, reads formats 1 to "
            f"{CONFIG_FORMAT}; use {f'pfedst {version}, which wrote it' if version else 'the version that wrote it'}"
        )
    if not isinstance(configuration.get(GROUP), dict):
        return configuration
    configuration = _with_the_loss_of_then(configuration)
    options = dict(configuration[GROUP])
    if EXECUTOR in options:
        options[TRANSPORT] = _transport(options.pop(EXECUTOR))
    if SAVE_FITS in options:
        del options[SAVE_FITS]
        _warn_of_save_fits()
    return configuration | {GROUP: options}


def _with_the_loss_of_then(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that a run has written before there were losses to choose with the loss of that time.

    A run writes all options, so that a missing one did not exist. A configuration that a person has written leaves out
    what is at its default, and gets today's.
    """
    written_by_a_run = FORMAT in configuration or SAVE_FITS in configuration[GROUP]
    model = configuration.get(MODEL)
    if not written_by_a_run or not isinstance(model, dict) or "encoder" not in model or LOSS in model:
        return configuration
    logging.getLogger("pfedst").warning(
        "the configuration is older than --%s.%s and is read with the loss of that time, cross-entropy (%s: null); the "
        "default today is BalancedSoftmax", MODEL, LOSS, LOSS,
    )  # fmt: skip
    return configuration | {MODEL: model | {LOSS: None}}


def present_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments of a command line with the present names of options."""
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name not in (f"--{GROUP}.{EXECUTOR}", f"--{GROUP}.{SAVE_FITS}"):
            found.append(argument)
            continue
        if not equals and rest:
            value = rest.pop(0)
        if name.endswith(EXECUTOR):
            found.append(f"--{GROUP}.{TRANSPORT}={_transport(value)}")
        else:
            _warn_of_save_fits()
    return found


def _transport(executor: str) -> str:
    present = TRANSPORTS.get(executor, executor)
    logging.getLogger("pfedst").warning(
        "--%s.%s %s is now --%s.%s %s; please rename it", GROUP, EXECUTOR, executor, GROUP, TRANSPORT, present
    )
    return present


def _warn_of_save_fits() -> None:
    logging.getLogger("pfedst").warning(
        "--%s.%s no longer exists: every local fit is saved, in the folder of its site; please remove it",
        GROUP,
        SAVE_FITS,
    )
