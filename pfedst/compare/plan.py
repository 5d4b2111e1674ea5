"""The plan of a comparison, read from its file: a base configuration, rows of options, seeds, and tuning."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, nearest

Options = dict[str, Any]
"""Dotted key of an option of `pfedst fit` -> value."""
KEYS = ("base", "options", "seeds", "reference", "rows", "tune")
TUNE_KEYS = ("seeds", "grid", "rows")
OF_THE_COMPARISON = ("seed_everything", "name", "runs_dir", "resume", "config", "ckpt_path", "dry_run")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: name of the row in the table.
        options: options of its runs, in addition to those of all rows.
        grid: options -> values that are tried on validation; empty without tuning.
    """

    label: str
    options: Options
    grid: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def trials(self) -> list[Options]:
        """All combinations of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison.

    Attributes:
        file: file of the plan.
        base: configuration of `pfedst fit` from which every run starts.
        options: options of every run.
        seeds: seeds of the runs of each row.
        reference: label of the row against which the others are tested.
        rows: rows by label, in the order of the table.
        trial_seeds: seeds of the tuning; empty without tuning.
    """

    file: Path
    base: Path
    options: Options
    seeds: tuple[int, ...]
    reference: str
    rows: dict[str, Row]
    trial_seeds: tuple[int, ...]

    @property
    def description(self) -> str:
        """The runs of the plan, in one line."""
        runs = len(self.rows) * len(self.seeds)
        trials = sum(len(row.trials) for row in self.rows.values() if row.grid) * len(self.trial_seeds)
        tuning = f", after {trials} runs of tuning on validation" if trials else ""
        seeds = f"seed{'s'[: len(self.seeds) != 1]} {', '.join(map(str, self.seeds))}"
        return f"{self.file.stem}: {', '.join(self.rows)}; {seeds} on {self.base}: {runs} runs{tuning}"

    def only(self, labels: Sequence[str]) -> Plan:
        """Return the plan with only these rows and the reference.

        Raises:
            ConfigurationError: If there is no such row.
        """
        for label in labels:
            if label not in self.rows:
                raise ConfigurationError(f"--only {label}: there is no such row.{nearest(label, self.rows)}")
        kept = {label: row for label, row in self.rows.items() if label in labels or label == self.reference}
        return replace(self, rows=kept)


def make_plan(content: Any, file: Path) -> Plan:
    """Return the plan for the content of a file.

    Raises:
        ConfigurationError: If a key is unknown or missing, or a value is invalid.
    """
    tree = _mapping(content, str(file), KEYS, file)
    base = file.parent / _text(tree.get("base"), "base", file)
    if not base.is_file():
        raise ConfigurationError(f"{file}: base: no file {base}; it is looked for beside {file.name}")
    seeds = _seeds(tree.get("seeds"), "seeds", file)
    trial_seeds, common, own = _tuning(tree.get("tune"), seeds, file)
    rows = {}
    for label, options in _mapping(tree.get("rows"), "rows", None, file).items():
        grid = own.pop(label, common)
        rows[str(label)] = Row(str(label), _options(options, f"rows: {label}", file), grid)
    if not rows:
        raise ConfigurationError(f"{file}: rows: none; name what is compared, such as PFedST: {{method: PFedST}}")
    for label in own:
        raise ConfigurationError(f"{file}: tune: rows: there is no row {label}.{nearest(label, rows)}")
    _check_trials(rows.values(), file)
    reference = str(tree.get("reference", next(iter(rows))))
    if reference not in rows:
        raise ConfigurationError(f"{file}: reference: there is no row {reference}.{nearest(reference, rows)}")
    return Plan(file, base, _options(tree.get("options") or {}, "options", file), seeds, reference, rows, trial_seeds)


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of `pfedst fit`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def _tuning(
    tree: Any, seeds: tuple[int, ...], file: Path
) -> tuple[tuple[int, ...], dict[str, list[Any]], dict[str, dict[str, list[Any]]]]:
    """Return the seeds of the trials, the grid of all rows, and the grids of single rows."""
    if tree is None:
        return (), {}, {}
    given = _mapping(tree, "tune", TUNE_KEYS, file)
    trial_seeds = _seeds(given.get("seeds"), "tune: seeds", file)
    if both := sorted(set(trial_seeds) & set(seeds)):
        raise ConfigurationError(f"{file}: tune: seeds: {both[0]} is a seed of the comparison too; take another")
    common = _grid(given.get("grid") or {}, "tune: grid", file)
    own = _mapping(given.get("rows") or {}, "tune: rows", None, file)
    return trial_seeds, common, {row: _grid(grid or {}, f"tune: rows: {row}", file) for row, grid in own.items()}


def _check_trials(rows: Iterable[Row], file: Path) -> None:
    """Check that all tuned rows have the same number of trials."""
    numbers = {row.label: len(row.trials) for row in rows if row.grid}
    if len(set(numbers.values())) > 1:
        counts = ", ".join(f"{label} {number}" for label, number in numbers.items())
        raise ConfigurationError(f"{file}: tune: rows get different numbers of trials ({counts}); give all the same")


def _grid(tree: Any, what: str, file: Path) -> dict[str, list[Any]]:
    grid = _options(tree, what, file)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"{file}: {what}: {key}: give a list of values, not {values}")
    return grid


def _options(tree: Any, what: str, file: Path) -> Options:
    options = {str(key): value for key, value in _mapping(tree, what, None, file).items()}
    for key in options:
        if key.split(".")[0] in OF_THE_COMPARISON:
            raise ConfigurationError(f"{file}: {what}: {key} is set by the comparison; leave it out")
    return options


def _seeds(value: Any, what: str, file: Path) -> tuple[int, ...]:
    numbers = isinstance(value, list) and bool(value) and all(type(seed) is int and seed >= 0 for seed in value)
    if not numbers or len(set(value)) < len(value):
        raise ConfigurationError(f"{file}: {what}: give a list of different numbers, such as [0, 1, 2], not {value}")
    return tuple(value)


def _mapping(tree: Any, what: str, known: tuple[str, ...] | None, file: Path) -> dict[Any, Any]:
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file}: {what}: give keys with values, not {tree!r}")
    for key in tree if known else ():
        if key not in known:  # type: ignore[operator]
            raise ConfigurationError(
                f'{file}: {what}: unknown key "{key}".{nearest(str(key), known or ())} Known: {", ".join(known or ())}'
            )
    return tree


def _text(value: Any, what: str, file: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{file}: {what}: give the path of a configuration of pfedst fit, not {value!r}")
    return value
