"""Names of classes, sites, groups and splits: one spelling of each, however it is typed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

INVISIBLE = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
"""Characters without width or ink that editors and web pages leave in texts."""
_AROUND = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")
_BETWEEN = re.compile(r"(?<=\w)[\s_-]+(?=\w)")


def plain_name(text: object) -> str:
    """Return a name in its one spelling: composed letters (Unicode NFC), without white space around it.

    Every name of a class, site, group or split passes here when it is read from a table, a folder or an option. A Mac
    writes the letters of folder names decomposed, and a cell of a table often ends with a space.
    """
    return _AROUND.sub("", unicodedata.normalize("NFC", str(text)))


def plain_names(texts: Iterable[object]) -> list[str]:
    """Return the names in their one spelling, in the same order."""
    return [plain_name(text) for text in texts]


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names that a reader takes for one, together, sorted.

    They differ only in case, in white space, `_` or `-` between words, in invisible characters, in the width of letters
    (Unicode NFKC), or in the way a number is written (1 and 01).
    """
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(_key(name), set()).add(name)
    return sorted(sorted(together) for together in found.values() if len(together) > 1)


def respelled(kind: str, spellings: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a text for each name that is written in several ways, such as `class "naevus" (2 spellings)`.

    Args:
        kind: of the names: class, site or group.
        spellings: name -> as it is written.
    """
    counts = {name: len(set(texts)) for name, texts in spellings.items()}
    return [f'{kind} "{name}" ({count} spellings)' for name, count in counts.items() if count > 1]


def _key(name: str) -> str:
    seen = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(letter for letter in seen if unicodedata.category(letter) != "Cf")
    seen = _BETWEEN.sub(" ", seen).strip()
    if re.fullmatch(r"[0-9]+(\.0*)?", seen):
        return seen.partition(".")[0].lstrip("0") or "0"
    return seen
