"""Divide one pooled set of labelled images into simulated sites, for experiments.

A unit is a group (patient, lesion), or an image without a group. A unit never lies in two sites. Every row keeps its
split, and all splits are divided by the same shares, so that a personal model is tested on the distribution of its own
site.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pfedst.data.sites import SPLITS, split_of
from pfedst.errors import ConfigurationError, DataError, nearest
from pfedst.names import plain_name
from pfedst.seeds import derive_seed

By = Literal["column", "labels", "quantity", "features"]
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "column": (),
    "labels": ("sites", "alpha"),
    "quantity": ("sites", "alpha"),
    "features": ("sites", "strength"),
}
DRAWS = 100


@dataclass(frozen=True)
class PartitionOptions:
    """How the simulated sites differ, and by how much.

    Args:
        by: `column`: a site is a value of a column. `labels`: the shares of every class over the sites are drawn from
            Dir(alpha) (Yurochkin et al. 2019, after Hsu et al. 2019, who draw the mix of classes of every site).
            `quantity`: the sizes of the sites are drawn from Dir(alpha); labels are i.i.d. (NIID-Bench, Li et al.
            2022). `features`: equal, i.i.d. sites, whose images `shift_images` changes.
        column: name of the column, for `column`.
        sites: number of sites, >= 1; not for `column`.
        alpha: concentration of the Dirichlet draw, in (0, 1e12]. A small value is skewed.
        strength: strength of the change of images, 0 (none) to 100; 1 is that of the synthetic sites.
        fewest: minimum number of images of every site in every existing split, >= 1.
        seed: seed of all draws.

    Raises:
        ConfigurationError: If an option is out of range.
    """

    by: By
    column: str | None = None
    sites: int = 4
    alpha: float = 0.5
    strength: float = 1.0
    fewest: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in OPTIONS_OF:
            known = ", ".join(OPTIONS_OF)
            raise ConfigurationError(f"--by {self.by}: unknown.{nearest(self.by, OPTIONS_OF)} Use {known}")
        if (self.by == "column") != bool(self.column):
            raise ConfigurationError(f"--column {self.column}: --by column needs a column, and no other --by takes one")
        for option, fits, rule in (
            ("sites", self.sites >= 1, "1 or more"),
            ("alpha", 0 < self.alpha <= 1e12, "above 0 and at most 1e12"),
            ("strength", 0 <= self.strength <= 100, "0 or more and at most 100"),
            ("fewest", self.fewest >= 1, "1 or more"),
        ):
            if not fits:
                raise ConfigurationError(f"--{option} {getattr(self, option)}: must be {rule}")

    @property
    def site_names(self) -> list[str]:
        """Names of simulated sites: `site_a` to `site_z`, then `site_27` and so on."""
        return [f"site_{chr(ord('a') + index) if index < 26 else index + 1}" for index in range(self.sites)]

    def __str__(self) -> str:
        used = [f"{option} {getattr(self, option)}" for option in (*OPTIONS_OF[self.by], "fewest", "seed")]
        return ", ".join([f"by {self.by} {self.column or ''}".strip(), *used])


def partition(table: pd.DataFrame, options: PartitionOptions) -> pd.DataFrame:
    """Return the table with a column `site`. Rows, their order and their splits are unchanged.

    An existing column `site` is replaced.

    Sites depend on the set of rows and the options, not on the order of rows. A unit is drawn with the class and the
    split of the first of its paths. Draws that leave a site with too few images are repeated.

    Args:
        table: one row per image, all text: `path`, `label`, `split`, optionally `group` (empty: a unit of its own).
        options: options of the partition.

    Raises:
        DataError: If the table cannot be divided, or a site has fewer than `fewest` images in a split.
    """
    table = _with_plain_names(table, options)
    unit = _checked_units(table, options)
    units = table.assign(unit=unit).sort_values(["unit", "path"]).drop_duplicates("unit")
    if options.by != "labels":  # all classes together: rounding every rare class would make small sites smaller
        units = units.assign(label="")
    splits, best = table["split"].to_list(), (-1, "", "")
    for draw in range(1 if options.column else DRAWS):
        site = table[options.column] if options.column else unit.map(_cut(units, options, draw))
        images = Counter(zip(site, splits, strict=True))
        names = sorted(set(site)) if options.column else options.site_names
        smallest = min((images[name, split], name, split) for split in sorted(set(splits)) for name in names)
        if smallest[0] >= options.fewest:
            placed: pd.DataFrame = table.assign(site=site.to_numpy())
            return placed
        best = max(best, smallest, key=lambda part: part[0])
    remedies = {"column": "leave its rows out, or use", "features": "use fewer --sites or"}
    raise DataError(
        f"{best[1]} has {best[0]} {best[2]} images{'' if options.column else f' in the best of {DRAWS} draws'}, below "
        f"--fewest {options.fewest}; {remedies.get(options.by, 'use a larger --alpha, fewer --sites or')} "
        "a smaller --fewest"
    )


def _with_plain_names(table: pd.DataFrame, options: PartitionOptions) -> pd.DataFrame:
    """Return the table with each class, split, group and site in its one spelling."""
    names = [c for c in {"label", "split", "group", options.column} & set(table.columns) if c is not None]
    plain: pd.DataFrame = table.assign(**{name: table[name].fillna("").map(plain_name) for name in names})
    if "split" in plain.columns:
        plain["split"] = [split_of(name) or name for name in plain["split"]]
    return plain


def _checked_units(table: pd.DataFrame, options: PartitionOptions) -> pd.Series[str]:
    """Return the unit of every row: "image" and its path, or "group" and its name, so that the two cannot collide."""
    if table.empty:
        raise DataError("the table has no rows: there is nothing to divide into sites")
    found = [str(name) for name in table.columns]
    for column in ("path", "label", "split", *([options.column] if options.column else [])):
        if column not in found:
            raise DataError(f'no column "{column}".{nearest(column, found)} Found: {", ".join(found)}')
        for path in table["path"][table[column].fillna("") == ""]:
            raise DataError(f'row "{path}": the column "{column}" is empty; fill it in, or leave the row out')
    for path in table["path"][table["path"].duplicated()]:
        raise DataError(f"{path} is in two rows; keep one")
    for split in sorted(set(table["split"]) - set(SPLITS)):
        raise DataError(f'split "{split}" is unknown.{nearest(split, SPLITS)} Use {", ".join(SPLITS)}')
    group = table["group"].fillna("") if "group" in found else pd.Series("", table.index)
    unit: pd.Series[str] = ("image " + table["path"]).where(group == "", "group " + group)
    for name, sites in table[options.column].groupby(unit).unique().items() if options.column else ():
        if len(sites) > 1:
            both = " and ".join(sorted(sites)[:2])
            raise DataError(f"{name} lies in two sites, {both}; correct its {options.column}, or its group")
    return unit


def draw_shares(options: PartitionOptions, label: str = "", draw: int = 0) -> NDArray[np.float64]:
    """Return the share of each site, (sites,), with sum 1.

    Args:
        options: options of the partition.
        label: the class whose shares are drawn, for `labels`; otherwise the shares are those of all images.
        draw: number of earlier draws.
    """
    if options.by == "features":
        return np.full(options.sites, 1 / options.sites)
    rng = np.random.default_rng(derive_seed(options.seed, "partition shares", label, draw))
    return rng.dirichlet([options.alpha] * options.sites)


def round_shares(shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return integers with sum `count`, by largest remainder (the first one of equal remainders)."""
    wanted = shares * count
    whole = np.floor(wanted).astype(np.int64)
    whole[np.argsort(whole - wanted, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _cut(units: pd.DataFrame, options: PartitionOptions, draw: int) -> dict[str, str]:
    """Return the site of every unit. The units are sorted."""
    site_of: dict[str, str] = {}
    for (label, split), members in units.groupby(["label", "split"])["unit"]:
        rng = np.random.default_rng(derive_seed(options.seed, "partition order", str(label), str(split), draw))
        counts = round_shares(draw_shares(options, str(label), draw), len(members))
        sites = np.repeat(options.site_names, counts).tolist()
        site_of |= dict(zip(members.iloc[rng.permutation(len(members))], sites, strict=True))
    return site_of
