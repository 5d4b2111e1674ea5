"""The columns of a manifest: other headings, one column for each class, and tables that name several classes a row."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pfedst.data.tables import column_names
from pfedst.errors import ConfigurationError, DataError, listed, nearest
from pfedst.names import plain_name, plain_names

NEEDED = ("path", "label", "site")
OPTIONAL = ("split", "group")
SINGLE_LABEL = "pfedst trains on one class an image: leave these rows out, or give each the class that it is used for"

Columns = Mapping[str, str | list[str]]
"""Purpose of a column -> its heading; of `label` also the headings of one column for each class."""


def plain_columns(columns: Columns | None) -> dict[str, list[str]]:
    """Return the headings of each purpose that the user names.

    Raises:
        ConfigurationError: If a purpose is unknown, or one other than `label` has several headings.
    """
    known = (*NEEDED, *OPTIONAL)
    found = {}
    for purpose, headings in (columns or {}).items():
        if purpose not in known:
            raise ConfigurationError(f'--data.columns: "{purpose}".{nearest(purpose, known)} Known: {", ".join(known)}')
        found[purpose] = plain_names([headings] if isinstance(headings, str) else headings)
        if purpose != "label" and len(found[purpose]) != 1:
            raise ConfigurationError(f"--data.columns.{purpose}: give one heading; label alone may have several")
    return found


def with_columns(
    file: Path, table: pd.DataFrame, columns: Mapping[str, Sequence[str]], others: Collection[str] = ()
) -> pd.DataFrame:
    """Return the columns `path`, `label`, `site`, and `split` and `group` if the table has them, under these names.

    If there is no column `label`, columns of 0 and 1 are the classes.

    Args:
        file: the table, for errors.
        table: as `read_table` returns it.
        columns: headings of purposes, as `plain_columns` returns them; the others have their own name as heading.
        others: headings that are no classes.

    Raises:
        DataError: If a column is missing, or a row has several classes or none.
    """
    headings = {purpose: list(columns.get(purpose, [_heading(table, purpose)])) for purpose in (*NEEDED, *OPTIONAL)}
    used = {heading for found in headings.values() for heading in found}
    unused = [str(heading) for heading in table.columns if heading not in used and heading not in others]
    if headings["label"][0] not in table.columns and "label" not in columns:
        headings["label"] = _one_hot(file, table, unused) or ["label"]
    if headings["split"][0] not in table.columns and (hint := nearest("split", unused)):
        raise DataError(f'{file}: no column "split".{hint} Name it with --data.columns.split, or remove that column')
    for purpose, found in headings.items():
        for heading in found:
            if heading not in table.columns and (purpose in NEEDED or purpose in columns):
                raise DataError(
                    f'{file}: no column "{heading}" (found: {column_names(table)}); '
                    f"needed: {', '.join(NEEDED)}, optional: {', '.join(OPTIONAL)}; --data.columns.{purpose} names a "
                    f"column with another heading"
                )
    chosen = {purpose: found[0] for purpose, found in headings.items() if found[0] in table.columns}
    result: pd.DataFrame = pd.DataFrame({purpose: table[heading] for purpose, heading in chosen.items()})
    if len(headings["label"]) > 1:
        result["label"] = _label_of_columns(file, table[headings["label"]])
    return result


def _is_set(value: Any) -> bool | None:
    """Return True for 1, False for 0 and an empty cell, None for anything else."""
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    return False if text in ("", "0", "0.0", "false", "nan", "none") else None


def _heading(table: pd.DataFrame, purpose: str) -> str:
    """Return the heading of a purpose, which may be written in another case."""
    alike = [str(heading) for heading in table.columns if str(heading).lower() == purpose]
    return alike[0] if len(alike) == 1 else purpose


def _one_hot(file: Path, table: pd.DataFrame, others: Sequence[str]) -> list[str]:
    """Return those of the other columns that hold 0 and 1 alone, if there are several, and log them."""
    marks = {heading: {_is_set(value) for value in table[heading]} for heading in others}
    found = [heading for heading, values in marks.items() if True in values and None not in values]
    if len(found) < 2:
        return []
    logging.getLogger("pfedst").warning(
        "%s has no column label: its columns of 0 and 1 are read as the classes %s", file, listed(found)
    )
    return found


def _label_of_columns(file: Path, table: pd.DataFrame) -> list[str]:
    """Return the heading of the column that is 1 in each row."""
    labels = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        marks = {str(heading): _is_set(value) for heading, value in row.items()}
        if odd := [heading for heading, mark in marks.items() if mark is None]:
            raise DataError(f'{file}, line {line}: the column "{odd[0]}" holds "{row[odd[0]]}"; a class is 0 or 1')
        classes = [heading for heading, mark in marks.items() if mark]
        if len(classes) > 1:
            raise DataError(
                f"{file}, line {line}: multi-label: the columns {listed(classes)} are 1; {SINGLE_LABEL} "
                f"(--data.columns.label names the columns of classes)"
            )
        if not classes:
            raise DataError(f"{file}, line {line}: no class is 1 (of {listed(list(marks))}); fill it in")
        labels.append(classes[0])
    return labels


def refuse_several(file: Path, labels: Sequence[str]) -> None:
    """Check that no label lists several classes, such as `effusion|mass` or `a;b` of the classes a and b.

    Args:
        file: the table, for errors.
        labels: label of each row, in one spelling.

    Raises:
        DataError: If one does.
    """
    known = set(labels)
    for line, label in enumerate(labels, start=2):
        parts = plain_names(re.split(r"[|;,]", label.strip("[](){}")))
        parts = [plain_name(part.strip("'\"")) for part in parts if part]
        there = known & (set(parts) - {label})
        if len(parts) > 1 and (there if "|" in label else there == set(parts)):
            raise DataError(f'{file}, line {line}: multi-label: "{label}" lists several classes; {SINGLE_LABEL}')
