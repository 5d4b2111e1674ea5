"""Resuming: checks that the configuration is the run's own, and ends an interrupted run with a message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from pfedst.cli.study import changed, settings
from pfedst.configuration.renamed_options import CONFIG_FORMAT
from pfedst.configuration.yaml_text import load_yaml, read_yaml
from pfedst.errors import ConfigurationError, InterruptedRunError, StateError, listed
from pfedst.options import Effect, effect_of


def is_unused(folder: Path) -> bool:
    """Return True for a run that ended before its first file was whole."""
    return folder.is_dir() and all(path.suffix == ".part" for path in folder.iterdir())


def check_same_configuration(folder: Path, text: str, defaults: Mapping[str, Any]) -> None:
    """Compare the configuration that a run was started with and the present one; more rounds are allowed.

    More rounds are not allowed where the learning rate of a round depends on their number. An option that is newer than
    the run may be at its default.

    Args:
        folder: of the run.
        text: the present configuration, as YAML.
        defaults: of options that belong to no class of the configuration, by dotted key.

    Raises:
        ConfigurationError: an option that results depend on has changed; the message lists all such keys.
        StateError: the saved configuration is missing or damaged, or made by another version of pfedst.
    """
    from pfedst.client.lightning_options import UNUSED  # torch, which other users of this module do without

    # named only by a configuration that an older version wrote, and then at their default
    left_out = {f"trainer.{name}" for name in UNUSED}
    file = folder / "config.yaml"
    try:
        then, now = settings(read_yaml(file)), settings(load_yaml(text, "the configuration"))
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ConfigurationError) as error:
        raise StateError(f"{file} is missing or damaged: the run cannot be continued; start a new one") from error
    if then.get("config_format") != CONFIG_FORMAT:
        raise StateError(
            f"{folder} was made by another version of pfedst and cannot be continued by this one: finish it with the "
            f"version that identity.json names, or start a new run with --config {file}"
        )
    left_out |= now.keys() - then.keys() - changed(now, defaults).keys()
    grows = now.get("coordinator.lr_schedule", "constant") == "constant"
    differing = [
        f"--{key} was {then.get(key)}, is {now.get(key)}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
        and key not in left_out
        and not _may_change(key, then.get(key), now.get(key), grows)
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} was started with other options: {listed(differing, '; ')}; give what it was started with, or a "
            f"new --name"
        )


def _may_change(key: str, then: Any, now: Any, grows: bool) -> bool:
    if key == "coordinator.rounds":
        return grows and isinstance(then, int) and isinstance(now, int) and now > then
    return effect_of(key) in (Effect.NONE, Effect.LOCAL)


class _Interruption(BaseException):
    """Raised by a signal. Not KeyboardInterrupt: a Trainer that sees one ends the process by itself, without a word."""


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a block with one error that says how to continue.

    Args:
        remedy: what is saved, and how to continue.

    Raises:
        InterruptedRunError: in place of what the signal would do.
    """
    caught: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        caught = ()  # elsewhere no signal may be caught
    before = {number: signal.signal(number, _interrupt) for number in caught}
    try:
        yield
    except _Interruption:
        raise InterruptedRunError(f"interrupted; {remedy}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interruption
