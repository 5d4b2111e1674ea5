"""The plan of a comparison, read from its file: a base configuration, rows of options, seeds, and tuning."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedst.configuration.command_line import plain
from pfedst.configuration.shipped import shipped
from pfedst.errors import ConfigurationError, counted, nearest
from pfedst.evaluation.stated import SITE, STATED
from pfedst.reporting.claims import OWN_PRIOR, PRIORS, Claim, source_row
from pfedst.reporting.tables import WORDS

Options = dict[str, Any]
"""Dotted key of an option of `pfedst fit` -> value."""
KEYS = ("base", "options", "seeds", "reference", "rows", "tune", "folds", "claims", "assumed_deviation")
TUNE_KEYS = ("seeds", "grid", "rows", "bounds")
CLAIM_KEYS = ("row", "against", "measure", "prior")
OF_THE_COMPARISON = ("seed_everything", "name", "runs_dir", "resume", "config", "ckpt_path", "dry_run")
OF_ONE_RUN = {"method", "model", "data", "coordinator", "trainer"}
"""Keys of a configuration of `pfedst fit`."""
OF_THE_FOLDS = ("data.folds", "data.fold", "data.split_seed")
"""Options that a comparison over folds sets for every run."""
MORE = "; more if grids are extended"
ASSUMED_DEVIATION = 4.0
"""Points, if the plan says nothing."""
Bounds = Mapping[str, tuple[float | None, float | None]]
"""Dotted key of an option -> its lowest and highest possible value, None for no bound."""


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
    def keys(self) -> set[str]:
        """The options that the row sets or tunes."""
        return {plain(key) for key in (*self.options, *self.grid)}

    @property
    def trials(self) -> list[Options]:
        """All combinations of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Part:
    """What every row is measured on: a fold of a partition, or the split of the data set.

    Attributes:
        seeds: seeds of the runs of a row on it, which are averaged.
        split_seed: seed of the partition; None without folds.
        fold: the fold that is test; None without folds.
    """

    seeds: tuple[int, ...]
    split_seed: int | None = None
    fold: int | None = None


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
        trial_seeds: seeds of the tuning; empty without tuning, and with folds, where all runs are trials.
        repetitions: the same seeds; those of one repetition share a partition into folds.
        folds: number of folds; None for the split of the data set.
        claims: the comparisons that are tested; the others are described.
        assumed_deviation: standard deviation of a difference over folds, in points, for what can be detected.
        bounds: natural bounds of options of grids.
    """

    file: Path
    base: Path
    options: Options
    seeds: tuple[int, ...]
    reference: str
    rows: dict[str, Row]
    trial_seeds: tuple[int, ...]
    repetitions: tuple[tuple[int, ...], ...] = ()
    folds: int | None = None
    claims: tuple[Claim, ...] = ()
    assumed_deviation: float = ASSUMED_DEVIATION
    bounds: Bounds = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """What every row is measured on, in the order of the runs."""
        if self.folds is None:
            return [Part((seed,)) for seed in self.seeds]
        return [Part(seeds, seeds[0], fold) for seeds in self.repetitions for fold in range(self.folds)]

    @property
    def tuning_parts(self) -> list[Part]:
        """What the trials of every tuned row are measured on: with folds each part, otherwise seeds of their own."""
        return [Part(self.trial_seeds)] if self.folds is None else self.parts

    @property
    def description(self) -> str:
        """The runs of the plan, in one line."""
        if self.folds is not None:
            return self._description_of_folds
        runs = len(self.rows) * len(self.seeds)
        trials = sum(len(row.trials) for row in self.rows.values() if row.grid) * len(self.trial_seeds)
        tuning = f", after {trials} runs of tuning on validation{MORE}" if trials else ""
        seeds = f"seed{'s'[: len(self.seeds) != 1]} {', '.join(map(str, self.seeds))}"
        return f"{self.file.stem}: {self._rows}; {seeds} on {self.base}: {counted(runs, 'run')}{tuning}"

    @property
    def _rows(self) -> str:
        """The labels; one with a comma is in quotes."""
        return ", ".join(f'"{label}"' if "," in label else label for label in self.rows)

    @property
    def _description_of_folds(self) -> str:
        number = len(self.repetitions)
        seeds = "; ".join(", ".join(map(str, of)) for of in self.repetitions)
        runs = sum(len(row.trials) for row in self.rows.values()) * len(self.seeds) * (self.folds or 0)
        tuned = any(row.grid for row in self.rows.values())
        tuning = f", of which validation chooses the best of each row and fold{MORE}" if tuned else ""
        return (
            f"{self.file.stem}: {self._rows}; {counted(number, 'repetition')} (seeds {seeds}) of "
            f"{self.folds} folds on {self.base}: {counted(runs, 'run')}{tuning}"
        )

    def only(self, labels: Sequence[str]) -> Plan:
        """Return the plan with only these rows and the reference, and the claims on them.

        Raises:
            ConfigurationError: If there is no such row.
        """
        for label in labels:
            if label not in self.rows:
                raise ConfigurationError(f"--only {label}: there is no such row.{nearest(label, self.rows)}")
        kept = {label: row for label, row in self.rows.items() if label in labels or label == self.reference}
        claims = [claim for claim in self.claims if {source_row(claim.row), source_row(claim.against)} <= kept.keys()]
        return replace(self, rows=kept, claims=tuple(claims))


def make_plan(content: Any, file: Path) -> Plan:
    """Return the plan for the content of a file.

    Raises:
        ConfigurationError: If a key is unknown or missing, or a value is invalid.
    """
    if isinstance(content, dict) and not content.keys() & {"base", "rows"} and content.keys() & OF_ONE_RUN:
        raise ConfigurationError(
            f"{file}: the configuration of one run; a comparison names it as its base, and rows: pfedst configs show "
            f"compare/demo"
        )
    tree = _mapping(content, "", KEYS, file)
    base = _base(_text(tree.get("base"), "base", file), file)
    folds = _folds(tree, file)
    repetitions = _repetitions(tree.get("seeds"), folds, file)
    seeds = tuple(seed for of in repetitions for seed in of)
    trial_seeds, common, own, bounds = _tuning(tree.get("tune"), seeds, folds, file)
    options = _options(tree.get("options") or {}, "options", file)
    rows = {}
    for label, of_row in _mapping(tree.get("rows"), "rows", None, file).items():
        grid = own.pop(label, common)
        rows[str(label)] = Row(str(label), _options(of_row, f"rows: {label}", file), grid)
    if not rows:
        raise ConfigurationError(f"{file}: rows: none; name what is compared, such as PFedST: {{method: PFedST}}")
    for label in own:
        raise ConfigurationError(f"{file}: tune: rows: there is no row {label}.{nearest(label, rows)}")
    _check_trials(rows.values(), file)
    _check_effect(options, rows.values(), file)
    reference = str(tree.get("reference", next(iter(rows))))
    if reference not in rows:
        raise ConfigurationError(f"{file}: reference: there is no row {reference}.{nearest(reference, rows)}")
    if folds is not None:
        _check_of_folds([options, *(row.options | dict(row.grid) for row in rows.values())], file)
    for key in bounds:
        if all(key not in row.grid for row in rows.values()):
            raise ConfigurationError(f"{file}: tune: bounds: {key} is in no grid; leave it out")
    claims = _claims(tree.get("claims"), rows, file)
    deviation = _deviation(tree.get("assumed_deviation", ASSUMED_DEVIATION), file)
    return Plan(
        file, base, options, seeds, reference, rows, trial_seeds, repetitions, folds, claims, deviation, bounds
    )  # fmt: skip


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of `pfedst fit`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def _folds(tree: Mapping[Any, Any], file: Path) -> int | None:
    folds = tree.get("folds")
    if folds is None:
        for key in ("claims", "assumed_deviation"):
            if key in tree:
                raise ConfigurationError(f"{file}: {key} has no effect without folds; give folds: 5, or leave it out")
        return None
    if type(folds) is not int or folds < 2:
        raise ConfigurationError(f"{file}: folds: give a whole number of 2 or more, not {folds}")
    return folds


def _repetitions(value: Any, folds: int | None, file: Path) -> tuple[tuple[int, ...], ...]:
    """Return the seeds of each repetition; with folds, a list of seeds shares a partition."""
    if folds is None or not isinstance(value, list):
        return tuple((seed,) for seed in _seeds(value, "seeds", file))
    grouped = [seeds if isinstance(seeds, list) else [seeds] for seeds in value]
    flat = _seeds([seed for seeds in grouped for seed in seeds], "seeds", file)
    if len({len(seeds) for seeds in grouped}) != 1:
        raise ConfigurationError(f"{file}: seeds: give every repetition the same number of seeds, not {value}")
    number = len(grouped[0])
    return tuple(flat[start : start + number] for start in range(0, len(flat), number))


def _tuning(
    tree: Any, seeds: tuple[int, ...], folds: int | None, file: Path
) -> tuple[tuple[int, ...], dict[str, list[Any]], dict[str, dict[str, list[Any]]], Bounds]:
    """Return the seeds of the trials, the grid of all rows, the grids of single rows, and natural bounds."""
    if tree is None:
        return (), {}, {}, {}
    given = _mapping(tree, "tune", TUNE_KEYS, file)
    trial_seeds: tuple[int, ...] = ()
    if folds is None:
        trial_seeds = _seeds(given.get("seeds"), "tune: seeds", file)
    elif "seeds" in given:
        raise ConfigurationError(
            f"{file}: tune: seeds: leave it out: with folds every trial is run with the seeds of its fold, and the run "
            f"of the chosen trial is the final one"
        )
    if both := sorted(set(trial_seeds) & set(seeds)):
        raise ConfigurationError(f"{file}: tune: seeds: {both[0]} is a seed of the comparison too; take another")
    common = _grid(given.get("grid") or {}, "tune: grid", file)
    of_rows = _mapping(given.get("rows") or {}, "tune: rows", None, file)
    own = {row: _grid(grid or {}, f"tune: rows: {row}", file) for row, grid in of_rows.items()}
    return trial_seeds, common, own, _bounds(given.get("bounds") or {}, file)


def _bounds(tree: Any, file: Path) -> Bounds:
    bounds: dict[str, tuple[float | None, float | None]] = {}
    for key, ends in _mapping(tree, "tune: bounds", None, file).items():
        numbers = isinstance(ends, list) and len(ends) == 2 and all(end is None or is_number(end) for end in ends)
        if not numbers or (None not in ends and ends[0] >= ends[1]):
            raise ConfigurationError(
                f"{file}: tune: bounds: {key}: give the lowest and the highest value, such as [0, null], not {ends}"
            )
        bounds[str(key)] = (ends[0], ends[1])
    return bounds


def is_number(value: Any) -> bool:
    """Return True for a number, which True and False are not."""
    return type(value) in (int, float)


def _check_of_folds(given: Iterable[Mapping[str, Any]], file: Path) -> None:
    for options in given:
        for key in options:
            if plain(key) in OF_THE_FOLDS:
                raise ConfigurationError(f"{file}: {key} is set by folds, for every run; leave it out")


def _claims(tree: Any, rows: Mapping[str, Row], file: Path) -> tuple[Claim, ...]:
    if tree is None:
        return ()
    if not isinstance(tree, list):
        raise ConfigurationError(f"{file}: claims: give a list, such as [{{row: A, against: B, measure: accuracy}}]")
    claims = []
    for number, content in enumerate(tree, 1):
        what = f"claims: number {number}"
        given = _mapping(content, what, CLAIM_KEYS, file)
        for key in ("row", "against"):
            label = given.get(key)
            if not isinstance(label, str) or source_row(label) not in rows:
                raise ConfigurationError(f"{file}: {what}: {key}: there is no row {label}.{nearest(str(label), rows)}")
        measure, prior = given.get("measure"), given.get("prior")
        if measure not in WORDS:
            raise ConfigurationError(
                f"{file}: {what}: measure: there is no {measure}.{nearest(str(measure), WORDS)} "
                f"Known: {', '.join(WORDS)}"
            )
        if prior is not None and prior not in PRIORS:
            raise ConfigurationError(f"{file}: {what}: prior: give one of {', '.join(PRIORS)}, not {prior}")
        if prior is not None and measure not in STATED[prior]:
            raise ConfigurationError(
                f"{file}: {what}: measure: {measure} is not computed at the prior {prior}, where there are "
                f"{', '.join(STATED[prior])}"
            )
        claim = Claim(given["row"], given["against"], measure, prior)
        if any(label.endswith(OWN_PRIOR) for label in (claim.row, claim.against)) and prior != SITE:
            raise ConfigurationError(
                f'{file}: {what}: a row "{OWN_PRIOR.strip()}" has the prior of each site: give prior: site'
            )
        if claim.row == claim.against or claim in claims:
            raise ConfigurationError(f"{file}: {what}: compares a row with itself, or is named twice")
        claims.append(claim)
    return tuple(claims)


def _deviation(value: Any, file: Path) -> float:
    if not is_number(value) or not 0 < value < 100:
        raise ConfigurationError(f"{file}: assumed_deviation: give points above 0 and below 100, not {value}")
    return float(value)


def _check_trials(rows: Iterable[Row], file: Path) -> None:
    """Check that all tuned rows have the same number of trials."""
    numbers = {row.label: len(row.trials) for row in rows if row.grid}
    if len(set(numbers.values())) > 1:
        counts = ", ".join(f"{label} {number}" for label, number in numbers.items())
        raise ConfigurationError(f"{file}: tune: rows get different numbers of trials ({counts}); give all the same")


def _check_effect(options: Options, rows: Collection[Row], file: Path) -> None:
    """Check that each option has an effect: no row sets what it tunes, and not every row sets an option of all runs."""
    for row in rows:
        for key in row.options:
            if plain(key) in map(plain, row.grid):
                raise ConfigurationError(f"{file}: rows: {row.label}: {key} is tuned; leave it out here")
    for key in options:
        if all(plain(key) in row.keys for row in rows):
            raise ConfigurationError(f"{file}: options: {key} has no effect: every row sets or tunes it; leave it out")


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


def _base(text: str, file: Path) -> Path:
    """Return the configuration that a plan starts from: a file beside the plan, or a shipped one by its name."""
    beside = file.parent / text
    if beside.is_file():
        return beside
    if text in (names := shipped()):
        return names[text]
    raise ConfigurationError(
        f"{file}: base: no file {beside}; it is looked for beside {file.name}, and no shipped configuration has this "
        f"name.{nearest(text, names)}"
    )


def _mapping(tree: Any, what: str, known: tuple[str, ...] | None, file: Path) -> dict[Any, Any]:
    where = f"{file}: {what}" if what else str(file)
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{where}: give keys with values, not {tree!r}")
    for key in tree if known else ():
        if key not in known:  # type: ignore[operator]
            raise ConfigurationError(
                f'{where}: unknown key "{key}".{nearest(str(key), known or ())} Known: {", ".join(known or ())}'
            )
    return tree


def _text(value: Any, what: str, file: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{file}: {what}: give the path of a configuration of pfedst fit, not {value!r}")
    return value
