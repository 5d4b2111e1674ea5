"""Cutting one pooled set of labelled images into simulated sites, for experiments.

A unit is a group (patient, lesion), or an image without one; it never lies in two sites. Every row keeps its split,
and all splits are cut by the same shares, so that a personal model is tested on its own site's distribution.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pfedst.data.sites import SPLITS
from pfedst.data.sources import FileSource, content_digest
from pfedst.data.synthetic import Camera
from pfedst.errors import ConfigurationError, DataError, nearest
from pfedst.seeds import derive_seed
from pfedst.state import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    """In what the simulated sites differ, and how much.

    Args:
        by: `column`: a site is a value of a column. `labels`: for every class, its shares over the sites are drawn
            from Dir(alpha) (Yurochkin et al. 2019, after Hsu et al. 2019, who draw every site's mix of classes).
            `quantity`: the sizes of the sites are; labels are i.i.d. (NIID-Bench, Li et al. 2022).
            `features`: equal, i.i.d. sites, whose images `shift_images` changes.
        column: for `column`.
        sites: number of sites, >= 1; not for `column`.
        alpha: concentration of the Dirichlet draw, in (0, 1e12]; small is skewed.
        strength: of the change of images, 0 (none) to 100; 1 is that of the synthetic sites.
        fewest: images that every site must have in every split there is, >= 1.
        seed: of all draws.

    Raises:
        ConfigurationError: an option is out of its range.
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
        """Of simulated sites: `site_a` to `site_z`, then `site_27` and on."""
        return [f"site_{chr(ord('a') + index) if index < 26 else index + 1}" for index in range(self.sites)]

    def __str__(self) -> str:
        used = [f"{option} {getattr(self, option)}" for option in (*OPTIONS_OF[self.by], "fewest", "seed")]
        return ", ".join([f"by {self.by} {self.column or ''}".strip(), *used])


def partition(table: pd.DataFrame, options: PartitionOptions) -> pd.DataFrame:
    """The table with a column `site` (one that is there is replaced); rows, their order and their splits stay.

    Sites are a function of the set of rows and the options, never of the order of rows. A unit is drawn with the
    class and the split of the first of its paths. Draws that leave a site with too few images are repeated.

    Args:
        table: one row an image, all text: `path`, `label`, `split`, optionally `group` (empty: a unit of its own).
        options: of the cut.

    Raises:
        DataError: a table that cannot be cut, or a site with fewer than `fewest` images in a split.
    """
    unit = _checked_units(table, options)
    best = (-1, "", "")
    for draw in range(1 if options.column else DRAWS):
        site = table[options.column] if options.column else unit.map(_cut(table.assign(unit=unit), options, draw))
        images = Counter(zip(site, table["split"], strict=True))
        names = sorted(set(site)) if options.column else options.site_names
        smallest = min((images[name, split], name, split) for name in names for split in sorted(set(table["split"])))
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


def _checked_units(table: pd.DataFrame, options: PartitionOptions) -> pd.Series[str]:
    """The unit of every row: "image" and its path, or "group" and its name, so that the two never meet."""
    if table.empty:
        raise DataError("the table has no rows: there is nothing to cut into sites")
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
    """The share of each site, (sites,), sum 1.

    Args:
        options: of the cut.
        label: the class whose shares they are, for `labels`; all images' otherwise.
        draw: how often they were drawn before.
    """
    if options.by == "features":
        return np.full(options.sites, 1 / options.sites)
    rng = np.random.default_rng(derive_seed(options.seed, "partition shares", label, draw))
    return rng.dirichlet([options.alpha] * options.sites)


def round_shares(shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `count`, by largest remainder (of equal ones, the first)."""
    wanted = shares * count
    whole = np.floor(wanted).astype(np.int64)
    whole[np.argsort(whole - wanted, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _cut(table: pd.DataFrame, options: PartitionOptions, draw: int) -> dict[str, str]:
    """The site of every unit."""
    units = table.sort_values(["unit", "path"]).drop_duplicates("unit")
    if options.by != "labels":  # not class by class: rounding every rare class would make small sites smaller
        units = units.assign(label="")
    site_of: dict[str, str] = {}
    for (label, split), members in units.groupby(["label", "split"])["unit"]:
        rng = np.random.default_rng(derive_seed(options.seed, "partition order", label, split, draw))
        counts = round_shares(draw_shares(options, label, draw), len(members))
        sites = np.repeat(options.site_names, counts).tolist()
        site_of |= dict(zip(members.iloc[rng.permutation(len(members))], sites, strict=True))
    return site_of


def draw_camera(strength: float, seed: int, site: str) -> Camera:
    """A site's camera: at strength 0 it changes nothing, at 1 as much as those of the synthetic sites."""
    rng = np.random.default_rng(derive_seed(seed, "partition camera", site))
    # gains and gamma are exponentials, so that no strength makes them negative
    return Camera(
        np.exp(strength * rng.uniform(-0.22, 0.22, 3)),
        strength * rng.uniform(-0.08, 0.08, 3),
        float(np.exp(strength * rng.uniform(-0.4, 0.4))),
        strength * rng.uniform(-0.2, 0.2, 2),
    )


def see(image: Image.Image, camera: Camera) -> Image.Image:
    """The image as the camera sees it: 8-bit RGB of the same size; what is too dark or too bright is clipped."""
    pixels = np.asarray(image.convert("RGB"))
    curve = (np.arange(256)[:, None] / 255) ** camera.gamma * camera.gains + camera.offsets
    y, x = (np.linspace(-1, 1, size) for size in pixels.shape[:2])
    light = camera.light[0] * x + camera.light[1] * y[:, None]
    seen = curve[pixels, np.arange(3)] + light[..., None]
    return Image.fromarray(np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8))


def shift_images(table: pd.DataFrame, root: Path, target: Path, options: PartitionOptions) -> pd.DataFrame:
    """Write every image as its site's camera sees it; the table with the new paths, relative to `target`.

    The digest in a name is of path, strength and seed: an image that is there is not written again, and one of
    another strength is never taken for it.

    Args:
        table: of `partition` by `features`; paths are relative to `root`.
        root: folder of the images.
        target: gets `images/<site>/<stem>-<digest>.png`.
        options: those of the partition.

    Raises:
        ConfigurationError: the partition is not by `features`.
        DataError: an image cannot be read.
    """
    if options.by != "features":
        raise ConfigurationError(f"--by {options.by}: only --by features changes images")

    def shift(path: str, site: str) -> str:
        digest = content_digest(f"{path}\x1f{options.strength}\x1f{options.seed}".encode())[:12]
        new = Path("images", site, f"{Path(path).stem}-{digest}.png")
        if not (target / new).is_file():
            (target / new).parent.mkdir(parents=True, exist_ok=True)
            content = BytesIO()
            seen = see(FileSource([root / path]).load(0), draw_camera(options.strength, options.seed, site))
            seen.save(content, "PNG", compress_level=1)  # higher levels take long and save little on photographs
            write_atomically(target / new, content.getvalue())
        return new.as_posix()

    with ThreadPoolExecutor() as pool:
        shifted: pd.DataFrame = table.assign(path=list(pool.map(shift, table["path"], table["site"])))
    return shifted


def save_partition(table: pd.DataFrame, options: PartitionOptions, target: Path) -> None:
    """Write `manifest.csv`, `partition.json` and `partition.png` into `target`.

    The JSON holds the options, the images a site, split and class, the distance (total variation, 0 to 1) of every
    site's class shares from the pooled ones over all splits, and the SHA-256 of the manifest.

    Args:
        table: of `partition` or `shift_images`.
        options: those of the partition.
        target: a folder, made if need be.
    """
    target.mkdir(parents=True, exist_ok=True)
    manifest = table.to_csv(index=False, lineterminator="\n").encode()
    sites = sorted(set(table["site"])) if options.by == "column" else options.site_names
    images = {s: _count(table[table["split"] == s], table, sites) for s in SPLITS}
    total = _count(table, table, sites)
    shares = total.div(total.sum(axis=1), axis=0)
    distance = (shares - total.sum() / len(table)).abs().sum(axis=1) / 2
    content = {
        "options": asdict(options),
        "images": {
            site: {s: counts.loc[site].to_dict() for s, counts in images.items() if counts.to_numpy().any()}
            for site in sites
        },
        "total_variation": distance.round(6).to_dict(),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    write_atomically(target / "manifest.csv", manifest)
    write_json(target / "partition.json", content)
    write_atomically(target / "partition.png", _picture(images["train"], shares, distance, str(options)))


def _count(part: pd.DataFrame, table: pd.DataFrame, sites: list[str]) -> pd.DataFrame:
    """Images of a part of the table: a row a site, a column a class, zeros included."""
    classes = sorted(set(table["label"]))
    counts: pd.DataFrame = pd.crosstab(part["site"], part["label"]).reindex(index=sites, columns=classes, fill_value=0)
    return counts


def _picture(train: pd.DataFrame, shares: pd.DataFrame, distance: pd.Series[float], title: str) -> bytes:
    """Training images as stacked bars, class shares over all splits as a heat map; a row a site. A PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sites, classes = shares.shape
    names = [str(name).replace("$", r"\$") for name in shares.columns]  # no formulas
    below = max(0.06 * max(map(len, names)), 0.4 + 0.12 * classes)  # inches: names of classes, or the legend beside
    height = min(1 + below + 0.42 * max(sites, 3), 300)  # Agg draws no more than 65536 pixels
    figure = Figure((8 + 0.5 * classes, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(5, 1 + 0.5 * classes))
    _draw_bars(left, train, names)
    heat = right.imshow(shares, "cividis", vmin=0, aspect="auto")
    for (site, index), share in np.ndenumerate(shares.to_numpy()):
        colour = "white" if heat.norm(share) < 0.5 else "black"
        right.text(index, site, f"{share:.2f}" if share else "0", ha="center", va="center", color=colour, fontsize=8)
    right.set(yticks=range(sites), yticklabels=[f"TV {value:.2f}" for value in distance], xticks=range(classes))
    right.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
    right.yaxis.tick_right()
    figure.colorbar(heat, label="share of the site's images")
    figure.suptitle(title)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_bars(axes: Axes, train: pd.DataFrame, names: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.transforms import ScaledTranslation

    sites, classes = train.shape
    colours = colormaps["viridis"](np.linspace(0, 1, classes))  # its lightness rises: classes differ in grey, too
    ends = train.cumsum(axis=1).to_numpy()
    for index, name in enumerate(names):
        counts = train.iloc[:, index]
        look = {"color": colours[index], "edgecolor": "white", "linewidth": 0.5}
        axes.barh(range(sites), counts, 0.75, ends[:, index] - counts, label=name, **look)
    axes.set(yticks=range(sites), yticklabels=train.index, ylim=(sites - 0.5, -0.5), xlabel="training images")
    axes.set_xlim(0, 1.05 * max(ends.max(), 1))
    half_an_inch_below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=half_an_inch_below, ncols=2, frameon=False)
