"""Propose a pattern of groups for file names that number the images of a patient, such as `P17_L.png`, `P17_R.png`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

MOST_IMAGES = 8
"""Largest mean number of images of a patient: more are numbers of images, not images of a patient."""
SIDES = "L|R|left|right|OD|OS"
NUMBERS = r"\d{1,2}|[a-d]"


class Proposal(NamedTuple):
    """A pattern for `--group_pattern`.

    Attributes:
        pattern: a regular expression with one group.
        groups: number of groups with several images.
        images: number of images in these groups.
        example: two names of one group.
    """

    pattern: str
    groups: int
    images: int
    example: tuple[str, str]


def propose_pattern(paths: Sequence[PurePath]) -> Proposal | None:
    """Return a pattern if at least two beginnings of names are shared by several images, or None.

    A side (`_L`, `_right`, `_OD`) may follow any name. A number or letter (`_1`, `_b`) must follow a name with a digit,
    because `naevus_1` and `naevus_2` are no patient.

    Args:
        paths: paths of the images, relative to the folder.
    """
    for name, suffixes in ((r"[^/]*?", SIDES), (r"[^/]*?\d[^/]*?", f"{SIDES}|{NUMBERS}")):
        pattern = rf"(?i)(?:^|/)({name})[_\- ](?:{suffixes})\.[^./]+$"
        found = [(match.group(1), path.name) for path in paths if (match := re.search(pattern, path.as_posix()))]
        sizes = Counter(group for group, _ in found)
        several = {group: size for group, size in sizes.items() if size > 1}
        if len(several) > 1 and sum(several.values()) <= MOST_IMAGES * len(several):
            first = next(iter(several))
            one, other = [name for group, name in found if group == first][:2]
            return Proposal(pattern, len(several), sum(several.values()), (one, other))
    return None
