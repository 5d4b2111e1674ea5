"""Names whose letters the font of the figures does not have: another installed font, or a number in place of a name."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font

from pfedst.reporting.best_round import OF_PREDICTIONS
from pfedst.reporting.comparison import Compared, FinishedRun, RunsOfARow

FONT = "DejaVu Sans"
"""The font of all figures, which comes with matplotlib."""
BOXES = "Last Resort"
"""Fonts of this name have a box for every letter."""
T = TypeVar("T")


def fonts_for(compared: Compared) -> list[str]:
    """Return the fonts of the figures: the usual one, and installed ones with further letters of names."""
    missing = {c for name in _names(compared) for c in name if _is_written_to_the_right(c)} - _letters(_font_file())
    fonts = [FONT]
    if not missing:
        return fonts
    entries = sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", abs(_weight(entry) - 400)))
    files = {entry.name: entry.fname for entry in reversed(entries) if not entry.name.startswith(BOXES)}
    letters = {name: missing & _letters(file) for name, file in sorted(files.items())}
    while letters and (best := max(letters, key=lambda name: len(letters[name] & missing))) and letters[best] & missing:
        fonts.append(best)
        missing -= letters[best]
    return fonts


def with_drawable_names(compared: Compared, fonts: Sequence[str]) -> tuple[Compared, str]:
    """Number the names that the fonts cannot draw.

    Returns:
        The comparison with names that can be drawn; and a sentence that explains the numbers, empty if there are none.
    """
    letters = set[str]().union(*(_letters(_font_file(font)) for font in fonts))
    new: dict[str, dict[str, str]] = {}
    labels = [row.label for row in compared.rows]
    for kind, names in (("site", compared.sites), ("class", compared.classes), ("row", labels)):
        new[kind] = {
            name: _free(f"{kind} {number}", names)
            for number, name in enumerate(names, 1)
            if not all(c in letters and _is_written_to_the_right(c) for c in name)
        }
    told = ", ".join(f"{short} is {name}" for names in new.values() for name, short in names.items())
    if not told:
        return compared, ""
    rows = tuple(
        RunsOfARow(new["row"].get(row.label, row.label), tuple(_renamed(run, new) for run in row.runs))
        for row in compared.rows
    )
    reference = new["row"].get(compared.reference, compared.reference)
    return replace(compared, rows=rows, reference=reference), f"No installed font draws some names: {told}."


def _names(compared: Compared) -> list[str]:
    return [*compared.sites, *compared.classes, *(row.label for row in compared.rows)]


def _is_written_to_the_right(letter: str) -> bool:
    """Return False for a letter of Arabic, Hebrew and the like, which matplotlib would write in the wrong order."""
    return unicodedata.bidirectional(letter) not in ("R", "AL")


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _font_file(font: str = FONT) -> str:
    return str(findfont(FontProperties(family=font)))


def _letters(file: str) -> set[str]:
    return set(map(chr, get_font(file).get_charmap()))


def _weight(entry: FontEntry) -> int:
    return entry.weight if isinstance(entry.weight, int) else 400


def _renamed(run: FinishedRun, new: Mapping[str, Mapping[str, str]]) -> FinishedRun:
    sites, classes = new["site"], new["class"]

    def by_site(table: Mapping[str, T]) -> dict[str, T]:
        return {sites.get(site, site): value for site, value in table.items()}

    summary, protocol = run.summary, run.protocol
    models: dict[str, Any] = {
        model: {**summary[model], **{key: by_site(summary[model][key]) for key in ("clients", "counts")}}
        for model in ("personal", "generic")
    }
    renamed = {
        "classes": [classes.get(name, name) for name in protocol["classes"]],
        "samples": by_site(protocol["samples"]),
        "held_out_sites": [sites.get(site, site) for site in protocol["held_out_sites"]],
    }
    tables = {key: by_site(summary[key]) for key in OF_PREDICTIONS}
    made = FinishedRun(run.folder, {**summary, **models, "protocol": {**protocol, **renamed}, **tables})
    made.__dict__["records"] = [
        {**record, "client": sites.get(record["client"], record["client"])} for record in run.records
    ]
    return made
