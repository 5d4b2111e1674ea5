"""Run a comparison: tune on validation, run the grid, save the plan and the results."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from pfedst.compare.grid import Grid, GridRun
from pfedst.compare.plan import Options, Plan, Row, as_arguments
from pfedst.errors import ConfigurationError
from pfedst.reporting import RunFolder
from pfedst.reporting.best_round import RoundChoice
from pfedst.reporting.loading import FILE, FORMAT
from pfedst.reporting.summary import SELECTION_METRIC
from pfedst.state import write_json, writing

Resolve = Callable[[Sequence[str]], str]
"""Arguments of `pfedst fit` -> the part of the resolved configuration on which results depend, as text."""


Tuned = dict[str, Any]
"""`trials`: `options` and `validation` (None if failed) of each trial; `chosen`: options, None if all trials failed."""
UNTUNED: Tuned = {"chosen": {}, "trials": []}


class Comparison:
    """A comparison in its folder.

    Args:
        plan: the plan.
        folder: folder of `comparison.json`, `runs/` and `tuning/`.
        overrides: arguments for every run. The options of a row take precedence.
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
        overrides: Sequence[str],
        resolve: Resolve,
        grid: Callable[[Path], Grid],
        round_choice: RoundChoice = "last",
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.overrides = tuple(overrides)
        self._digest = functools.cache(lambda arguments: hashlib.sha256(resolve(arguments).encode()).hexdigest()[:8])
        self.grid = grid
        self.round_choice = round_choice
        self.failed: dict[str, str] = {}
        self.has_finished = False

    def run(self) -> dict[str, str]:
        """Run the whole comparison.

        Returns:
            Name of a failed run -> its last output.
        """
        rows = self.plan.rows.values()
        trials = {row.label: self._trials(row) for row in rows if row.grid}
        for row in rows:  # report a wrong option of the last row before the first row runs
            if row.label not in trials:
                self._run(row, row.options, self.plan.seeds[0])
        tuned = self._tune(trials)
        runs = {
            (row.label, seed): self._run(row, row.options | tuned.get(row.label, UNTUNED)["chosen"], seed)
            for seed in self.plan.seeds
            for row in rows
            if tuned.get(row.label, UNTUNED)["chosen"] is not None
        }
        self._write(runs, tuned)
        grid = self.grid(self.folder / "runs")
        self.failed |= grid.run(list(runs.values()), "comparison")
        self.has_finished = any(grid.is_finished(run) for run in runs.values())
        self._write(runs, tuned)
        return self.failed

    # -- runs --------------------------------------------------------------------------------------------------

    def _run(self, row: Row, options: Options, seed: int, of: str = "runs") -> GridRun:
        """Return a run named by its row, its seed and the hash of its resolved configuration."""
        arguments = [f"--config={self.plan.base}", *as_arguments(self.plan.options), *self.overrides]
        arguments += [*as_arguments(options), f"--seed_everything={seed}"]
        label = re.sub(r"[^A-Za-z0-9]+", "-", row.label).strip("-") or "row"
        name = f"{label}-seed{seed}-{self._digest(tuple(arguments))}"
        own = [f"--runs_dir={self.folder / of}", f"--name={name}", "--resume=true"]
        return GridRun(name, row.label, (*arguments, *own))

    # -- tuning ------------------------------------------------------------------------------------------------

    def _trials(self, row: Row) -> list[tuple[Options, list[GridRun]]]:
        return [
            (trial, [self._run(row, row.options | trial, seed, "tuning") for seed in self.plan.trial_seeds])
            for trial in row.trials
        ]

    def _tune(self, trials: Mapping[str, Sequence[tuple[Options, Sequence[GridRun]]]]) -> dict[str, Tuned]:
        """Run all trials and choose options for each row.

        The options with the highest mean over trial seeds are chosen, the first of equal ones.

        A failed trial is excluded, and so is a row whose trials all failed.
        """
        if trial_runs := [run for of_row in trials.values() for _, of_trial in of_row for run in of_trial]:
            self.failed |= self.grid(self.folder / "tuning").run(trial_runs, "tuning on validation")
        tuned: dict[str, Tuned] = {}
        for label, of_row in trials.items():
            tried: list[Tuned] = [{"options": trial, "validation": self._score(runs)} for trial, runs in of_row]
            scored = [trial for trial in tried if trial["validation"] is not None]
            best = max(scored, key=itemgetter("validation"), default={"options": None})
            tuned[label] = {"chosen": best["options"], "trials": tried}
        return tuned

    def _score(self, runs: Sequence[GridRun]) -> float | None:
        """Return the mean over seeds of the validation score of the chosen round; None if a run failed."""
        scores = []
        for run in runs:
            summary = RunFolder(self.folder / "tuning" / run.name).summary()
            if summary is None:
                return None
            best = summary["best_on_validation"]
            score = summary["validation"]["personal"]["mean"][SELECTION_METRIC]
            if self.round_choice == "best" and best is not None:
                score = best["validation_score"]
            if score is None:
                raise ConfigurationError(f"{self.plan.file}: tune: no site has validation images; leave tune out")
            scores.append(score)
        return fmean(scores)

    # -- files ------------------------------------------------------------------------------------------------

    def _write(self, runs: Mapping[tuple[str, int], GridRun], tuned: Mapping[str, Tuned]) -> None:
        rows = [
            {
                "label": row.label,
                "options": row.options,
                "tuned": tuned.get(row.label),
                "runs": {str(seed): run.name for (label, seed), run in runs.items() if label == row.label},
            }
            for row in self.plan.rows.values()
        ]
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": self.plan.file.stem,
            "options": self.plan.options,
            "overrides": list(self.overrides),
            "seeds": list(self.plan.seeds),
            "reference": self.plan.reference,
            "tuning": None
            if not self.plan.trial_seeds
            else {
                "seeds": list(self.plan.trial_seeds),
                "metric": f"{SELECTION_METRIC}, validation, {self.round_choice} round",
            },
            **({} if self.round_choice == "last" else {"round": self.round_choice}),
            "rows": rows,
            "failed": dict(sorted(self.failed.items())),
        }
        with writing(self.folder / FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / FILE, content)
