"""From folders of runs, or of comparisons, to rows of one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError, listed, nearest
from pfedst.evaluation import CALIBRATION
from pfedst.options import SEED
from pfedst.reporting.best_round import OF_PREDICTIONS, RoundChoice, at_best_round
from pfedst.reporting.claims import Claim
from pfedst.reporting.comparison import Compared, FinishedRun, RunsOfARow, has_present_bins
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.summary import FORMAT as SUMMARY_FORMAT
from pfedst.reporting.summary import PRIOR

FILE = "comparison.json"
FORMAT = 1
SAME = ("classes", "samples", "split")
"""What runs must have in common to stand in one table."""
BUDGET = (
    "encoder",
    "data",
    "anchors",
    "rounds",
    "local_epochs",
    "local_batches",
    "batch_size",
    "participation",
    "held_out_sites",
)
"""What is told where rows differ in it."""
BUDGET_OPTIONS = (
    "coordinator.held_out_sites",
    "coordinator.participation",
    "coordinator.rounds",
    "data.class_path",
    "data.init_args.batch_size",
    "trainer.limit_train_batches",
    "trainer.max_epochs",
)
"""The same as options."""
EQUAL_FOR_ALL = ("coordinator.", "data.", "trainer.", "init")
"""Groups of options that are no part of a method: a report names a difference in them between any rows that train."""
OF_A_RUN = ("seed", "threads", "data_audit", "round", "when")
"""What the protocols of runs of one row may differ in, where the options of the study were not recorded."""
OF_A_FOLD = ("data.init_args.fold", "data.init_args.split_seed")
"""Options of the study in which the runs of one row over folds differ too."""
HASH_DIGITS = 8
"""Digits of a hash in the label of a row."""


def load_compared(
    paths: Sequence[Path], reference: str | None = None, round_choice: RoundChoice | None = None
) -> Compared:
    """What lies in folders of runs, or of comparisons.

    Args:
        paths: folders.
        reference: a label; by default the comparison's own, or else PFedST, or else the first row.
        round_choice: the round of each run that is reported; by default that of the comparisons, or else the last.

    Raises:
        ConfigurationError: no run, a folder that is none, or runs that cannot stand in one table.
        StateError: a damaged file.
    """
    rows: dict[str, list[FinishedRun]] = {}
    notes: list[str] = []
    tuned: dict[str, Any] = {}
    tuning, proposed, name = None, None, ""
    single: list[FinishedRun] = []
    claims: tuple[Claim, ...] = ()
    planned = 0
    plans = {path: _read(path / FILE) for path in paths}
    choice = round_choice or _proposed_round(plans.values())
    for path, asked in plans.items():
        if asked is None:
            single.append(_at_round(path, RunFolder(path).finished(), choice))
            continue
        name, tuning, proposed = asked["name"], asked["tuning"], proposed or asked["reference"]
        claims = claims or tuple(Claim.from_json(claim) for claim in asked.get("claims", ()))
        planned = planned or asked.get("parts", 0)
        for row in asked["rows"]:
            found, missing = _runs_of(path, row["runs"], choice)
            label = _free(row["label"], found, rows, path.name)
            rows.setdefault(label, []).extend(found)
            notes += [f"{label}, seed {seed}: missing, as it failed or is not done" for seed in missing]
            if not row["runs"]:
                notes.append(f"{label}: missing, as all of its trials failed")
            if row["tuned"]:
                tuned[label] = _in_parts(row["tuned"])
                notes += [
                    f"{label}, split seed {part['split_seed']}, fold {part['fold']}: missing, as all trials failed"
                    for part in tuned[label]["parts"]
                    if part["chosen"] is None and part["fold"] is not None
                ]
    for label, runs in _labelled(single, rows).items():
        rows.setdefault(label, []).extend(runs)
    made = tuple(
        RunsOfARow(label, tuple(sorted(runs, key=lambda run: (run.seed, run.part or ()))))
        for label, runs in rows.items()
        if runs
    )
    if not made:
        raise ConfigurationError(f"no finished run in {listed(paths)}: nothing to report")
    _check_same(made)
    labels = [row.label for row in made]
    chosen = reference or (proposed if proposed in labels else "PFedST" if "PFedST" in labels else labels[0])
    if chosen not in labels:
        raise ConfigurationError(
            f"--reference {chosen}: there is no such row.{nearest(chosen, labels)} {listed(labels)}"
        )
    told = (
        *_differences(made),
        *_options(made, tuned),
        *_last_digits(made),
        *_other_bins(made),
        *_not_evaluated(made),
        *notes,
    )
    return Compared(name or made[0].first.folder.name, made, chosen, told, tuned, tuning, claims, planned)


def _in_parts(tuned: dict[str, Any]) -> dict[str, Any]:
    """Return what was tuned in parts; pfedst up to 0.2.0 wrote the part of a row without folds by itself."""
    if "parts" in tuned:
        return tuned
    return {"parts": [{"split_seed": None, "fold": None, **tuned}], "edges": None}


def _proposed_round(plans: Iterable[Mapping[str, Any] | None]) -> RoundChoice:
    """Return the round that all comparisons report, or the last one."""
    proposed = {plan.get("round", "last") for plan in plans if plan is not None}
    return "best" if proposed == {"best"} else "last"


def _runs_of(path: Path, names: Mapping[str, str], choice: RoundChoice) -> tuple[list[FinishedRun], list[str]]:
    found, missing = [], []
    for seed, run in names.items():
        folder = path / "runs" / run
        summary = RunFolder(folder).summary()
        if summary is None:
            missing.append(seed)
        else:
            found.append(_at_round(folder, summary, choice))
    return found, missing


def _at_round(path: Path, summary: Mapping[str, Any], choice: RoundChoice) -> FinishedRun:
    """Return the run in a folder, at its last or its best round."""
    present = present_summary(summary, path / "summary.json")
    return FinishedRun(path, _in_present_bins(at_best_round(present, path) if choice == "best" else present))


def present_summary(summary: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """Return a summary in the present format; format 1 did not record options, versions and hashes.

    Older summaries have no metrics of classes and no temperatures, and calibration errors in other bins, which are left
    out.

    Args:
        summary: of any format.
        file: for the error.

    Raises:
        StateError: its format is not known.
    """
    found = summary.get("format")
    if found not in (1, SUMMARY_FORMAT):
        raise StateError(
            f"{file} is of another version of pfedst (format {found}, this version reads 1 and {SUMMARY_FORMAT}); run "
            f"it again, under another name"
        )
    unknown_then: dict[str, Any] = {key: {} for key in OF_PREDICTIONS} | {"environment": None, "warnings": None}
    present: dict[str, Any] = {**unknown_then, **summary}
    if found == 1:
        protocol = summary["protocol"]
        unknown: dict[str, Any] = {"pfedst_version": None, "study": {}, "last_digits": {}, "content": {}}
        evaluated = {"round": protocol["round"], "split": protocol["split"], "prior": PRIOR}
        present |= {"format": SUMMARY_FORMAT, **unknown, "evaluated": evaluated}
    return present


def _in_present_bins(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a summary without the calibration errors of older versions, which are in other bins."""
    if has_present_bins(summary):
        return summary
    return {**summary, **{model: _without_calibration(summary[model]) for model in ("personal", "generic")}}


