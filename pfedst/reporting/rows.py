"""Rows of a table: which runs belong to one, and a label that tells them apart from the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfedst.options import SEED, dotted
from pfedst.reporting.comparison import FinishedRun

OF_A_RUN = ("seed", "threads", "data_audit", "round", "when")
"""What the protocols of runs of one row may differ in, where the options of the study were not recorded."""
OF_A_FOLD = ("data.init_args.fold", "data.init_args.split_seed")
"""Options of the study in which the runs of one row over folds differ too."""
HASH_DIGITS = 8
"""Digits of a hash in the label of a row."""


@dataclass
class _Group:
    """Runs that differ in their seed alone, before they have a label.

    Attributes:
        method: name of the method.
        recorded: whether the options of the study were recorded; else `options` is the protocol.
        options: all that the runs have in common, by dotted key.
        runs: the runs.
    """

    method: str
    recorded: bool
    options: dict[str, Any]
    runs: list[FinishedRun] = field(default_factory=list)

    @classmethod
    def of(cls, run: FinishedRun) -> _Group:
        """Return the group of a run, without a run in it."""
        own = of_a_run(run)
        if run.study:
            options = {key: value for key, value in run.study.items() if key not in own}
        else:
            # runs that were made before a table of the protocol was recorded belong to those in which it is empty
            options = dotted({key: value for key, value in run.protocol.items() if key not in OF_A_RUN and value != {}})
        if run.part is not None:  # with folds, samples and the hash of the data belong to a fold
            options = {key: value for key, value in options.items() if key.split(".")[0] not in ("samples", "folds")}
        content = {key: value for key, value in run.content.items() if run.part is None or key != "data"}
        hashes = dotted({"hash": content})
        return cls(run.protocol["method"], bool(run.study), options | (hashes if content else {}))

    @property
    def key(self) -> str:
        """Equal for runs of one row."""
        return json.dumps([self.method, self.recorded, self.options], sort_keys=True)

    def label(self, others: Iterable[_Group], in_full: bool = False) -> str:
        """Return the method, and where others have the same method what distinguishes this group from them.

        Args:
            others: the groups of the table.
            in_full: with whole keys, and with options that are at their default here.
        """
        rivals = [other for other in others if other.method == self.method and other.key != self.key]
        alike = [other for other in rivals if other.recorded == self.recorded]
        keys = {*self.options, *(key for other in alike for key in other.options if in_full)}
        parts = [
            _option(key, self.options.get(key, "default"), in_full)
            for key in sorted(keys)
            if any(self.options.get(key, "default") != other.options.get(key, "default") for other in alike)
        ]
        if not self.recorded and len(alike) < len(rivals):
            parts.append("options not recorded")
        return ", ".join([self.method, *parts])


def labelled(runs: Sequence[FinishedRun], beside: Mapping[str, Sequence[FinishedRun]]) -> dict[str, list[FinishedRun]]:
    """Group runs into rows by the options of the study; rows of one method are told apart by what differs.

    Args:
        runs: single runs.
        beside: the rows of comparisons, by label. A run that belongs to one gets its label.
    """
    groups: dict[str, _Group] = {}
    for run in runs:
        group = _Group.of(run)
        groups.setdefault(group.key, group).runs.append(run)
    taken = {label: _Group.of(found[0]) for label, found in beside.items() if found}
    own = {group.key: label for label, group in taken.items()}
    labels = [group.label(groups.values()) for group in groups.values()]
    if len(set(labels)) < len(labels):
        labels = [group.label(groups.values(), in_full=True) for group in groups.values()]
    found: dict[str, list[FinishedRun]] = {}
    for label, group in zip(labels, groups.values(), strict=True):
        if group.key in own:
            label = own[group.key]
        elif label in taken:
            label = group.label([*groups.values(), *taken.values()], in_full=True)
        label = free_label(label, group.runs, {**beside, **found}, group.runs[0].folder.name)
        found[label] = group.runs
    return found


def free_label(label: str, runs: Sequence[FinishedRun], rows: Mapping[str, Sequence[FinishedRun]], name: str) -> str:
    """Return a label under which runs of this study, or none, are found; `name` distinguishes it where it is taken."""
    while runs and (found := rows.get(label)) and _Group.of(found[0]).key != _Group.of(runs[0]).key:
        label = f"{label}, {name}"
    return label


def of_a_run(run: FinishedRun) -> set[str]:
    """Return the options of the study in which the runs of a row differ."""
    return {SEED} if run.part is None else {SEED, *OF_A_FOLD}


def _option(key: str, value: Any, in_full: bool) -> str:
    """Return an option in words: `rank 4`, `adapter LoRATower`; in full the key and the value as they are."""
    if key.startswith("hash."):
        return f"{key.removeprefix('hash.')} {str(value)[:HASH_DIGITS]}"
    if in_full:
        return f"{key} {value}"
    if key.endswith(".class_path"):
        return f"{key.split('.')[-2]} {str(value).split('.')[-1]}"
    return f"{key.split('.')[-1]} {value}"
