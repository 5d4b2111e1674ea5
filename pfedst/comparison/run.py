"""Run a comparison: tune on validation, run the grid, save the plan and the results."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from pfedst.comparison.arguments import arguments_of
from pfedst.comparison.grid import Grid, GridRun
from pfedst.comparison.grid_edges import Edges, edges_of, extended
from pfedst.comparison.plan import Options, Part, Plan, Row
from pfedst.configuration.command_line import GivenOption
from pfedst.errors import ConfigurationError
from pfedst.evaluation.resampled import POWER, smallest_detectable
from pfedst.evaluation.statistics import LEVEL
from pfedst.reporting import RunFolder
from pfedst.reporting.best_round import RoundChoice
from pfedst.reporting.loading import FILE, FORMAT
from pfedst.reporting.summary import SELECTION_METRIC
from pfedst.state import write_json, writing

Resolve = Callable[[Sequence[str]], str]
"""Arguments of `pfedst fit` -> the part of the resolved configuration on which results depend, as text."""
VALIDATION = "data.init_args.validation_fraction"
VALIDATION_FRACTION = 0.1
"""Of the data module, if a configuration says nothing."""
FIRST_PART = Part((0,), 0, 0)
"""The part with which a configuration is resolved for all parts."""


Tuned = dict[str, Any]
"""Of a row, `parts` and the `edges` of its grid at which a choice lies. Of a part, `split_seed`, `fold`, `trials` with
the `options` and `validation` of each (None if failed), and `chosen`: options, None if all trials failed."""
Trial = tuple[Options, list[GridRun]]
"""Options, and a run for each seed."""


class Comparison:
    """A comparison in its folder.

    Without folds, there is one part for tuning, with seeds of its own, in `tuning/`. With folds, each row is tuned
    within each part: all trials are runs of that part, and those of the chosen trial are its final runs.

    Args:
        plan: the plan.
        folder: folder of `comparison.json`, `runs/` and `tuning/`.
        overrides: options of the command line, for every run. The options of a row take precedence.
        resolve: function from arguments to the configuration, see `Resolve`.
        grid: function from a folder to its `Grid`.
        round_choice: the round of each run that the table reports, and that tuning compares.

    Attributes:
        has_finished: True if any run of the table is finished.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        overrides: Sequence[GivenOption],
        resolve: Resolve,
        grid: Callable[[Path], Grid],
        round_choice: RoundChoice = "last",
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.overrides = tuple(overrides)
        self._resolve = functools.cache(resolve)
        self.round_choice = round_choice
        self._grid_of_runs = grid(folder / "runs")
        self._grid_of_trials = self._grid_of_runs if plan.folds is not None else grid(folder / "tuning")
        self.failed: dict[str, str] = {}
        self.has_finished = False

    def run(self) -> dict[str, str]:
        """Run the whole comparison.

        Returns:
            Name of a failed run -> its last output.

        Raises:
            ConfigurationError: an option of a row cannot be used.
        """
        for row in self.plan.rows.values():  # report a wrong option of the last row before the first row runs
            part = (self.plan.tuning_parts if row.grid else self.plan.parts)[0]
            try:
                for trial in row.trials:
                    self._run(row, row.options | trial, part.seeds[0], part)
            except ConfigurationError as error:
                raise ConfigurationError(f"{self._at_fault(row, trial, part)}row {row.label}: {error}") from error
        tuned = self._tune()
        runs: dict[tuple[str, int, int | None], GridRun] = {}
        for part in self.plan.parts:
            for seed in part.seeds:
                for row in self.plan.rows.values():
                    chosen = _chosen(tuned, row, part)
                    if chosen is not None:
                        runs[row.label, seed, part.fold] = self._run(row, row.options | chosen, seed, part)
        self._write(runs, tuned)
        self.failed |= self._grid_of_runs.run(list(runs.values()), "comparison")
        self.has_finished = any(self._grid_of_runs.is_finished(run) for run in runs.values())
        self._write(runs, tuned)
        return self.failed

    def detectable(self) -> str:
        """Say which difference the comparison can claim, before its runs.

        The test images of a fold are 1 / folds of all, and the images trained on are the rest without validation.
        """
        plan, number = self.plan, len(self.plan.parts)
        ratio = 1 / (((plan.folds or 0) - 1) * (1 - self._validation_fraction()))
        levels = [LEVEL] if len(plan.claims) < 2 else [LEVEL, LEVEL / len(plan.claims)]
        found = [smallest_detectable(plan.assumed_deviation, number, ratio, level) for level in levels]
        texts = ["-" if points is None else f"{points:.1f} points" for points in found]
        with_holm = f", {texts[1]} for the first of {len(plan.claims)} claims" if len(texts) > 1 else ""
        return (
            f"smallest detectable difference: {texts[0]}{with_holm} (power {POWER:.0%}, level {LEVEL:g} two-sided, if "
            f"differences deviate by {plan.assumed_deviation:g} points; {number} differences, n_test / n_train "
            f"{ratio:.3f})"
        )

    # -- runs --------------------------------------------------------------------------------------------------

    def _arguments(
        self, options: Options, seed: int, part: Part, overrides: Sequence[GivenOption] | None = None
    ) -> tuple[str, ...]:
        """Return the arguments of a run; the options for all runs are those of this comparison by default."""
        for_all = self.overrides if overrides is None else overrides
        arguments = [f"--config={self.plan.base}", *arguments_of(self.plan.options, for_all, options)]
        arguments.append(f"--seed_everything={seed}")
        if part.fold is not None:
            arguments += [f"--data.split_seed={part.split_seed}", f"--data.folds={self.plan.folds}"]
            arguments += [f"--data.fold={part.fold}"]
        return tuple(arguments)

    def _run(self, row: Row, options: Options, seed: int, part: Part, grid: Grid | None = None) -> GridRun:
        """Return a run named by its row, its seed and fold, and the hash of its resolved configuration."""
        label = re.sub(r"[^A-Za-z0-9]+", "-", row.label).strip("-") or "row"
        arguments = self._arguments(options, seed, part)
        where, text = f"seed{seed}", ""
        if part.fold is None:
            text = self._resolve(arguments)
        else:  # hundreds of runs differ only in their seed and fold, and it takes long to resolve a configuration
            where += f"-fold{part.fold}"
            text = f"{self._resolve(self._arguments(options, 0, FIRST_PART))}{seed} {part.split_seed} {part.fold}"
        name = f"{label}-{where}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        own = [f"--runs_dir={(grid or self._grid_of_runs).folder}", f"--name={name}", "--resume=true"]
        return GridRun(name, row.label, (*arguments, *own), where)

    def _validation_fraction(self) -> float:
        """Return the share of train that is validation, from the configuration of the reference."""
        row = self.plan.rows[self.plan.reference]
        text = self._resolve(self._arguments(row.options | row.trials[0], 0, FIRST_PART))
        lines = (line.partition(": ") for line in text.splitlines())
        return next((float(json.loads(value)) for key, _, value in lines if key == VALIDATION), VALIDATION_FRACTION)

    def _at_fault(self, row: Row, options: Options, part: Part) -> str:
        """Return the file of the comparison, if a row cannot be used without the options for all runs either."""
        try:
            self._resolve(self._arguments(row.options | options, part.seeds[0], part, ()))
        except ConfigurationError:
            return f"{self.plan.file}, "
        return ""

    # -- tuning ------------------------------------------------------------------------------------------------

    def _tune(self) -> dict[str, Tuned]:
        """Run all trials and choose options for each tuned row in each part.

        If a best value lies at an edge of its grid, the grids of all rows are extended there, once, as long as all rows
        then have the same number of trials.
        """
        rows = {row.label: row for row in self.plan.rows.values() if row.grid}
        if not rows:
            return {}
        choices = self._choices(rows)
        at_edge = {edge for label, row in rows.items() for edge in self._edges(row, choices[label])}
        larger = {
            label: replace(row, grid=extended(row.grid, at_edge, self.plan.bounds)) for label, row in rows.items()
        }
        if at_edge and len({len(row.trials) for row in larger.values()}) == 1:
            rows, choices = larger, self._choices(larger)
        return {
            label: {"parts": choices[label], "edges": sorted(map(list, self._edges(row, choices[label])))}
            for label, row in rows.items()
        }

    def _choices(self, tuned: Mapping[str, Row]) -> dict[str, list[Tuned]]:
        """Run all trials, and return the choices of each tuned row, one for each part.

        Where trials are final runs, those of the other rows are run among them.
        """
        final = self.plan.folds is not None
        rows = {label: tuned.get(label, row) for label, row in self.plan.rows.items() if final or label in tuned}
        trials: dict[tuple[Part, str], list[Trial]] = {
            (part, label): [
                (trial, [self._run(row, row.options | trial, seed, part, self._grid_of_trials) for seed in part.seeds])
                for trial in row.trials
            ]
            for part in self.plan.tuning_parts
            for label, row in rows.items()
        }
        runs = [run for of_row in trials.values() for _, of_trial in of_row for run in of_trial]
        self.failed |= self._grid_of_trials.run(runs, "tuning on validation")
        return {
            label: [
                {"split_seed": part.split_seed, "fold": part.fold} | self._best(trials[part, label])
                for part in self.plan.tuning_parts
            ]
            for label in tuned
        }

    def _edges(self, row: Row, choices: Sequence[Tuned]) -> Edges:
        """Return the edges of the grid of a row at which a choice lies."""
        chosen = [choice["chosen"] for choice in choices if choice["chosen"] is not None]
        return edges_of(row.grid, chosen, self.plan.bounds)

    def _best(self, trials: Sequence[Trial]) -> Tuned:
        """Return the options with the highest mean over seeds, the first of equal ones; a failed trial is excluded."""
        tried: list[Tuned] = [{"options": trial, "validation": self._score(runs)} for trial, runs in trials]
        scored = [trial for trial in tried if trial["validation"] is not None]
        best = max(scored, key=itemgetter("validation"), default={"options": None})
        return {"chosen": best["options"], "trials": tried}

    def _score(self, runs: Sequence[GridRun]) -> float | None:
        """Return the mean over seeds of the validation score of the chosen round.

        None if a run failed, or could not evaluate a site: trials are compared over the same sites.
        """
        scores = []
        for run in runs:
            summary = RunFolder(self._grid_of_trials.folder / run.name).summary()
            if summary is None:
                return None
            best, found = summary["best_on_validation"], summary["validation"]["personal"]
            score = found["mean"][SELECTION_METRIC]
            if self.round_choice == "best" and best is not None:
                score, found = best["validation_score"], best["validation"]["personal"]
            if "not_evaluated" in found:
                return None
            if score is None:
                raise ConfigurationError(f"{self.plan.file}: tune: no site has validation images; leave tune out")
            scores.append(score)
        return fmean(scores)

    # -- files ------------------------------------------------------------------------------------------------

    def _write(self, runs: Mapping[tuple[str, int, int | None], GridRun], tuned: Mapping[str, Tuned]) -> None:
        rows = [
            {
                "label": row.label,
                "options": row.options,
                "tuned": tuned.get(row.label),
                "runs": {
                    str(seed) if fold is None else f"{seed}, fold {fold}": run.name
                    for (label, seed, fold), run in runs.items()
                    if label == row.label
                },
            }
            for row in self.plan.rows.values()
        ]
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": self.plan.file.stem,
            "options": self.plan.options,
            "overrides": [word for override in self.overrides for word in override.words],
            "seeds": list(self.plan.seeds),
            "reference": self.plan.reference,
            "tuning": self._tuning(tuned),
            **({} if self.round_choice == "last" else {"round": self.round_choice}),
            "rows": rows,
            "failed": dict(sorted(self.failed.items())),
        }
        if self.plan.folds is not None:
            content |= {
                "folds": self.plan.folds,
                "parts": len(self.plan.parts),
                "claims": [claim.to_json() for claim in self.plan.claims],
            }
        with writing(self.folder / FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / FILE, content)

    def _tuning(self, tuned: Mapping[str, Tuned]) -> dict[str, Any] | None:
        if not tuned:
            return None
        metric = f"{SELECTION_METRIC}, validation, {self.round_choice} round"
        return {"seeds": list(self.plan.trial_seeds), "metric": metric}


def _chosen(tuned: Mapping[str, Tuned], row: Row, part: Part) -> Options | None:
    """Return the options that were chosen for a row in a part; None if all of its trials failed."""
    if row.label not in tuned:
        return {}
    where = (part.split_seed, part.fold)
    options: Options | None = next(
        choice["chosen"] for choice in tuned[row.label]["parts"] if (choice["split_seed"], choice["fold"]) == where
    )
    return options