def _without_calibration(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a model without calibration errors."""
    unknown = dict.fromkeys(CALIBRATION)
    columns = {key: {**table, **unknown} for key, table in found.items() if key not in ("clients", "counts")}
    clients = {site: {**metrics, **unknown} for site, metrics in found["clients"].items()}
    return {**found, **columns, "clients": clients}


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"{file} is damaged ({error}); run pfedst compare again, finished runs are kept") from error
    if content.get("format") != FORMAT:
        raise StateError(f"{file} is of another version of pfedst (format {content.get('format')}, this is {FORMAT})")
    return content


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
        own = _of_a_run(run)
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


def _option(key: str, value: Any, in_full: bool) -> str:
    """Return an option in words: `rank 4`, `adapter LoRATower`; in full the key and the value as they are."""
    if key.startswith("hash."):
        return f"{key.removeprefix('hash.')} {str(value)[:HASH_DIGITS]}"
    if in_full:
        return f"{key} {value}"
    if key.endswith(".class_path"):
        return f"{key.split('.')[-2]} {str(value).split('.')[-1]}"
    return f"{key.split('.')[-1]} {value}"


def _labelled(runs: Sequence[FinishedRun], beside: Mapping[str, Sequence[FinishedRun]]) -> dict[str, list[FinishedRun]]:
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
    labelled: dict[str, list[FinishedRun]] = {}
    for label, group in zip(labels, groups.values(), strict=True):
        if group.key in own:
            label = own[group.key]
        elif label in taken:
            label = group.label([*groups.values(), *taken.values()], in_full=True)
        label = _free(label, group.runs, {**beside, **labelled}, group.runs[0].folder.name)
        labelled[label] = group.runs
    return labelled


def _free(label: str, runs: Sequence[FinishedRun], rows: Mapping[str, Sequence[FinishedRun]], name: str) -> str:
    """Return a label under which runs of this study, or none, are found; `name` distinguishes it where it is taken."""
    while runs and (found := rows.get(label)) and _Group.of(found[0]).key != _Group.of(runs[0]).key:
        label = f"{label}, {name}"
    return label


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of JSON or YAML with one key a leaf, such as `protocol.optimizer.lr`; an empty table is a leaf."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _of_a_run(run: FinishedRun) -> set[str]:
    """Return the options of the study in which the runs of a row differ."""
    return {SEED} if run.part is None else {SEED, *OF_A_FOLD}


def _check_same(rows: Sequence[RunsOfARow]) -> None:
    first = rows[0].first
    of_part: dict[tuple[int, int] | None, FinishedRun] = {}
    for row in rows:
        seeds = [run.words.removeprefix("seed ") for run in row.runs]
        if len(set(seeds)) < len(seeds):
            what = "the same seed" if first.part is None else "the same seed and fold"
            raise ConfigurationError(f"{row.label}: two runs have {what} ({listed(seeds)}); give one of them")
        for run in row.runs:
            same_part = of_part.setdefault(run.part, run)
            if _folds(run) != _folds(first):
                raise ConfigurationError(
                    f"{run.folder} and {first.folder} cannot stand in one table: they differ in folds or images"
                )
            for key in SAME:
                other = same_part if key == "samples" else first
                if run.protocol[key] != other.protocol[key]:
                    raise ConfigurationError(
                        f"{run.folder} and {other.folder} cannot stand in one table: they differ in {key}"
                    )


def _folds(run: FinishedRun) -> Any:
    """Return the number of folds and the images of each site, which all folds share; None without folds."""
    if run.part is None:
        return None
    return run.protocol["folds"]["folds"], {site: sum(of.values()) for site, of in run.protocol["samples"].items()}


def _differences(rows: Sequence[RunsOfARow]) -> list[str]:
    """Where rows that train had another budget, another encoder or other data."""
    notes = []
    for key in BUDGET:
        told: dict[str, list[str]] = {}
        for row in rows:
            value = row.first.protocol[key]
            if (row.trains or key in ("encoder", "data")) and value != "none":
                told.setdefault(str(value), []).append(row.label)
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            notes.append(f"rows differ in {key.replace('_', ' ')} ({parts})")
    return notes


def _options(rows: Sequence[RunsOfARow], tuned: Mapping[str, Any]) -> list[str]:
    """Where rows of one method differ in an option of the study, or any rows in what all share; with folders."""
    notes = []
    recorded = [row for row in rows if row.first.study]
    # options that are tuned within each fold differ from run to run, and have a table of their own
    in_folds = {
        option for of in tuned.values() for part in of["parts"] if part["fold"] is not None for option in _tried(part)
    }
    own = {_recorded(key) for key in in_folds}.union(*(_of_a_run(row.first) for row in recorded))
    for key in sorted({key for row in recorded for key in row.first.study} - {*own, *BUDGET_OPTIONS}):
        values = {row.label: json.dumps(row.first.study.get(key, "default")).strip('"') for row in recorded}
        methods = {(row.first.protocol["method"], values[row.label]) for row in recorded}
        several = {method for method, number in Counter(method for method, _ in methods).items() if number > 1}
        if key.startswith("method."):  # an option of one method says nothing of the others, which do not have it
            compared = [row for row in recorded if row.first.protocol["method"] in several]
        else:
            compared = [row for row in recorded if several or (row.trains and key.startswith(EQUAL_FOR_ALL))]
        told: dict[str, list[str]] = {}
        for row in compared:
            folders = listed([str(run.folder) for run in row.runs], most=3)
            told.setdefault(values[row.label], []).append(f"{row.label} in {folders}")
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            # what rows of one method are for, and not a fault of the comparison
            differ = "rows of one method differ" if key.startswith("method.") else "rows differ"
            notes.append(f"{differ} in {key.replace('.init_args', '')} ({parts})")
    return notes


def _tried(part: Mapping[str, Any]) -> set[str]:
    return {key for trial in part["trials"] for key in trial["options"]}


def _recorded(key: str) -> str:
    """Return the key under which a run records an option of a command line: `method.mu` is `method.init_args.mu`."""
    group, _, name = key.rpartition(".")
    return f"{group}.init_args.{name}" if group in ("method", "data") or group.startswith("model.") else key


def _other_bins(rows: Sequence[RunsOfARow]) -> list[str]:
    """Which rows have no calibration errors, as those of an older version are not comparable."""
    labels = [row.label for row in rows if not all(has_present_bins(run.summary) for run in row.runs)]
    if not labels:
        return []
    return [
        f"calibration errors are left out of {listed(labels)}: an older version computed them in other bins; run it "
        f"again to have them"
    ]


def _not_evaluated(rows: Sequence[RunsOfARow]) -> list[str]:
    """Which runs have no numbers of a site, because it could not be evaluated."""
    missing = [(row, run, run.summary["personal"].get("not_evaluated")) for row in rows for run in row.runs]
    return [
        f"{row.label}, {run.words}: {listed(sites)} could not be evaluated, and is in no mean of this run"
        for row, run, sites in missing
        if sites
    ]


def _last_digits(rows: Sequence[RunsOfARow]) -> list[str]:
    """Where runs differ in options that change last digits, within rows and between them."""
    notes = []
    for key in sorted({key for row in rows for run in row.runs for key in run.last_digits}):
        told: dict[str, list[str]] = {}
        for row in rows:
            values = [str(run.last_digits.get(key, "default")) for run in row.runs]
            for run, value in zip(row.runs, values, strict=True):
                label = row.label if len(set(values)) == 1 else f"{row.label}, {run.words}"
                if label not in told.setdefault(value, []):
                    told[value].append(label)
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            notes.append(f"runs differ in {key}, which changes the last digits of results ({parts})")
    return notes
