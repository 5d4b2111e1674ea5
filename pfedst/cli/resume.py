"""Going on with a run: whether the configuration is still its own, and how an interrupted run ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from pfedst.cli.yaml_text import load_yaml, read_yaml
from pfedst.errors import ConfigurationError, InterruptedRunError, StateError, listed
from pfedst.renamed import name_today
from pfedst.reporting.loading import dotted

HARMLESS = (
    "config",
    "name",
    "runs_dir",
    "resume",
    "ckpt_path",
    "coordinator.keep_states",
    "coordinator.save_fits",
    "coordinator.min_clients",
    "coordinator.executor",
    "coordinator.workers",
    "coordinator.timeout_seconds",
    "data.init_args.root",
    "data.init_args.manifest",
    "data.init_args.num_workers",
    "data.init_args.cache_folder",
    "data.init_args.cache_max_bytes",
    "data.init_args.audit",
    "trainer.logger",
)
"""Options that change no bit of a result, or whose effect the run's identity holds (the content of images)."""


def check_same_configuration(folder: Path, text: str) -> None:
    """Compare the configuration that a run was started with and the one at hand; more rounds are welcome.

    Args:
        folder: of the run.
        text: the configuration now, as YAML.

    Raises:
        ConfigurationError: an option that results depend on has changed; every such key is told.
        StateError: the saved configuration is missing or damaged.
    """
    file = folder / "config.yaml"
    try:
        then, now = _settings(read_yaml(file)), _settings(load_yaml(text, "the configuration"))
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ConfigurationError) as error:
        raise StateError(f"{file} is missing or damaged: the run cannot go on; start a new one") from error
    differing = [
        f"--{key} was {then.get(key)}, is {now.get(key)}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not _harmless(key, then.get(key), now.get(key))
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} was started otherwise: {listed(differing, '; ')}; give what it was started with, or a new --name"
        )


def results_depend_on(text: str) -> str:
    """What of a configuration (YAML) results depend on, one key a line.

    Threads, which change last bits only, are left out; where the images lie is not, as nothing is known of them yet.
    """
    flat = _settings(load_yaml(text, "the configuration"))
    left_out = ({*HARMLESS} | {"coordinator.threads"}) - {"data.init_args.root", "data.init_args.manifest"}
    kept = {key: value for key, value in flat.items() if not _is_of(key, left_out)}
    return "".join(f"{key}: {json.dumps(kept[key], default=str)}\n" for key in sorted(kept))


def _settings(tree: Any) -> dict[str, Any]:
    """A configuration by dotted keys. The old and the new name of a class are one setting."""
    return {
        key: name_today(value) if key.endswith("class_path") and isinstance(value, str) else value
        for key, value in dotted(tree).items()
    }


def _is_of(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _harmless(key: str, then: Any, now: Any) -> bool:
    if key == "coordinator.rounds":
        return isinstance(then, int) and isinstance(now, int) and now > then
    return _is_of(key, HARMLESS)


class _Interruption(BaseException):
    """Raised by a signal. Not KeyboardInterrupt: a Trainer that sees one ends the process by itself, without a word."""


@contextmanager
def told_when_interrupted(told: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a block with what had ended saved, and with how to go on.

    Args:
        told: what is kept, and how to go on.

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
        raise InterruptedRunError(f"interrupted; {told}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interruption
