"""The columns of a table by whose values results are reported: sex, age band, device and the like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pfedst.data.tables import column_names
from pfedst.errors import ConfigurationError, DataError, listed, nearest
from pfedst.evaluation.subgroups import MOST_LETTERS, MOST_SUBGROUPS, NOT_STATED
from pfedst.names import plain_name, plain_names

MINIMUM = 10
"""Least size of a subgroup whose numbers leave the site, if a configuration gives none."""


class Subgroups:
    """Which columns are read, and how.

    Attributes:
        columns: their headings.
        minimum: least size of a subgroup whose numbers leave the site.

    Args:
        columns: headings of the table.
        bands: by heading, the edges of the bands of a column of numbers.
        minimum: see above.

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(self, columns: Sequence[str], bands: Mapping[str, Sequence[float]], minimum: int) -> None:
        self.columns = plain_names(columns)
        self.minimum = minimum
        self._bands = {plain_name(column): list(edges) for column, edges in bands.items()}
        if twice := [column for column in self.columns if self.columns.count(column) > 1]:
            raise ConfigurationError(f'--data.subgroups: "{twice[0]}" is named twice; name each column once')
        if minimum < 1:
            raise ConfigurationError(f"--data.subgroup_minimum {minimum}: must be 1 or more")
        if minimum != MINIMUM and not self.columns:
            raise ConfigurationError(f"--data.subgroup_minimum {minimum} has no effect without --data.subgroups")
        for column, edges in self._bands.items():
            if column not in self.columns:
                raise ConfigurationError(
                    f'--data.subgroup_bands: "{column}" is no column of --data.subgroups'
                    f" ({listed(self.columns) or 'none'}); add it there"
                )
            if not edges or not all(map(math.isfinite, edges)) or sorted(set(edges)) != edges:
                raise ConfigurationError(
                    f"--data.subgroup_bands.{column} {edges}: give one or several numbers in rising order, such as "
                    f"[40, 60]"
                )

    def read(self, file: Path, table: pd.DataFrame) -> dict[str, list[str]]:
        """Return by column the subgroup of each row.

        Args:
            file: the table, for errors.
            table: as `read_table` returns it.

        Raises:
            DataError: a column is missing, a cell is no number, or a column has too many values.
        """
        for column in self.columns:
            if column not in table.columns:
                raise DataError(
                    f'{file}: no column "{column}" for --data.subgroups.{nearest(column, map(str, table.columns))} '
                    f"There are: {column_names(table)}"
                )
        found = {column: self._of_column(file, column, list(table[column])) for column in self.columns}
        for column, names in found.items():
            if len(values := set(names)) > MOST_SUBGROUPS:
                raise DataError(
                    f'{file}: the column "{column}" has {len(values)} different values, of which at most '
                    f"{MOST_SUBGROUPS} are subgroups; for numbers give bands, such as --data.subgroup_bands "
                    f"'{{\"{column}\": [40, 60]}}', or name another column"
                )
            if long := [name for name in values if len(name) > MOST_LETTERS]:
                raise DataError(f'{file}: the column "{column}" holds "{long[0][:40]}...": write at most 100 letters')
        return found

    def check_read(self, found: Collection[str], source: str) -> None:
        """Check that the data have read the columns.

        Args:
            found: columns that were read.
            source: what has read them, in words.

        Raises:
            ConfigurationError: it has no table with such columns.
        """
        if missing := [column for column in self.columns if column not in found]:
            raise ConfigurationError(
                f"--data.subgroups {listed(missing)}: {source} reads no table with such columns. List the images in a "
                f"table (pfedst data init FOLDER writes one), add the columns, and use ManifestSites; in a run between "
                f"hospitals the option belongs to the command of each hospital"
            )

    def names(self, column: str, found: Iterable[str]) -> tuple[str, ...]:
        """Return the subgroups of a column that were found, in their order: bands rise, names are sorted."""
        there = set(found)
        in_order = _bands(self._bands[column]) if column in self._bands else sorted(there - {NOT_STATED})
        return tuple(name for name in (*in_order, NOT_STATED) if name in there)

    def _of_column(self, file: Path, column: str, cells: Sequence[Any]) -> list[str]:
        texts = ["" if cell is None or cell != cell else plain_name(cell) for cell in cells]
        if column not in self._bands:
            return [text or NOT_STATED for text in texts]
        edges = self._bands[column]
        bands = _bands(edges)
        numbers = [_number(file, line, column, text) for line, text in enumerate(texts, start=2)]
        return [NOT_STATED if value is None else bands[sum(value >= edge for edge in edges)] for value in numbers]


def _bands(edges: Sequence[float]) -> list[str]:
    """Return the names of the bands between edges; a band includes its lower edge."""
    between = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:g}", *between, f"{edges[-1]:g} or above"]


def _number(file: Path, line: int, column: str, text: str) -> float | None:
    """Return the number in a cell; None for an empty one.

    Raises:
        DataError: the cell holds something else.
    """
    try:
        value = float(text) if text else math.nan
    except ValueError as error:
        raise DataError(
            f'{file}, line {line}: the column "{column}" has bands, and holds "{text[:40]}"; write a number, or leave '
            f"the cell empty"
        ) from error
    return None if math.isnan(value) else value
