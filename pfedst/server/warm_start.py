"""Warm start: the tensors of another run with which a run begins in place of random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedst.errors import ConfigurationError, StateError, listed
from pfedst.messages.payload import NET, State, check_finite, check_plain, hash_of
from pfedst.methods.interface import Start
from pfedst.reporting import RunFolder
from pfedst.state.round_choices import LAST
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import Snapshot, saved_table

INIT = "--init"
HASH_DIGITS = 16
"""Digits of the hash in the options of the study, which stand in labels of tables."""


@dataclass(frozen=True)
class Initial:
    """What the server of a run begins with in place of random tensors.

    Attributes:
        about: for the protocol; see `WarmStart`.
        shared: all shared tensors, by their key in the adapter; None if the run continues from its own state.
        anchors: class prototypes (K, E), which are not gathered then; None for other anchors.
    """

    about: Mapping[str, Any]
    shared: State | None = field(default=None, repr=False)
    anchors: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class WarmStart:
    """Where a run begins: shared and frozen tensors of an adapter, and class anchors. Nothing personal is part of it.

    Any source of these can make one; `of_run` reads a run's folder.

    Attributes:
        about: for the protocol: `name` and `round` of the source, and `sha256` of all that was read.
        identity: of the source: `classes` in the order of its outputs, and the hash `encoder_weights`.
        tensors: shared and frozen tensors by their key in the adapter; None if the run that began with them has saved
            a round, and so needs them no longer.
        anchors: class prototypes (K, E); None if the source has none.
        option: the option or command that names the source, for errors.
    """

    about: Mapping[str, Any]
    identity: Mapping[str, Any]
    tensors: State | None = field(repr=False)
    anchors: Tensor | None = field(default=None, repr=False)
    option: str = INIT

    @classmethod
    def of_run(cls, text: str, option: str = INIT) -> WarmStart:
        """Read a source: the folder of a run, `RUN`, `RUN@best`, or `RUN@N`.

        Args:
            text: the source.
            option: the option or command that names it, for errors.

        Raises:
            ConfigurationError: there is no such run, or that round is not kept.
            StateError: the saved round is damaged.
        """
        folder, number, saved = chosen_round_of(text, option)
        server = saved_table(saved.parts, "server")
        method, frozen, anchors = (saved_table(server, key) for key in ("method", "frozen", "anchors"))
        tensors = {**saved_table(method, NET), **frozen}
        for what, state in (("tensors", tensors), ("class anchors", anchors)):
            check_plain({what: state}, f"{option} {text}")
            check_finite(state, f"{option} {text}, {what}")
        about = {"name": folder.resolve().name, "round": number, "sha256": hash_of({**tensors, **_keyed(anchors)})}
        return cls(about, RunFolder(folder).identity(), tensors, anchors.get("classes"), option)

    @classmethod
    def continued(cls, identity: Mapping[str, Any]) -> WarmStart:
        """Return the start of a run that has saved a round, from its own identity; no tensor is read."""
        return cls(identity["init"], identity, None)

    @property
    def name(self) -> str:
        """The source in errors."""
        return f"{self.option} {self.about['name']}"

    @property
    def _or_none(self) -> str:
        """The end of a remedy: to do without a source, where that is possible."""
        return ", or leave --init out" if self.option == INIT else ""

    @property
    def study(self) -> dict[str, str]:
        """The option of the study: the content, wherever the source lies."""
        return {"init": str(self.about["sha256"])[:HASH_DIGITS]}

    @property
    def classes(self) -> list[str]:
        """The classes in the order of the outputs."""
        return list(self.identity["classes"])

    def check_encoder(self, encoder_weights: str) -> None:
        """Check that a run has the encoder of the source.

        Raises:
            StateError: the hashes differ.
        """
        theirs = self.identity["encoder_weights"]
        if theirs != encoder_weights:
            raise StateError(
                f"{self.name} was trained with another encoder: its weights have the hash {theirs}, here "
                f"{encoder_weights}; give --model.encoder as there{self._or_none}"
            )

    def for_run(self, start: Start, adapter: Mapping[str, Tensor]) -> tuple[Initial, State]:
        """Return what a run begins with, and the frozen tensors of its adapter.

        A tensor of the source that is personal in this run is not taken.

        Args:
            start: of the run, before this.
            adapter: all tensors of the run's adapter.

        Raises:
            ConfigurationError: nothing would be taken.
            StateError: another adapter or other class anchors, or the source kept shared tensors at its clients; the
                message names the keys.
        """
        if self.tensors is None:
            return Initial(self.about), start.frozen
        faults = [
            f"{key} {tuple(tensor.shape)}"
            + (f", here {tuple(adapter[key].shape)}" if key in adapter else ", which is not here")
            for key, tensor in self.tensors.items()
            if key not in adapter or (tensor.shape, tensor.dtype) != (adapter[key].shape, adapter[key].dtype)
        ]
        if faults:
            raise StateError(
                f"{self.name} has another adapter: {listed(faults, '; ', 8)}; give --model.adapter and --method as "
                f"there{self._or_none}"
            )
        if missing := [key for key in (*start.state, *start.frozen) if key not in self.tensors]:
            raise StateError(
                f"{self.name} does not share tensors that this run shares, as its adapter does not have them or its "
                f"method keeps them at the clients: {listed(missing, ', ', 8)}"
            )
        if (start.anchors == "prototypes") != (self.anchors is not None):
            theirs = "no class prototypes" if self.anchors is None else "class prototypes"
            raise StateError(
                f"{self.name} has {theirs}, and this run has the class anchors {start.anchors or 'none'}: set "
                f"--model.anchors as there"
            )
        if not start.state and self.anchors is None:
            raise ConfigurationError(f"{self.name} has no effect, as this method shares no tensor{self._or_none}")
        shared = {key: self.tensors[key] for key in start.state}
        return Initial(self.about, shared, self.anchors), {key: self.tensors[key] for key in start.frozen}


def chosen_round_of(text: str, option: str = INIT) -> tuple[Path, int, Snapshot]:
    """Return the folder of a run, and the number and the saved state of the round that a text names.

    Args:
        text: `RUN`, `RUN@best`, or `RUN@N`.
        option: the option or command that names it, for errors.

    Raises:
        ConfigurationError: there is no such run, or that round is not kept.
        StateError: the saved round is damaged.
    """
    folder, choice = folder_and_choice(text)
    if not (folder / "identity.json").is_file():
        raise ConfigurationError(f"{option} {text}: no run in {folder}; give a folder such as runs/NAME, or NAME@best")
    return folder, *RunState(folder / "state").chosen(choice)


def folder_and_choice(text: str) -> tuple[Path, str]:
    """Return the folder and the choice of a round that a text names."""
    path, _, choice = text.rpartition("@") if "@" in text and not Path(text).is_dir() else (text, "", LAST)
    return Path(path), choice


def _keyed(anchors: State) -> State:
    return {f"class anchors|{key}": tensor for key, tensor in anchors.items()}
