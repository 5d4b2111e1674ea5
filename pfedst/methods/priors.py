"""Class priors of predictions: the frequencies that a model has learned, and those that its predictions shall be at.

A classifier that was trained where class c has the frequency pi_c predicts p(c | x) for a hospital with these
frequencies. For a hospital with other frequencies q the logits are f - log pi + log q, if images of a class look alike
at both (Saerens et al. 2002; Menon et al. 2021). All priors are of float64: frequencies (K,), positive, with sum one.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedst.errors import ConfigurationError, listed, nearest
from pfedst.methods.criteria import Criterion

TRAINING, BALANCED, SITE = "training", "balanced", "site"
WORDS = {
    BALANCED: "balanced: all classes equally frequent",
    SITE: "site: class frequencies of the training split of each site",
}
"""Target priors in words, for the protocol."""
TOLERANCE = 1e-3
"""The largest distance of the sum of the frequencies in a file from one; they are then divided by their sum."""
MOST_BYTES = 2**20
"""The largest size of a file with frequencies."""


@dataclass(frozen=True)
class TargetPrior:
    """The prior that predictions are at: `--model.prior`.

    Attributes:
        option: the option as it was given: `training`, `balanced`, `site`, or the path of a file.
        frequencies: content of the file (K,); None for a word, or before `of_classes`.
        label: the prior in words, for the protocol; empty for `training`.
    """

    option: str = TRAINING
    frequencies: Tensor | None = None
    label: str = ""

    def of_classes(self, class_names: Sequence[str]) -> TargetPrior:
        """Return the prior for these classes; a file is read here.

        Raises:
            ConfigurationError: a file that cannot be read, or that holds no frequencies of these classes.
        """
        if self.option == TRAINING or self.frequencies is not None:
            return self
        if self.option in WORDS:
            return TargetPrior(self.option, None, WORDS[self.option])
        frequencies = read_prior(Path(self.option), class_names)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in zip(class_names, frequencies.tolist(), strict=True))
        return TargetPrior(self.option, frequencies, f"{Path(self.option).name}: {shown}")

    def __bool__(self) -> bool:
        """Return True if logits are corrected."""
        return self.option != TRAINING

    def at(self, site: Tensor) -> Tensor:
        """Return the frequencies (K,) at a site whose training split has these frequencies (K,)."""
        if self.option == BALANCED:
            return uniform(len(site))
        return site if self.frequencies is None else self.frequencies


def uniform(classes: int) -> Tensor:
    """Return equal frequencies."""
    return torch.full((classes,), 1 / classes, dtype=torch.float64)


def mixture(priors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean of priors (K,), by weights."""
    total = math.fsum(weights)
    return sum((prior * (weight / total) for prior, weight in zip(priors, weights, strict=True)), torch.zeros(()))


def learned_prior(loss: Criterion, uses_criterion: bool, counts: Tensor) -> Tensor | None:
    """Return the effective prior (K,) of a model that was trained on images with these class counts; None for none.

    Args:
        loss: the loss.
        uses_criterion: False for a method whose loss is another one.
        counts: number of images of each class (K,), as the sampler shows them.
    """
    if not uses_criterion:
        return None
    try:
        return loss.effective_prior(counts.double())
    except ConfigurationError:  # of this loss, or with these options
        return None


def prior_shift(effective: Tensor, target: Tensor) -> Tensor:
    """Return what is added to the logits (K,) of a model with an effective prior, so that they are at the target."""
    return target.double().log() - effective.double().log()


def read_prior(file: Path, class_names: Sequence[str]) -> Tensor:
    """Read class frequencies (K,) from JSON (an object of class name -> frequency) or CSV (a class and a number a row).

    Raises:
        ConfigurationError: naming the file and what is wrong with it.
    """
    found = _read_table(file)
    where = f"--model.prior {file}"
    if unknown := [name for name in found if name not in class_names]:
        raise ConfigurationError(
            f'{where}: there is no class "{unknown[0]}".{nearest(unknown[0], class_names)} There are: '
            f"{listed(class_names)}"
        )
    if missing := [name for name in class_names if name not in found]:
        raise ConfigurationError(f"{where}: no frequency of {listed(missing)}; name all classes")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigurationError(f'{where}: the frequency of class "{name}" is {value!r}; it must be above 0')
    values = [float(found[name]) for name in class_names]
    if abs(math.fsum(values) - 1) > TOLERANCE:
        raise ConfigurationError(f"{where}: the frequencies have the sum {math.fsum(values):.6g}; it must be 1")
    return torch.tensor([value / math.fsum(values) for value in values], dtype=torch.float64)


def _read_table(file: Path) -> Mapping[str, Any]:
    """Return the class names and values of a file.

    Raises:
        ConfigurationError: no such file, or neither JSON nor CSV.
    """
    where = f"--model.prior {file}"
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            words = listed([TRAINING, *WORDS])
            raise ConfigurationError(f"{where}: no such file of frequencies; give {words}, or a JSON or CSV file")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: cannot be read ({error})") from error
    if file.suffix.lower() == ".csv":
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
        if rows and len(rows[0]) == 2 and not _is_number(rows[0][1]):
            del rows[0]  # a header
        if not rows or any(len(row) != 2 or not _is_number(row[1]) for row in rows):
            raise ConfigurationError(f"{where}: each row must hold a class name and its frequency")
        pairs: list[tuple[str, Any]] = [(name, float(value)) for name, value in rows]
    else:
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where}: no JSON ({error}); name a CSV file .csv") from error
        if not isinstance(pairs, list) or not text.lstrip().startswith("{"):
            raise ConfigurationError(f"{where}: must hold an object of class name -> frequency")
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f'{where}: the class "{twice[0]}" is there twice')
    return dict(pairs)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
